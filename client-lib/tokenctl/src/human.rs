//! Times, lifetimes and foreign texts for people.

use std::time::{Duration, SystemTime};

pub(crate) use tokend_protocol::documents::{clean, rfc3339};

/// A duration in two units at most, rounded down: `59m 12s`, `23h 4m`, `2d`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => two(minutes, "m", seconds % 60, "s"),
        (0, _, _) => two(hours, "h", minutes, "m"),
        _ => two(days, "d", hours, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit} {small}{small_unit}")
    }
}

/// The time from `now` until `time`; zero if `time` has passed.
pub(crate) fn until(time: SystemTime, now: SystemTime) -> Duration {
    time.duration_since(now).unwrap_or_default()
}

/// Cuts a text to `max` characters, the last of them an ellipsis if the text was longer.
pub(crate) fn cut(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3_552, "59m 12s"),
            (3_600, "1h"),
            (3_659, "1h"),
            (83_040, "23h 4m"),
            (86_400, "1d"),
            (180_000, "2d 2h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(duration(Duration::from_millis(999)), "0s");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(cut("naïveté", 7), "naïveté");
        assert_eq!(cut("naïveté", 4), "naï…");
    }
}

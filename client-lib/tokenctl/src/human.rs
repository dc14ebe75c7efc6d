//! Times, lifetimes and foreign texts for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The end of the year 9999, past which RFC 3339 has no date.
const LAST_SECOND: u64 = 253_402_300_799;

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

/// A time in RFC 3339, in UTC, to the second.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().min(LAST_SECOND);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// A foreign text that cannot control a terminal: control characters, and those that change the direction of writing,
/// become question marks.
pub(crate) fn clean(text: &str) -> String {
    let dangerous = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if dangerous(c) { '?' } else { c }).collect()
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
    fn times_are_in_utc_and_never_past_the_calendar() {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(2_000_000_000_999)), "2033-05-18T03:33:20Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(u64::MAX / 2)), "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_foreign_text_cannot_take_hold_of_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\r\nc\u{9b}d\u{202e}é"), "a?[31mb??c?d?é");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(cut("naïveté", 7), "naïveté");
        assert_eq!(cut("naïveté", 4), "naï…");
    }
}

//! The status as documents that others read: metrics of Prometheus, and JSON. For the daemon's HTTP and for `tokenctl`.

mod metrics;
mod status;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use self::metrics::{Dialect, Metrics};
pub use self::status::{Held, Page, TokenDocument, held, page, token};

/// The end of the year 9999, past which RFC 3339 has no date.
const LAST_SECOND: u64 = 253_402_300_799;

/// A time in RFC 3339, in UTC, to the second.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().min(LAST_SECOND);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// A foreign text that cannot control a terminal: control characters, and those that change the direction of writing,
/// become question marks.
pub fn clean(text: &str) -> String {
    let dangerous = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if dangerous(c) { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

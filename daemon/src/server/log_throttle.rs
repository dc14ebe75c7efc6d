//! Rate-limits log lines that callers can trigger.

use std::time::Duration;

use crate::clock::Instant;

/// The least time between two log lines about one kind of event.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Rate-limits a log line that callers can trigger, and counts the suppressed ones.
#[derive(Debug, Default)]
pub struct LogThrottle {
    logged_at: Option<Instant>,
    unlogged: u64,
}

impl LogThrottle {
    /// Counts one more event. Returns how many there were since the last line, if it is time for another line.
    pub fn record(&mut self, now: Instant) -> Option<u64> {
        self.unlogged += 1;
        if self.logged_at.is_some_and(|at| now.since(at) < LOG_INTERVAL) {
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_is_logged_at_once_and_the_rest_are_counted() {
        let mut throttle = LogThrottle::default();
        let at = |seconds: u64| Instant::at(Duration::from_secs(1000 + seconds));
        assert_eq!(throttle.record(at(0)), Some(1));
        assert_eq!(throttle.record(at(1)), None);
        assert_eq!(throttle.record(at(59)), None);
        assert_eq!(throttle.record(at(60)), Some(3));
    }
}

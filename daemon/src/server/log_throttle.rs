//! Reports seldom, and with a count, what a caller can cause as often as it likes.

use std::time::Duration;

use crate::clock::Instant;

/// The least time between two lines about the same.
const INTERVAL: Duration = Duration::from_secs(60);

/// What is to be said about one kind of event.
#[derive(Debug, Default)]
pub struct LogThrottle {
    said_at: Option<Instant>,
    unsaid: u64,
}

impl LogThrottle {
    /// One more of them: how many there were since the last line, if it is time for another.
    pub fn record(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        if self.said_at.is_some_and(|at| now.since(at) < INTERVAL) {
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_rest_are_counted() {
        let mut seldom = LogThrottle::default();
        let at = |seconds: u64| Instant::at(Duration::from_secs(1000 + seconds));
        assert_eq!(seldom.record(at(0)), Some(1));
        assert_eq!(seldom.record(at(1)), None);
        assert_eq!(seldom.record(at(59)), None);
        assert_eq!(seldom.record(at(60)), Some(3));
    }
}

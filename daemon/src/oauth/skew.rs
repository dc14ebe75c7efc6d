//! The difference between a provider's clock and this host's. Lifetimes do not depend on it, because they count from the
//! request on a monotonic clock. But an API that compares a token's claims with the wall clock may refuse the token.

use std::fmt;
use std::time::Duration;

/// The largest difference in seconds that rounding of `Date` and network latency can explain.
const UNREMARKABLE: u64 = 5;

/// A difference in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSkew {
    /// The provider's clock minus this host's.
    seconds: i64,
}

impl ClockSkew {
    /// The difference between a reply's `Date` and this host's wall time at its arrival.
    pub fn between(date: Duration, wall: Duration) -> Self {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Self { seconds: seconds(date).saturating_sub(seconds(wall)) }
    }

    /// Whether it is worth reporting.
    pub fn is_remarkable(self) -> bool {
        self.seconds.unsigned_abs() > UNREMARKABLE
    }
}

impl fmt::Display for ClockSkew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.seconds < 0 { "behind" } else { "ahead of" };
        write!(f, "the provider's clock is {} s {direction} this host's", self.seconds.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skew(date: u64, wall: u64) -> ClockSkew {
        ClockSkew::between(Duration::from_secs(date), Duration::from_secs(wall))
    }

    #[test]
    fn a_difference_is_shown_with_its_direction_once_the_way_does_not_explain_it() {
        assert!(!skew(1000, 1005).is_remarkable() && !skew(1005, 1000).is_remarkable());
        assert!(skew(1000, 1006).is_remarkable());
        assert_eq!(skew(1000, 1090).to_string(), "the provider's clock is 90 s behind this host's");
        assert_eq!(skew(4600, 1000).to_string(), "the provider's clock is 3600 s ahead of this host's");
    }
}

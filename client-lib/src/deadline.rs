//! The time that a call has left, and the clock of tokens. The only file of this crate that reads a clock.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use tokend_protocol::BootInstant;

/// The time that this side waits beyond the deadline, so that the daemon's more detailed error normally arrives
/// first.
const GRACE: Duration = Duration::from_millis(250);

/// When a call ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// A deadline from now, at most 49 days, the range of the protocol.
    pub(crate) fn after(wait: Duration) -> Self {
        Self(Instant::now() + wait.min(Duration::from_millis(u64::from(u32::MAX))))
    }

    /// The value for the request: milliseconds until the caller's deadline.
    pub(crate) fn for_daemon(self) -> u32 {
        let left = self.0.saturating_duration_since(Instant::now());
        u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
    }

    /// The time until the deadline; zero once it has passed.
    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The time until this side gives up; `None` if it has passed.
    pub(crate) fn left(self) -> Option<Duration> {
        (self.0 + GRACE).checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

/// Now, on the clock that tokens count on (`CLOCK_BOOTTIME`).
///
/// ```
/// # fn example(reply: &tokend_client::TokenReply) {
/// let remaining = reply.info.remaining(tokend_client::now());
/// # let _ = remaining;
/// # }
/// ```
pub fn now() -> BootInstant {
    // clock_gettime(2) fails only for clocks that the kernel lacks, and Linux has had this one since 2.6.39.
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    BootInstant(u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX))
}

//! Points in time that outlive the process, and perhaps the host's uptime.
//!
//! A lifetime counts on a clock that begins with the boot. Over a restart of the process it runs on; over a reboot
//! it does not, and the wall clock alone tells how much time has passed. That clock may have been set meanwhile, or
//! have stood still on a host that keeps no time while it is off. No token is then given more life than it had left
//! when it was written down, but a part of that may have passed unseen.

use std::fs;
use std::time::Duration;

use crate::clock::{Clock, Instant};

/// Names one uptime of the kernel.
pub type BootId = [u8; 36];

/// Where the kernel tells it. A service with `ProcSubset=pid` does not see it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// On the clock that lifetimes count on.
    pub at: Instant,
    /// Since the Unix epoch.
    pub wall: Duration,
    /// Of which uptime.
    pub boot: Option<BootId>,
}

/// What is known of the clock that lifetimes count on, from when something was written until now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uptime {
    /// It ran on: what was written was in memory.
    SameBoot,
    /// It may have begun anew.
    Unknown,
}

impl Moment {
    /// This one.
    pub fn now(clock: &Clock, boot: Option<BootId>) -> Self {
        Self { at: clock.now(), wall: clock.wall(), boot }
    }

    /// Takes a point that was told at `self` for one on the clock as it is at `now`.
    pub fn rebase(&self, point: Instant, now: &Self, uptime: Uptime) -> Instant {
        if self.is_same_uptime(now, uptime) {
            return point;
        }
        let written = now.at.before(now.wall.saturating_sub(self.wall));
        written.after(point.since(self.at)).before(self.at.since(point))
    }

    fn is_same_uptime(&self, now: &Self, uptime: Uptime) -> bool {
        let ran_on = uptime == Uptime::SameBoot || (self.boot.is_some() && self.boot == now.boot);
        // What was written in the future was written by another clock, whatever else is said.
        ran_on && self.at <= now.at
    }
}

/// The uptime that this is, where it can be told.
pub fn boot_id() -> Option<BootId> {
    fs::read(BOOT_ID).ok()?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moment(at: u64, wall: u64, boot: u8) -> Moment {
        Moment {
            at: Instant::at(Duration::from_secs(at)),
            wall: Duration::from_secs(wall),
            boot: Some([boot; 36]),
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::at(Duration::from_secs(seconds))
    }

    #[test]
    fn within_one_uptime_a_set_wall_clock_changes_nothing() {
        let (written, now) = (moment(1_000, 50_000, 1), moment(1_010, 90_000, 1));
        assert_eq!(written.rebase(at(4_000), &now, Uptime::Unknown), at(4_000));
        let hidden = Moment { boot: None, ..now };
        assert_eq!(written.rebase(at(4_000), &hidden, Uptime::SameBoot), at(4_000));
    }

    #[test]
    fn after_a_reboot_the_wall_clock_counts() {
        let (written, now) = (moment(1_000, 50_000, 1), moment(30, 50_100, 2));
        let carried = |point| written.rebase(at(point), &now, Uptime::Unknown);
        assert_eq!(carried(1_600), at(530), "500 s of 600 are left");
        assert_eq!(carried(900), at(30).before(Duration::from_secs(200)), "before the boot");
        let hidden = Moment { boot: None, ..now };
        assert_eq!(written.rebase(at(1_600), &hidden, Uptime::Unknown), at(530));
    }

    #[test]
    fn a_clock_that_is_behind_what_was_written_is_another_one() {
        let (written, now) = (moment(1_000, 50_000, 1), moment(30, 50_100, 1));
        assert_eq!(written.rebase(at(1_600), &now, Uptime::SameBoot), at(530));
    }

    proptest! {
        #[test]
        fn no_clock_lengthens_what_was_left(
            written in (0_u64..10_000_000, 0_u64..10_000_000),
            now in (0_u64..10_000_000, 0_u64..10_000_000),
            left in 0_u64..10_000_000,
            boots in (0_u8..2, 0_u8..2),
        ) {
            let (written, now) = (moment(written.0, written.1, boots.0), moment(now.0, now.1, boots.1));
            let expiry = written.at.after(Duration::from_secs(left));
            for uptime in [Uptime::SameBoot, Uptime::Unknown] {
                let carried = written.rebase(expiry, &now, uptime);
                prop_assert!(carried.since(now.at) <= Duration::from_secs(left));
            }
        }
    }
}

//! Time behind one small type, so that tests own it.
//!
//! Lifetimes count on `CLOCK_BOOTTIME`, which runs on while the host sleeps and is never set. Wall time is
//! only for people and for dates that providers send. Nothing else in the daemon reads a clock.

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use tokend_protocol::Timestamp;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// A point in time, as the time since the host booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// The point so much later, or the last one that can be told.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(delay))
    }

    /// The point so much earlier, or the boot.
    #[must_use]
    pub fn before(self, delay: Duration) -> Self {
        Self(self.0.saturating_sub(delay))
    }

    /// How long ago `earlier` was; zero if it is still to come.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The point at so long after boot.
    pub const fn at(since_boot: Duration) -> Self {
        Self(since_boot)
    }
}

/// Tells the time and waits for it.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    steps: watch::Receiver<u64>,
}

#[derive(Clone, Debug)]
enum Source {
    Kernel,
    /// Follows tokio's clock, which a test can pause and advance.
    Simulated {
        origin: tokio::time::Instant,
        wall_origin: Duration,
    },
}

impl Clock {
    /// The host's clocks. `steps` changes whenever they are set or the host resumes from sleep.
    pub fn kernel(steps: watch::Receiver<u64>) -> Self {
        Self { source: Source::Kernel, steps }
    }

    /// A clock that follows tokio's own, for tests under `start_paused`. It begins an hour after boot.
    pub fn simulated() -> Self {
        let origin = tokio::time::Instant::now();
        let source = Source::Simulated { origin, wall_origin: Duration::from_secs(1_700_000_000) };
        Self { source, steps: watch::channel(0).1 }
    }

    /// Now, on the clock that lifetimes count on.
    pub fn now(&self) -> Instant {
        match self.source {
            Source::Kernel => Instant(kernel_time(ClockId::CLOCK_BOOTTIME)),
            Source::Simulated { origin, .. } => Instant(origin.elapsed() + Duration::from_secs(3600)),
        }
    }

    /// Wall time now, since the Unix epoch.
    pub fn wall(&self) -> Duration {
        match self.source {
            Source::Kernel => kernel_time(ClockId::CLOCK_REALTIME),
            Source::Simulated { origin, wall_origin } => wall_origin + origin.elapsed(),
        }
    }

    /// Wall time now, as the standard library's type.
    pub fn system_time(&self) -> SystemTime {
        UNIX_EPOCH + self.wall()
    }

    /// The wall time of `instant`, as the clocks stand now.
    pub fn timestamp(&self, instant: Instant) -> Timestamp {
        let (now, wall) = (self.now(), self.wall());
        let at = wall.saturating_add(instant.since(now)).saturating_sub(now.since(instant));
        Timestamp(u64::try_from(at.as_millis()).unwrap_or(u64::MAX))
    }

    /// Waits until `instant`, also across suspend and clock changes.
    pub async fn sleep_until(&self, instant: Instant) {
        let mut steps = self.steps.clone();
        loop {
            let left = instant.since(self.now());
            if left.is_zero() {
                return;
            }
            // tokio's timers count on a clock that stops while the host sleeps. A step wakes the sleeper
            // to look again.
            tokio::select! {
                () = tokio::time::sleep(left) => (),
                Ok(()) = steps.changed() => (),
            }
        }
    }
}

fn kernel_time(clock: ClockId) -> Duration {
    // clock_gettime(2) fails only for clocks that the kernel does not have, and it has had these two since 2.6.39.
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Notices when the wall clock is set and when the host resumes from sleep (`timerfd_create(2)`,
/// `TFD_TIMER_CANCEL_ON_SET`), and counts it in `steps`. Runs until it is dropped.
///
/// # Errors
/// What the kernel says when it gives no such timer. The daemon can run on without it: sleepers then
/// wake late after a suspend, by as long as the suspend was.
pub async fn watch_steps(steps: watch::Sender<u64>) -> std::io::Result<()> {
    let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    // SAFETY: the descriptor stays the same and open as long as `registered` lives, which borrows it.
    #[expect(unsafe_code, reason = "the safe constructor cannot promise that the descriptor stays open")]
    let registered = unsafe { AsyncFd::register(timer.as_fd()) }?;
    loop {
        arm(&timer)?;
        let mut ready = registered.readable().await?;
        match timer.wait() {
            Err(Errno::ECANCELED) => steps.send_modify(|count| *count = count.wrapping_add(1)),
            Err(Errno::EAGAIN) | Ok(()) => (),
            Err(error) => return Err(error.into()),
        }
        ready.clear_ready();
    }
}

fn arm(timer: &TimerFd) -> nix::Result<()> {
    // Only the cancellation is of interest, so the expiry lies as far ahead as is certain to be accepted.
    const FAR_AHEAD: i64 = 4_000_000_000;
    let expiry = Expiration::OneShot(TimeSpec::new(FAR_AHEAD, 0));
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    match timer.set(expiry, flags) {
        // The kernel reports a step that came before the timer was armed again in this way.
        Err(Errno::ECANCELED) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sleep_lasts_exactly_until_its_instant() {
        let clock = Clock::simulated();
        let start = clock.now();
        clock.sleep_until(start.after(Duration::from_secs(700))).await;
        assert_eq!(clock.now().since(start), Duration::from_secs(700));
    }

    #[tokio::test(start_paused = true)]
    async fn wall_time_of_past_and_future_points() {
        let clock = Clock::simulated();
        let now = clock.now();
        let Timestamp(wall) = clock.timestamp(now);
        assert_eq!(clock.timestamp(now.after(Duration::from_secs(5))), Timestamp(wall + 5_000));
        assert_eq!(clock.timestamp(now.before(Duration::from_secs(5))), Timestamp(wall - 5_000));
    }

    #[test]
    fn the_kernel_clocks_tell_a_time() {
        let clock = Clock::kernel(watch::channel(0).1);
        assert!(clock.now() > Instant::at(Duration::ZERO));
        assert!(clock.wall() > Duration::from_secs(1_700_000_000));
    }

    #[tokio::test]
    async fn the_kernel_gives_a_timer_that_notices_steps() {
        let (sender, _receiver) = watch::channel(0);
        let watching = tokio::time::timeout(Duration::from_millis(20), watch_steps(sender));
        assert!(watching.await.is_err(), "it ended, with no step to report");
    }
}

//! The clocks of the host.
//!
//! Lifetimes count on `CLOCK_BOOTTIME`, which runs on while the host sleeps and is never set. Wall time is for people,
//! for dates that providers send and for records that survive a reboot. Nothing else in the daemon reads a clock.

mod alarms;

use std::fmt::Debug;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokend_protocol::{BootInstant, Timestamp};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use self::alarms::Alarms;
pub use self::alarms::{Alarm, LATE, Sleeper};

/// A point in time: nanoseconds on a clock that begins `BEFORE_BOOT` before the host booted. Their number lasts until 384 years
/// after the boot. Never zero, so that an `Option` of it takes no more memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Duration", into = "Duration")]
pub struct Instant(NonZeroU64);

/// Two centuries, so that instants before the boot can be represented. Stored records depend on the value: it must
/// not change.
const BEFORE_BOOT: Duration = Duration::from_secs(200 * 365 * 24 * 60 * 60);

impl Instant {
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(delay)))
    }

    #[must_use]
    pub fn before(self, delay: Duration) -> Self {
        Self::of(self.0.get().saturating_sub(nanoseconds(delay)))
    }

    /// The time from `earlier` to here; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }

    pub const fn at(since_boot: Duration) -> Self {
        Self::of(nanoseconds(BEFORE_BOOT.saturating_add(since_boot)))
    }

    /// The instant in whole milliseconds, as in the protocol. An instant before the boot is 0.
    pub fn to_wire(self) -> BootInstant {
        let since_boot = self.since(Self::from(BEFORE_BOOT));
        BootInstant(u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX))
    }

    /// The last instant that is not later and that the protocol can express.
    fn whole_milliseconds(self) -> Self {
        self.before(Duration::from_nanos(self.0.get() % 1_000_000))
    }

    const fn of(nanoseconds: u64) -> Self {
        match NonZeroU64::new(nanoseconds) {
            Some(nanoseconds) => Self(nanoseconds),
            None => Self(NonZeroU64::MIN),
        }
    }
}

impl From<Duration> for Instant {
    fn from(since_beginning: Duration) -> Self {
        Self::of(nanoseconds(since_beginning))
    }
}

impl From<Instant> for Duration {
    fn from(Instant(nanoseconds): Instant) -> Self {
        Self::from_nanos(nanoseconds.get())
    }
}

/// A time in nanoseconds, 584 years at most.
const fn nanoseconds(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000_000).saturating_add(time.subsec_nanos() as u64)
}

/// An instant that is read and replaced without a lock.
#[derive(Debug)]
pub struct AtomicInstant(AtomicU64);

impl AtomicInstant {
    pub fn new(Instant(nanoseconds): Instant) -> Self {
        Self(nanoseconds.get().into())
    }

    pub fn load(&self) -> Instant {
        Instant::of(self.0.load(Ordering::Relaxed))
    }

    pub fn store(&self, Instant(nanoseconds): Instant) {
        self.0.store(nanoseconds.get(), Ordering::Relaxed);
    }
}

/// How much sooner than its provider states a token counts as expired, because many providers round the time of issue
/// down to whole seconds. At most a tenth of its lifetime.
const ROUNDING: Duration = Duration::from_secs(1);

/// From when to when a token is valid. It counts from the moment the request was sent, so that network latency is not
/// counted as lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    pub sent_at: Instant,
    pub lifetime: Duration,
}

impl Validity {
    /// For how long the token is served.
    pub fn served_for(self) -> Duration {
        self.lifetime.saturating_sub(ROUNDING.min(self.lifetime / 10))
    }

    /// The moment from which the token is not served any more, as callers are told it.
    pub fn expires_at(self) -> Instant {
        self.sent_at.after(self.served_for()).whole_milliseconds()
    }

    /// This validity, shortened because an API may compare the token with a clock that differs by so many seconds.
    #[must_use]
    pub fn with_clock_skew(self, seconds: u64) -> Self {
        let taken_off = Duration::from_secs(seconds).min(self.lifetime / 10);
        Self { lifetime: self.lifetime.saturating_sub(taken_off.saturating_sub(ROUNDING)), ..self }
    }

    pub fn remaining(self, now: Instant) -> Duration {
        self.expires_at().since(now)
    }

    /// Whether it lasts for at least `min_ttl`. An expired token never does.
    pub fn is_usable(self, now: Instant, min_ttl: Duration) -> bool {
        let remaining = self.remaining(now);
        !remaining.is_zero() && remaining >= min_ttl
    }
}

/// Wakes all [`Clock::sleep_until`] when the wall clock was set or the host resumed from a suspend, in the order of
/// the calls.
pub type ClockChanges = Arc<Notify>;

/// Reads the time and waits for it.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Clocks>);

#[derive(Debug)]
struct Clocks {
    source: Arc<dyn TimeSource>,
    changes: ClockChanges,
    alarms: Alarms,
}

/// The clocks of a host: this one's, or a simulated one's.
pub trait TimeSource: Debug + Send + Sync {
    /// The time since the boot, including suspends.
    fn since_boot(&self) -> Duration;

    /// The time since the Unix epoch.
    fn wall(&self) -> Duration;
}

#[derive(Debug)]
struct Kernel;

impl Clock {
    pub fn kernel(changes: ClockChanges) -> Self {
        Self::new(Arc::new(Kernel), changes)
    }

    /// The clocks of `source`. `changes` wakes sleepers when its wall clock is set or it resumes from a suspend.
    pub fn new(source: Arc<dyn TimeSource>, changes: ClockChanges) -> Self {
        Self(Arc::new(Clocks { source, changes, alarms: Alarms::default() }))
    }

    /// Now, on the clock that lifetimes count on.
    pub fn now(&self) -> Instant {
        Instant::at(self.0.source.since_boot())
    }

    pub fn wall(&self) -> Duration {
        self.0.source.wall()
    }

    /// The wall time of `instant`, as the clocks stand now.
    pub fn timestamp(&self, instant: Instant) -> Timestamp {
        let (now, wall) = (self.now(), self.wall());
        let at = wall.saturating_add(instant.since(now)).saturating_sub(now.since(instant));
        Timestamp(u64::try_from(at.as_millis()).unwrap_or(u64::MAX))
    }

    /// Waits until `instant`, also across suspend and clock changes.
    pub async fn sleep_until(&self, instant: Instant) {
        loop {
            // Created before the time is read, so that no change is missed in between.
            let changed = self.0.changes.notified();
            let left = instant.since(self.now());
            if left.is_zero() {
                return;
            }
            // tokio's timers count on a clock that stops while the host sleeps. A resume or a set clock therefore
            // wakes the sleeper.
            tokio::select! {
                () = tokio::time::sleep(left) => (),
                () = changed => (),
            }
        }
    }
}

impl TimeSource for Kernel {
    fn since_boot(&self) -> Duration {
        kernel_time(ClockId::CLOCK_BOOTTIME)
    }

    fn wall(&self) -> Duration {
        kernel_time(ClockId::CLOCK_REALTIME)
    }
}

fn kernel_time(clock: ClockId) -> Duration {
    // clock_gettime(2) fails only for clocks that the kernel does not have, and it has had these two since 2.6.39.
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Notices when the wall clock is set and when the host resumes from sleep (`timerfd_create(2)`,
/// `TFD_TIMER_CANCEL_ON_SET`), and wakes sleepers. Runs until it is dropped.
///
/// Fails if the kernel gives no such timer. The daemon can run without it: sleepers then wake late after a suspend.
pub async fn watch_clock_changes(changes: ClockChanges) -> std::io::Result<()> {
    let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    // SAFETY: the descriptor stays the same and open as long as `registered` lives, which borrows it.
    #[expect(unsafe_code, reason = "the safe constructor cannot promise that the descriptor stays open")]
    let registered = unsafe { AsyncFd::register(timer.as_fd()) }?;
    loop {
        if is_step(arm(&timer))? {
            changes.notify_waiters();
        }
        let mut ready = registered.readable().await?;
        if is_step(timer.wait())? {
            changes.notify_waiters();
        }
        ready.clear_ready();
    }
}

fn arm(timer: &TimerFd) -> nix::Result<()> {
    // Only the cancellation is of interest, so the expiry lies as far ahead as is certain to be accepted.
    const FAR_AHEAD: i64 = 4_000_000_000;
    let expiry = Expiration::OneShot(TimeSpec::new(FAR_AHEAD, 0));
    timer.set(expiry, TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET)
}

/// Whether the kernel reports that the clock was set: during a wait, or when the timer is armed again, which succeeds
/// all the same.
fn is_step(result: nix::Result<()>) -> nix::Result<bool> {
    match result {
        Err(Errno::ECANCELED) => Ok(true),
        Err(Errno::EAGAIN) | Ok(()) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows tokio's clock, which a test can pause and advance. Begins an hour after the boot.
    #[derive(Debug)]
    struct Simulated(tokio::time::Instant);

    impl TimeSource for Simulated {
        fn since_boot(&self) -> Duration {
            Duration::from_secs(3600) + self.0.elapsed()
        }

        fn wall(&self) -> Duration {
            Duration::from_secs(1_700_000_000) + self.0.elapsed()
        }
    }

    impl Clock {
        /// A clock that follows tokio's own.
        pub(crate) fn simulated() -> Self {
            Self::new(Arc::new(Simulated(tokio::time::Instant::now())), ClockChanges::default())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_lasts_exactly_until_its_instant() {
        let clock = Clock::simulated();
        let start = clock.now();
        clock.sleep_until(start.after(Duration::from_secs(700))).await;
        assert_eq!(clock.now().since(start), Duration::from_secs(700));
    }

    #[test]
    fn instants_before_and_after_the_boot() {
        let boot = Instant::at(Duration::ZERO);
        let (before, after) = (boot.before(Duration::from_millis(7)), boot.after(Duration::from_millis(7)));
        assert!(before < boot && boot < after);
        assert_eq!(after.since(before), Duration::from_millis(14));
        assert_eq!([before, boot, after].map(Instant::to_wire), [0, 0, 7].map(BootInstant));
    }

    #[test]
    fn a_token_expires_at_the_very_instant_that_callers_are_told() {
        let sent_at = Instant::at(Duration::from_nanos(7_999_999));
        let validity = Validity { sent_at, lifetime: Duration::from_secs(60) };
        let BootInstant(told) = validity.expires_at().to_wire();
        assert_eq!(told, 59_007);
        let end = Instant::at(Duration::from_millis(told));
        assert!(validity.is_usable(end.before(Duration::from_nanos(1)), Duration::ZERO));
        assert!(!validity.is_usable(end, Duration::ZERO));
    }

    #[test]
    fn an_atomic_instant_loses_nothing() {
        let boot = Instant::at(Duration::ZERO);
        let uptime = Duration::new(86_400 * 365, 123_456_789);
        for instant in [boot, boot.before(uptime), boot.after(uptime)] {
            assert_eq!(AtomicInstant::new(instant).load(), instant);
        }
        let atomic = AtomicInstant::new(boot);
        atomic.store(boot.after(Duration::MAX));
        assert!(atomic.load() > boot.after(uptime), "a stored number may be anything");
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
    fn the_kernel_clocks_return_plausible_times() {
        let clock = Clock::kernel(ClockChanges::default());
        assert!(clock.now() > Instant::at(Duration::ZERO));
        assert!(clock.wall() > Duration::from_secs(1_700_000_000));
    }

    #[test]
    fn the_kernel_accepts_the_timer_for_clock_changes() {
        let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK).unwrap();
        arm(&timer).unwrap();
    }

    #[test]
    fn only_a_cancelled_timer_reports_a_clock_change() {
        assert_eq!(is_step(Err(Errno::ECANCELED)), Ok(true));
        assert_eq!(is_step(Err(Errno::EAGAIN)), Ok(false));
        assert_eq!(is_step(Ok(())), Ok(false));
        assert_eq!(is_step(Err(Errno::EINVAL)), Err(Errno::EINVAL));
    }
}

//! A host whose clocks follow tokio's, which a test can pause and advance. The host can be suspended, and its wall clock
//! set.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokend::clock::{Clock, ClockChanges, TimeSource};
use tokio::time::Instant;

/// A simulated host.
#[derive(Clone, Debug)]
pub struct Host {
    clocks: Arc<Clocks>,
    changes: ClockChanges,
}

#[derive(Debug)]
struct Clocks {
    origin: Instant,
    shifts: Mutex<Shifts>,
}

/// How far the clocks are ahead of the time that tokio has counted.
#[derive(Clone, Copy, Debug)]
struct Shifts {
    boot: Duration,
    wall: Duration,
}

impl Host {
    /// A host that was started an hour ago.
    pub fn begin() -> Self {
        let shifts = Shifts { boot: Duration::from_secs(3600), wall: Duration::from_secs(1_700_000_000) };
        let clocks = Clocks { origin: Instant::now(), shifts: Mutex::new(shifts) };
        Self { clocks: Arc::new(clocks), changes: ClockChanges::default() }
    }

    /// Its clock.
    pub fn clock(&self) -> Clock {
        Clock::new(self.clocks.clone(), self.changes.clone())
    }

    /// Suspends the host for this time: boot and wall time go on, tokio's timers do not.
    pub fn suspend(&self, asleep: Duration) {
        self.step(|shifts| {
            shifts.boot = shifts.boot.saturating_add(asleep);
            shifts.wall = shifts.wall.saturating_add(asleep);
        });
    }

    /// Sets the wall clock ahead.
    pub fn set_ahead(&self, by: Duration) {
        self.step(|shifts| shifts.wall = shifts.wall.saturating_add(by));
    }

    /// Sets the wall clock back.
    pub fn set_back(&self, by: Duration) {
        self.step(|shifts| shifts.wall = shifts.wall.saturating_sub(by));
    }

    fn step(&self, change: impl FnOnce(&mut Shifts)) {
        change(&mut self.clocks.shifts.lock().unwrap_or_else(PoisonError::into_inner));
        self.changes.notify_waiters();
    }
}

impl Clocks {
    fn shifts(&self) -> Shifts {
        *self.shifts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TimeSource for Clocks {
    fn since_boot(&self) -> Duration {
        self.origin.elapsed() + self.shifts().boot
    }

    fn wall(&self) -> Duration {
        self.origin.elapsed() + self.shifts().wall
    }
}

#[tokio::test(start_paused = true)]
async fn a_sleeper_whose_instant_passed_while_the_host_slept_wakes_at_once() {
    let host = Host::begin();
    let clock = host.clock();
    let (due, wall) = (clock.now().after(Duration::from_secs(700)), clock.wall());
    let sleeper = tokio::spawn({
        let clock = clock.clone();
        async move { clock.sleep_until(due).await }
    });
    tokio::task::yield_now().await;
    host.suspend(Duration::from_secs(800));
    let resumed = clock.now();
    sleeper.await.unwrap();
    assert_eq!(clock.now(), resumed);
    assert_eq!(clock.wall(), wall + Duration::from_secs(800));
}

#[tokio::test(start_paused = true)]
async fn a_sleeper_does_not_notice_the_wall_clock_being_set() {
    let host = Host::begin();
    let clock = host.clock();
    let due = clock.now().after(Duration::from_secs(700));
    host.set_ahead(Duration::from_secs(86_400));
    host.set_back(Duration::from_secs(3_600));
    clock.sleep_until(due).await;
    assert_eq!(clock.now(), due);
    assert_eq!(clock.wall(), Duration::from_secs(1_700_000_000 + 700 + 82_800));
}

//! Wakes sleepers at their times, from one task. A sleeper costs an entry in a queue, and no task or timer of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::{Clock, Instant};

/// The most sleepers that are woken at once.
const BATCH: usize = 64;

/// The pause after that many. Callers are served meanwhile, and of many actors that are due the first have no task any more
/// when the last get one, if their provider is quick.
const PAUSE: Duration = Duration::from_millis(10);

/// There is no pause once sleepers are later than this, so that they do not get much later.
pub const LATE: Duration = Duration::from_secs(20);

/// Something that is woken at a time.
pub trait Sleeper: Send + Sync {
    fn wake(self: Arc<Self>);
}

/// An alarm that was set. Alarms of the same instant ring in the order in which they were set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    at: Instant,
    number: u64,
}

/// The sleepers of a clock.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    /// Never locked while a sleeper is woken.
    queue: Mutex<Queue>,
    /// Notified when an earlier alarm than the others is set.
    changed: Notify,
}

#[derive(Default)]
struct Queue {
    sleepers: BTreeMap<Alarm, Weak<dyn Sleeper>>,
    /// How many alarms were set.
    number: u64,
    /// Whether a task wakes them.
    is_watched: bool,
}

/// The task that wakes the sleepers of a clock, for as long as its runtime lasts.
struct Watch(Clock);

impl Clock {
    /// Wakes `sleeper` once, also across suspend and clock changes: at this instant, or soon after if very many are due. Must be
    /// called within a runtime.
    pub fn set_alarm(&self, at: Instant, sleeper: &Arc<impl Sleeper + 'static>) -> Alarm {
        let alarms = &self.0.alarms;
        let mut queue = alarms.lock();
        queue.number += 1;
        let alarm = Alarm { at, number: queue.number };
        let is_first = queue.first().is_none_or(|first| at < first);
        let sleeper = Arc::downgrade(sleeper);
        queue.sleepers.insert(alarm, sleeper);
        if !std::mem::replace(&mut queue.is_watched, true) {
            drop(tokio::spawn(Watch(self.clone()).ring()));
        } else if is_first {
            alarms.changed.notify_one();
        }
        alarm
    }

    /// Removes an alarm, unless it has rung.
    pub fn cancel_alarm(&self, alarm: Alarm) {
        self.0.alarms.lock().sleepers.remove(&alarm);
    }
}

impl Alarms {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn first(&self) -> Option<Instant> {
        self.sleepers.first_key_value().map(|(alarm, _)| alarm.at)
    }

    /// Takes a sleeper whose time has come.
    fn take_due(&mut self, now: Instant) -> Option<Weak<dyn Sleeper>> {
        let first = self.sleepers.first_entry()?;
        (first.key().at <= now).then(|| first.remove())
    }
}

impl Watch {
    async fn ring(self) {
        let Self(clock) = &self;
        let alarms = &clock.0.alarms;
        loop {
            let (now, first) = (clock.now(), alarms.lock().first());
            let is_late = first.is_some_and(|at| now.since(at) >= LATE);
            let due: Vec<_> = (0..BATCH).map_while(|_| alarms.lock().take_due(now)).collect();
            due.iter().filter_map(Weak::upgrade).for_each(Sleeper::wake);
            if due.len() == BATCH && is_late {
                yield_now().await;
            } else if due.len() == BATCH {
                sleep(PAUSE).await;
            } else {
                let first = alarms.lock().first();
                tokio::select! {
                    () = clock.sleep_until(first.unwrap_or(now)), if first.is_some() => (),
                    () = alarms.changed.notified() => (),
                }
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.0.alarms.lock().is_watched = false;
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("sleepers", &self.sleepers.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Notes when it is woken, in seconds.
    struct Log {
        clock: Clock,
        start: Instant,
        woken_at: Mutex<Vec<u64>>,
    }

    impl Sleeper for Log {
        fn wake(self: Arc<Self>) {
            self.woken_at.lock().unwrap().push(self.clock.now().since(self.start).as_secs());
        }
    }

    fn log(clock: &Clock) -> Arc<Log> {
        Arc::new(Log { clock: clock.clone(), start: clock.now(), woken_at: Mutex::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn each_sleeper_is_woken_once_at_its_time_in_whatever_order_the_alarms_are_set() {
        let clock = Clock::simulated();
        let sleepers: Vec<_> = (0..200).map(|_| log(&clock)).collect();
        let at = |seconds| clock.now().after(Duration::from_secs(seconds));
        let (early, late) = (at(5), at(50));
        for (number, sleeper) in sleepers.iter().enumerate() {
            clock.set_alarm(if number % 2 == 0 { late } else { early }, sleeper);
        }
        tokio::time::sleep(Duration::from_secs(100)).await;
        for (number, sleeper) in sleepers.iter().enumerate() {
            let expected = if number % 2 == 0 { 50 } else { 5 };
            assert_eq!(*sleeper.woken_at.lock().unwrap(), [expected]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn alarms_of_one_instant_ring_in_the_order_in_which_they_were_set() {
        struct Numbered(u32, Arc<Mutex<Vec<u32>>>);
        impl Sleeper for Numbered {
            fn wake(self: Arc<Self>) {
                self.1.lock().unwrap().push(self.0);
            }
        }
        let (clock, rung) = (Clock::simulated(), Arc::default());
        let at = clock.now().after(Duration::from_secs(5));
        let sleepers: Vec<_> = (0..200).map(|number| Arc::new(Numbered(number, Arc::clone(&rung)))).collect();
        for sleeper in &sleepers {
            clock.set_alarm(at, sleeper);
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(rung.lock().unwrap().iter().copied().eq(0..200));
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_sleepers_that_are_due_few_are_woken_at_a_time() {
        let clock = Clock::simulated();
        let sleepers: Vec<_> = (0..200).map(|_| log(&clock)).collect();
        let at = clock.now().after(Duration::from_secs(5));
        for sleeper in &sleepers {
            clock.set_alarm(at, sleeper);
        }
        let woken = || sleepers.iter().filter(|sleeper| !sleeper.woken_at.lock().unwrap().is_empty()).count();
        sleep(Duration::from_millis(5005)).await;
        assert!((1..100).contains(&woken()), "{} at once", woken());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(woken(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_alarms_are_due_none_rings_much_too_late() {
        let clock = Clock::simulated();
        let sleeper = log(&clock);
        let at = clock.now().after(Duration::from_secs(5));
        for _ in 0..200_000 {
            clock.set_alarm(at, &sleeper);
        }
        sleep(Duration::from_secs(100)).await;
        let woken_at = sleeper.woken_at.lock().unwrap();
        assert_eq!(woken_at.len(), 200_000);
        assert!(woken_at.last().is_some_and(|last| *last <= 5 + LATE.as_secs() + 1), "{:?}", woken_at.last());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_alarm_and_one_of_a_dropped_sleeper_do_not_ring() {
        let clock = Clock::simulated();
        let (cancelled, dropped, other) = (log(&clock), log(&clock), log(&clock));
        let at = clock.now().after(Duration::from_secs(5));
        let [alarm, ..] = [&cancelled, &dropped, &other].map(|sleeper| clock.set_alarm(at, sleeper));
        clock.cancel_alarm(alarm);
        drop(dropped);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(cancelled.woken_at.lock().unwrap().is_empty());
        assert_eq!(*other.woken_at.lock().unwrap(), [5]);
    }

    #[test]
    fn alarms_ring_although_an_earlier_runtime_has_ended() {
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (first, second) = (runtime(), runtime());
        let _entered = second.enter();
        let clock = Clock::simulated();
        let sleeper = log(&clock);
        first.block_on(async { clock.set_alarm(clock.now().after(Duration::from_secs(5)), &sleeper) });
        drop(first);
        second.block_on(async {
            clock.set_alarm(clock.now().after(Duration::from_secs(7)), &sleeper);
            tokio::time::sleep(Duration::from_secs(10)).await;
        });
        assert_eq!(sleeper.woken_at.lock().unwrap().len(), 2);
    }
}

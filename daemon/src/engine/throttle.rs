//! Limits the requests to providers, over all their tokens. Knows no tokens.
//!
//! - [`OriginThrottle`], one per host (scheme, host and port): limits concurrent requests and their rate, puts
//!   callers first, and sends nothing until a `Retry-After` has passed.
//! - [`EndpointThrottle`], one per token endpoint: a circuit breaker. While it is open, one scheduled request at a
//!   time probes the endpoint, at growing intervals. Realms or tenants of one host have endpoints of their own, so a
//!   failing one does not slow the others. Where the endpoint is discovered, the configured issuer's URL stands for
//!   it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokend_protocol::ErrorClass;
use tokio::sync::Notify;

use crate::clock::{Clock, Instant};
use crate::engine::credential::Failed;
use crate::engine::schedule::endpoint_back_off;
use crate::store::ThrottleWriter;
use crate::store::record::ThrottleRecord;

/// Requests in flight to one host. Enough for a start with many tokens to be quick, few enough that no provider
/// takes it for an attack.
const IN_FLIGHT_MAX: usize = 4;

/// The least time between two requests to one host, unless it is configured: twenty in a second are no attack on
/// anybody, and a thousand tokens are through in a minute.
const SPACING: Duration = Duration::from_millis(50);

/// Failures in a row, over all its tokens, after which an endpoint is taken to be down. Occasional failures, or
/// failures of one client, do not reach it.
const DOWN_AFTER: u32 = 3;

/// How long a token waits while the request of another one probes the endpoint.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// The traffic to one host.
#[derive(Debug, Default)]
pub struct OriginThrottle {
    /// Never locked across an await.
    traffic: Mutex<Traffic>,
    /// Wakes the first request of each line.
    changed: Notify,
    /// The line of requests that callers wait for. The holder of the lock is next.
    callers: tokio::sync::Mutex<()>,
    /// The line of scheduled requests. Its first waits until the line of callers is empty.
    scheduled: tokio::sync::Mutex<()>,
    writer: ThrottleWriter,
}

#[derive(Debug, Default)]
struct Traffic {
    in_flight: usize,
    /// The least time between two requests, where it is configured.
    spacing: Option<Duration>,
    /// When the next request may be sent, as far as the spacing goes.
    next_slot: Option<Instant>,
    /// The end of the provider's `Retry-After`.
    quiet_until: Option<Instant>,
}

/// The circuit breaker of one token endpoint, and the throttle of its host.
#[derive(Debug, Default)]
pub struct EndpointThrottle {
    origin: Arc<OriginThrottle>,
    /// Held for a look or a change, never across an await.
    breaker: Mutex<Breaker>,
    writer: ThrottleWriter,
}

#[derive(Debug, Default)]
struct Breaker {
    record: ThrottleRecord,
    /// Whether a request is under way that will show whether the endpoint is up again.
    probing: bool,
}

/// Whether a caller waits for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    Scheduled,
    /// For a caller that waits, or an operator. It goes first, and the circuit breaker does not apply.
    Needed,
}

/// The reason for which no request may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack {
    pub until: Instant,
    /// [`ErrorClass::Throttled`], or the last failure of the endpoint.
    pub class: ErrorClass,
}

/// The right to send one request, for as long as it is held.
#[derive(Debug)]
pub struct Admission<'a> {
    throttle: &'a EndpointThrottle,
    is_probe: bool,
}

impl HeldBack {
    /// The reason as a failure of a token.
    pub fn failed(self, now: Instant) -> Failed {
        let message = match self.class {
            ErrorClass::Throttled => "the provider asked for fewer requests",
            _ => "the last requests to the token endpoint failed",
        };
        Failed::new(self.class, message, now)
    }
}

impl OriginThrottle {
    /// The throttle of a host whose provider asked for no requests until `quiet_until`.
    pub fn new(writer: ThrottleWriter, quiet_until: Option<Instant>) -> Self {
        writer.changed(&ThrottleRecord { quiet_until, ..ThrottleRecord::default() });
        let traffic = Mutex::new(Traffic { quiet_until, ..Traffic::default() });
        Self { traffic, writer, ..Self::default() }
    }

    /// Allows no more requests in a minute than this; `None` for the usual number.
    pub fn limit(&self, per_minute: Option<u32>) {
        self.lock().spacing = per_minute.map(|number| Duration::from_secs(60) / number.max(1));
        self.changed.notify_waiters();
    }

    /// The delay of a token's first request after a start with `tokens` of this host. `roll` is in `0..1`. A few
    /// tokens go out at once. Ten thousand are spread over eight minutes, or as the configured limit demands: a line of
    /// that length would hold up renewals that fall due meanwhile.
    pub fn start_delay(&self, tokens: usize, roll: f64) -> Duration {
        let waiting = u32::try_from(tokens.saturating_sub(IN_FLIGHT_MAX)).unwrap_or(u32::MAX);
        self.lock().spacing().saturating_mul(waiting).mul_f64(roll)
    }

    /// Sends nothing before `until`, the end of a `Retry-After`.
    pub fn keep_quiet(&self, until: Instant) {
        let mut traffic = self.lock();
        if traffic.quiet_until < Some(until) {
            traffic.quiet_until = Some(until);
            drop(traffic);
            self.writer.changed(&ThrottleRecord { quiet_until: Some(until), ..ThrottleRecord::default() });
            self.changed.notify_waiters();
        }
    }

    /// Until when the provider asked for no requests, if that is still to come.
    pub fn quiet_until(&self, now: Instant) -> Option<Instant> {
        self.lock().quiet_until.filter(|until| *until > now)
    }

    fn lock(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traffic {
    fn spacing(&self) -> Duration {
        self.spacing.unwrap_or(SPACING)
    }

    /// Takes a slot for a request. Otherwise returns when to try again, or `None` to wait for a change.
    fn take(&mut self, now: Instant) -> Result<(), Option<Instant>> {
        if self.in_flight >= IN_FLIGHT_MAX {
            return Err(None);
        }
        if let Some(slot) = self.next_slot.filter(|slot| *slot > now) {
            return Err(Some(slot));
        }
        self.in_flight += 1;
        self.next_slot = Some(now.after(self.spacing()));
        Ok(())
    }
}

impl EndpointThrottle {
    /// A breaker in the state of `record`, for an endpoint on the host of `origin`.
    pub fn new(origin: Arc<OriginThrottle>, writer: ThrottleWriter, record: ThrottleRecord) -> Self {
        // Otherwise the next crash would restore a state that an orderly restart has dropped.
        writer.changed(&record);
        Self { origin, breaker: Mutex::new(Breaker { record, probing: false }), writer }
    }

    pub fn origin(&self) -> &OriginThrottle {
        &self.origin
    }

    /// Waits for a slot, callers first, unless the circuit breaker or a `Retry-After` forbids the request.
    pub async fn admit(&self, urgency: Urgency, clock: &Clock) -> Result<Admission<'_>, HeldBack> {
        // Checked before the wait too, so that nobody waits for a slot that cannot be used.
        self.check(urgency, clock.now())?;
        let origin = &*self.origin;
        let line = if urgency == Urgency::Needed { &origin.callers } else { &origin.scheduled };
        let _first_in_line = line.lock().await;
        loop {
            // Every caller in line has the lock of that line, or waits for it.
            while urgency == Urgency::Scheduled && origin.callers.try_lock().is_err() {
                drop(origin.callers.lock().await);
            }
            let changed = origin.changed.notified();
            let now = clock.now();
            self.check(urgency, now)?;
            let taken = origin.lock().take(now);
            match taken {
                Ok(()) => break,
                Err(None) => changed.await,
                Err(Some(slot)) => tokio::select! {
                    () = clock.sleep_until(slot) => (),
                    () = changed => (),
                },
            }
        }
        let mut breaker = self.lock();
        let is_probe = breaker.record.try_at.is_some() && !breaker.probing;
        breaker.probing |= is_probe;
        drop(breaker);
        Ok(Admission { throttle: self, is_probe })
    }

    /// Counts the further requests that one admission sent, and delays the next requests accordingly.
    pub fn also_sent(&self, requests: u32, now: Instant) {
        if requests > 0 {
            let mut traffic = self.origin.lock();
            let from = traffic.next_slot.map_or(now, |slot| slot.max(now));
            traffic.next_slot = Some(from.after(traffic.spacing() * requests));
        }
    }

    /// Resets the circuit breaker: the endpoint answered, or its cause may have ended.
    pub fn reset(&self) {
        self.change(|record| *record = ThrottleRecord::default());
    }

    /// Counts a failure of the endpoint.
    pub fn failed(&self, class: ErrorClass, now: Instant, jitter: f64) {
        self.change(|record| {
            // While the breaker is open, requests that were sent together count as one failure.
            if record.try_at.is_some_and(|at| at > now) {
                return;
            }
            record.failures = record.failures.saturating_add(1);
            record.class = Some(class);
            if record.failures >= DOWN_AFTER {
                let back_off = endpoint_back_off(record.failures - DOWN_AFTER + 1, jitter);
                record.try_at = Some(now.after(back_off));
            }
        });
    }

    /// Checks `Retry-After` and the circuit breaker.
    fn check(&self, urgency: Urgency, now: Instant) -> Result<(), HeldBack> {
        if let Some(until) = self.origin.quiet_until(now) {
            return Err(HeldBack { until, class: ErrorClass::Throttled });
        }
        let breaker = self.lock();
        let (Urgency::Scheduled, Some(try_at)) = (urgency, breaker.record.try_at) else { return Ok(()) };
        let class = breaker.record.class.unwrap_or(ErrorClass::Unreachable);
        if try_at > now {
            return Err(HeldBack { until: try_at, class });
        }
        if breaker.probing { Err(HeldBack { until: now.after(PROBE_WAIT), class }) } else { Ok(()) }
    }

    /// Changes the breaker, and stores it if it differs.
    fn change(&self, change: impl FnOnce(&mut ThrottleRecord)) {
        let mut breaker = self.lock();
        let before = breaker.record;
        change(&mut breaker.record);
        let after = breaker.record;
        drop(breaker);
        if after != before {
            self.writer.changed(&after);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.throttle.lock().probing = false;
        }
        self.throttle.origin.lock().in_flight -= 1;
        self.throttle.origin.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        throttle: EndpointThrottle,
        clock: Clock,
        start: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let clock = Clock::simulated();
            Self { throttle: EndpointThrottle::default(), start: clock.now(), clock }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start.after(Duration::from_secs(seconds))
        }

        /// Waits until `seconds` after the start.
        async fn reach(&self, seconds: u64) {
            self.clock.sleep_until(self.at(seconds)).await;
        }

        async fn admit(&self, urgency: Urgency) -> Result<Admission<'_>, HeldBack> {
            self.throttle.admit(urgency, &self.clock).await
        }

        async fn held_until(&self, urgency: Urgency) -> Option<Instant> {
            self.admit(urgency).await.err().map(|held| held.until)
        }

        fn fail(&self, times: u32) {
            for _ in 0..times {
                self.throttle.failed(ErrorClass::Server, self.clock.now(), 0.0);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_holds_back_all_requests_and_is_never_shortened() {
        let scene = Scene::new();
        scene.throttle.origin.keep_quiet(scene.at(100));
        scene.throttle.origin.keep_quiet(scene.at(50));
        scene.reach(99).await;
        for urgency in [Urgency::Scheduled, Urgency::Needed] {
            assert_eq!(scene.held_until(urgency).await, Some(scene.at(100)));
        }
        scene.reach(100).await;
        assert_eq!(scene.held_until(Urgency::Scheduled).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_four_requests_are_in_flight() {
        let scene = Scene::new();
        let mut admitted = Vec::new();
        for _ in 0..4 {
            admitted.push(scene.admit(Urgency::Needed).await.unwrap());
        }
        let fifth = tokio::time::timeout(Duration::from_secs(60), scene.admit(Urgency::Needed)).await;
        assert!(fifth.is_err(), "it waits for a place");
        admitted.pop();
        assert!(scene.admit(Urgency::Needed).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_keep_the_configured_spacing() {
        let scene = Scene::new();
        scene.throttle.origin().limit(Some(6));
        for turn in 0..5 {
            drop(scene.admit(Urgency::Needed).await.unwrap());
            assert_eq!(scene.clock.now(), scene.at(turn * 10));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_waits_for_its_turn_is_not_sent_into_a_quiet_that_began_meanwhile() {
        let scene = Scene::new();
        scene.throttle.origin().limit(Some(6));
        drop(scene.admit(Urgency::Needed).await.unwrap());
        let quiet = async {
            scene.reach(5).await;
            scene.throttle.origin.keep_quiet(scene.at(60));
        };
        let (held, ()) = tokio::join!(scene.held_until(Urgency::Needed), quiet);
        assert_eq!(held, Some(scene.at(60)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_is_down_after_three_failures_in_a_row_and_up_with_its_first_answer() {
        let scene = Scene::new();
        scene.fail(2);
        assert_eq!(scene.held_until(Urgency::Scheduled).await, None, "now and then is not down");
        scene.reach(1).await;
        scene.fail(1);
        assert_eq!(scene.held_until(Urgency::Scheduled).await, Some(scene.at(2)));
        assert_eq!(
            scene.held_until(Urgency::Needed).await,
            None,
            "a caller does not suffer for other tokens"
        );
        scene.throttle.reset();
        assert_eq!(scene.held_until(Urgency::Scheduled).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn while_an_endpoint_is_down_one_request_at_a_time_probes_it_ever_more_rarely() {
        let scene = Scene::new();
        scene.fail(3);
        scene.reach(1).await;
        let probe = scene.admit(Urgency::Scheduled).await.unwrap();
        assert_eq!(
            scene.held_until(Urgency::Scheduled).await,
            Some(scene.at(2)),
            "another one is finding out"
        );
        scene.fail(5);
        drop(probe);
        assert_eq!(
            scene.held_until(Urgency::Scheduled).await,
            Some(scene.at(3)),
            "five at once are one failure"
        );
        scene.reach(3).await;
        assert_eq!(scene.held_until(Urgency::Scheduled).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_probe_makes_room_for_the_next() {
        let scene = Scene::new();
        scene.fail(3);
        scene.reach(1).await;
        drop(scene.admit(Urgency::Scheduled).await);
        assert_eq!(scene.held_until(Urgency::Scheduled).await, None);
    }

    #[test]
    fn a_start_with_few_tokens_is_immediate_and_one_with_many_is_spread_as_the_limit_demands() {
        let origin = OriginThrottle::default();
        assert_eq!(origin.start_delay(4, 0.9), Duration::ZERO);
        assert_eq!(origin.start_delay(10_004, 0.5), Duration::from_secs(250));
        origin.limit(Some(60_000));
        assert_eq!(origin.start_delay(10_004, 0.5), Duration::from_secs(5));
        origin.limit(Some(60));
        assert_eq!(origin.start_delay(104, 0.5), Duration::from_secs(50));
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_caller_takes_the_next_turn_before_all_scheduled_requests() {
        let scene = Scene::new();
        scene.throttle.origin().limit(Some(60));
        drop(scene.admit(Urgency::Scheduled).await.unwrap());
        let order = Mutex::new(Vec::new());
        let wait = async |urgency, name: &'static str| {
            let admission = scene.admit(urgency).await.unwrap();
            order.lock().unwrap().push((name, scene.clock.now().since(scene.start).as_secs()));
            drop(admission);
        };
        let caller = async {
            scene.clock.sleep_until(scene.start.after(Duration::from_millis(500))).await;
            wait(Urgency::Needed, "caller").await;
        };
        tokio::join!(
            wait(Urgency::Scheduled, "first"),
            wait(Urgency::Scheduled, "second"),
            wait(Urgency::Scheduled, "third"),
            caller
        );
        let order = order.into_inner().unwrap();
        assert_eq!(order, [("caller", 1), ("first", 2), ("second", 3), ("third", 4)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_endpoint_does_not_slow_another_one_of_its_host() {
        let scene = Scene::new();
        let other = EndpointThrottle { origin: Arc::clone(&scene.throttle.origin), ..Default::default() };
        scene.fail(3);
        scene.reach(1).await;
        assert!(scene.held_until(Urgency::Scheduled).await.is_none(), "it may be tried again");
        scene.fail(1);
        assert!(scene.held_until(Urgency::Scheduled).await.is_some());
        assert!(other.admit(Urgency::Scheduled, &scene.clock).await.is_ok());
        scene.throttle.origin.keep_quiet(scene.at(60));
        assert!(other.admit(Urgency::Scheduled, &scene.clock).await.is_err(), "quiet is for the host");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_beyond_the_admitted_one_count_towards_the_rate() {
        let scene = Scene::new();
        scene.throttle.origin().limit(Some(60));
        drop(scene.throttle.admit(Urgency::Scheduled, &scene.clock).await.unwrap());
        scene.throttle.also_sent(2, scene.clock.now());
        drop(scene.throttle.admit(Urgency::Scheduled, &scene.clock).await.unwrap());
        assert_eq!(scene.clock.now(), scene.at(3));
    }
}

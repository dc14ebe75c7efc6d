//! The traffic to one issuer, over all its tokens: how many requests at once, none while it asks for quiet,
//! and one at a time, ever more seldom, while it is down. Knows no tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokend_protocol::ErrorClass;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::{Clock, Instant};
use crate::config::{CredentialSettings, Endpoint};
use crate::engine::schedule::{Jitter, issuer_back_off};
use crate::store::PreviousExit;
use crate::store::record::ThrottleRecord;
use crate::store::{Store, ThrottleWriter};

/// Requests in flight at one issuer. Enough for a start with many tokens to be quick, few enough that no
/// provider takes it for an attack.
const IN_FLIGHT_MAX: usize = 4;

/// At start, an issuer's requests are spread over this long for each of its tokens beyond those that may be
/// in flight at once.
const SPREAD_PER_TOKEN: Duration = Duration::from_millis(50);

/// The least time between two requests to one issuer, unless it is configured: twenty in a second are no
/// attack on anybody, and a thousand tokens are through in a minute.
const SPACING: Duration = Duration::from_millis(50);

/// Failures in a row, over all its tokens, after which an issuer is taken to be down. A server that fails now
/// and then, or for one client alone, is not.
const DOWN_AFTER: u32 = 3;

/// How long a token waits to ask again while another one finds out whether the issuer is up again.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// One issuer's traffic.
#[derive(Debug)]
pub struct OriginThrottle {
    in_flight: Semaphore,
    /// Held for a look or a change, never across an await.
    condition: Mutex<Condition>,
    keep: ThrottleWriter,
}

#[derive(Debug, Default)]
struct Condition {
    /// Until when it asked for no requests (`Retry-After`).
    quiet_until: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    /// What the last of them was.
    class: Option<ErrorClass>,
    /// When it may be tried again, while it is down.
    try_at: Option<Instant>,
    /// Whether a request is under way that will show whether it is up again.
    probing: bool,
    /// The least time between two requests, where it is configured.
    spacing: Option<Duration>,
    /// When the next request may be sent, as far as the spacing goes.
    next_slot: Option<Instant>,
}

/// Who wants a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// The schedule.
    Scheduled,
    /// A caller that waits, or an operator. Does not have to suffer for other tokens' failures.
    Needed,
}

/// Why no request may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// When to ask again.
    pub until: Instant,
    /// [`ErrorClass::Throttled`], or what is wrong with the issuer.
    pub class: ErrorClass,
}

/// The right to send one request, for as long as it is held.
#[derive(Debug)]
pub struct Admission<'a> {
    issuer: &'a OriginThrottle,
    is_probe: bool,
    _in_flight: Option<SemaphorePermit<'a>>,
}

impl Default for OriginThrottle {
    fn default() -> Self {
        Self::with(Condition::default(), ThrottleWriter::default())
    }
}

impl OriginThrottle {
    /// One that goes on in the condition that it was in before a restart.
    pub fn resume(keep: ThrottleWriter, record: ThrottleRecord) -> Self {
        let ThrottleRecord { quiet_until, failures, class, try_at } = record;
        Self::with(Condition { quiet_until, failures, class, try_at, ..Condition::default() }, keep)
    }

    fn with(condition: Condition, keep: ThrottleWriter) -> Self {
        Self { in_flight: Semaphore::new(IN_FLIGHT_MAX), condition: Mutex::new(condition), keep }
    }

    /// Waits for a place among the requests in flight and for its turn, and tells whether a request may be sent
    /// then.
    pub async fn admit(&self, urgency: Urgency, clock: &Clock) -> Result<Admission<'_>, Held> {
        // Looked at before the wait too, so that nobody queues for a place that is of no use.
        self.lock().check(urgency, clock.now())?;
        // Fails only for a closed semaphore, and nothing closes it.
        let in_flight = self.in_flight.acquire().await.ok();
        self.take_turn(clock).await;
        let mut condition = self.lock();
        condition.check(urgency, clock.now())?;
        let is_probe = condition.try_at.is_some() && !condition.probing;
        condition.probing |= is_probe;
        drop(condition);
        Ok(Admission { issuer: self, is_probe, _in_flight: in_flight })
    }

    /// Waits for a turn. FairQueue are not given in advance: those that passed while the host slept would be taken all
    /// at once. No more than the requests in flight compete for one.
    async fn take_turn(&self, clock: &Clock) {
        loop {
            let taken = self.lock().take_slot(clock.now());
            match taken {
                Ok(()) => return,
                Err(slot) => clock.sleep_until(slot).await,
            }
        }
    }

    /// Sends no more requests in a minute than this; `None` for the usual number.
    pub fn limit(&self, per_minute: Option<u32>) {
        self.lock().spacing = per_minute.map(|number| Duration::from_secs(60) / number.max(1));
    }

    /// Counts requests that went out under an admission besides the one that it was for: the next ones wait the
    /// longer.
    pub fn also_sent(&self, requests: u32, now: Instant) {
        if requests > 0 {
            let mut condition = self.lock();
            let from = condition.next_slot.map_or(now, |slot| slot.max(now));
            condition.next_slot = Some(from.after(condition.spacing.unwrap_or(SPACING) * requests));
        }
    }

    /// Sends nothing before `until`, because the issuer asked for it.
    pub fn keep_quiet(&self, until: Instant) {
        self.change(|condition| condition.quiet_until = condition.quiet_until.max(Some(until)));
    }

    /// Until when it asked for no requests, if that is still to come.
    pub fn quiet_until(&self, now: Instant) -> Option<Instant> {
        self.lock().quiet_until.filter(|until| *until > now)
    }

    /// Notes that it answered.
    pub fn answered(&self) {
        self.change(|condition| {
            condition.failures = 0;
            condition.class = None;
            condition.try_at = None;
        });
    }

    /// Takes it for up again, because something happened after which it may be.
    pub fn forget_failures(&self) {
        self.answered();
    }

    /// Notes that a request failed in a way that speaks of the issuer and not of one token.
    pub fn failed(&self, class: ErrorClass, now: Instant, jitter: Jitter) {
        self.change(|condition| {
            // Requests that were under way together are one failure.
            if condition.try_at.is_some_and(|at| at > now) {
                return;
            }
            condition.failures = condition.failures.saturating_add(1);
            condition.class = Some(class);
            if condition.failures >= DOWN_AFTER {
                let back_off = issuer_back_off(condition.failures - DOWN_AFTER + 1, jitter);
                condition.try_at = Some(now.after(back_off));
            }
        });
    }

    /// Changes the condition, and keeps it where it is another one than before.
    fn change(&self, change: impl FnOnce(&mut Condition)) {
        let mut condition = self.lock();
        let before = condition.record();
        change(&mut condition);
        let after = condition.record();
        drop(condition);
        if after != before {
            self.keep.changed(&after);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    /// What of it a restart must not change.
    fn record(&self) -> ThrottleRecord {
        let Self { quiet_until, failures, class, try_at, .. } = *self;
        ThrottleRecord { quiet_until, failures, class, try_at }
    }

    /// Takes the turn that there is, or tells when the next is.
    fn take_slot(&mut self, now: Instant) -> Result<(), Instant> {
        if let Some(slot) = self.next_slot.filter(|slot| *slot > now) {
            return Err(slot);
        }
        self.next_slot = Some(now.after(self.spacing.unwrap_or(SPACING)));
        Ok(())
    }

    fn check(&self, urgency: Urgency, now: Instant) -> Result<(), Held> {
        if let Some(until) = self.quiet_until.filter(|until| *until > now) {
            return Err(Held { until, class: ErrorClass::Throttled });
        }
        let class = self.class.unwrap_or(ErrorClass::Unreachable);
        let (Urgency::Scheduled, Some(try_at)) = (urgency, self.try_at) else { return Ok(()) };
        if try_at > now {
            return Err(Held { until: try_at, class });
        }
        if self.probing { Err(Held { until: now.after(PROBE_WAIT), class }) } else { Ok(()) }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.issuer.lock().probing = false;
        }
    }
}

/// All issuers that have tokens.
#[derive(Debug, Default)]
pub struct OriginThrottles(HashMap<String, Weak<OriginThrottle>>);

impl OriginThrottles {
    /// The issuer of these settings, in the condition in which it was kept.
    pub fn of(&mut self, settings: &CredentialSettings, store: &Arc<Store>) -> Arc<OriginThrottle> {
        let origin = origin(settings);
        if let Some(known) = self.0.get(&origin).and_then(Weak::upgrade) {
            return known;
        }
        self.0.retain(|_, issuer| issuer.strong_count() > 0);
        let (keep, record) = store.claim_issuer(&origin);
        let record = record.unwrap_or_default();
        // As after a reload, a failure before may have been put right. What it asked for itself still counts.
        let record = match store.previous_exit() {
            PreviousExit::Crashed => record,
            PreviousExit::Orderly => {
                ThrottleRecord { quiet_until: record.quiet_until, ..ThrottleRecord::default() }
            }
        };
        // What is forgotten here must not come back with the next crash.
        keep.changed(&record);
        let issuer = Arc::new(OriginThrottle::resume(keep, record));
        self.0.insert(origin, Arc::downgrade(&issuer));
        issuer
    }
}

/// What tells one issuer from another: scheme, host and port of the endpoint.
pub fn origin(settings: &CredentialSettings) -> String {
    let (Endpoint::Token(url) | Endpoint::Issuer(url)) = &settings.endpoint;
    url.origin().ascii_serialization()
}

/// When the first request of a token goes out, after a start with `tokens` of the same issuer. `roll` is in
/// `0..1`. A few tokens go out at once; ten thousand are spread over eight minutes.
pub fn start_delay(tokens: usize, roll: f64) -> Duration {
    let waiting = u32::try_from(tokens.saturating_sub(IN_FLIGHT_MAX)).unwrap_or(u32::MAX);
    SPREAD_PER_TOKEN.saturating_mul(waiting).mul_f64(roll.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        issuer: OriginThrottle,
        clock: Clock,
        start: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let clock = Clock::simulated();
            Self { issuer: OriginThrottle::default(), start: clock.now(), clock }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start.after(Duration::from_secs(seconds))
        }

        /// Goes on to so many seconds after the start.
        async fn reach(&self, seconds: u64) {
            self.clock.sleep_until(self.at(seconds)).await;
        }

        async fn admit(&self, urgency: Urgency) -> Result<Admission<'_>, Held> {
            self.issuer.admit(urgency, &self.clock).await
        }

        async fn held_until(&self, urgency: Urgency) -> Option<Instant> {
            self.admit(urgency).await.err().map(|held| held.until)
        }

        fn fail(&self, times: u32) {
            for _ in 0..times {
                self.issuer.failed(ErrorClass::Server, self.clock.now(), Jitter::new(0.0));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_holds_back_everybody_ends_by_itself_and_is_never_shortened() {
        let scene = Scene::new();
        scene.issuer.keep_quiet(scene.at(100));
        scene.issuer.keep_quiet(scene.at(50));
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
    async fn requests_keep_the_configured_distance() {
        let scene = Scene::new();
        scene.issuer.limit(Some(6));
        for turn in 0..5 {
            drop(scene.admit(Urgency::Needed).await.unwrap());
            assert_eq!(scene.clock.now(), scene.at(turn * 10));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_waits_for_its_turn_is_not_sent_into_a_quiet_that_began_meanwhile() {
        let scene = Scene::new();
        scene.issuer.limit(Some(6));
        drop(scene.admit(Urgency::Needed).await.unwrap());
        let quiet = async {
            scene.reach(5).await;
            scene.issuer.keep_quiet(scene.at(60));
        };
        let (held, ()) = tokio::join!(scene.held_until(Urgency::Needed), quiet);
        assert_eq!(held, Some(scene.at(60)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_issuer_is_down_after_failures_in_a_row_and_up_with_its_first_answer() {
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
        scene.issuer.answered();
        assert_eq!(scene.held_until(Urgency::Scheduled).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn while_down_one_request_at_a_time_finds_out_ever_more_seldom() {
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
    async fn a_probe_that_is_given_up_leaves_the_way_to_the_next() {
        let scene = Scene::new();
        scene.fail(3);
        scene.reach(1).await;
        drop(scene.admit(Urgency::Scheduled).await);
        assert_eq!(scene.held_until(Urgency::Scheduled).await, None);
    }

    #[test]
    fn a_start_with_few_tokens_is_immediate_and_one_with_many_is_spread() {
        assert_eq!(start_delay(4, 0.9), Duration::ZERO);
        assert_eq!(start_delay(10_004, 0.5), Duration::from_secs(250));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_beyond_the_admitted_one_count_towards_the_rate() {
        let scene = Scene::new();
        scene.issuer.limit(Some(60));
        drop(scene.issuer.admit(Urgency::Scheduled, &scene.clock).await.unwrap());
        scene.issuer.also_sent(2, scene.clock.now());
        drop(scene.issuer.admit(Urgency::Scheduled, &scene.clock).await.unwrap());
        assert_eq!(scene.clock.now(), scene.at(3));
    }
}

//! The one task that asks a provider for a credential's tokens: when it does, and for whom.

mod attempt;

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::ErrorClass;
use tokio::sync::watch;

use super::restore::ActorState;
use super::{ActorContext, Attempted, Command, Inbox, Rejected, Schedule, Snapshot};
use crate::clock::{Clock, Instant, Validity};
use crate::engine::schedule::{self, Jitter, RenewalMode, Serving, held_back, min_gap, renew_at};
use crate::engine::throttle::{OriginThrottle, Urgency};
use crate::fingerprint::Fingerprinter;
use crate::oauth::{Failure, Provider};
use crate::store::RecordWriter;
use crate::store::record::{FailureRecord, Record, TokenRecord};

/// How much of a token's own [`min_gap`] has to pass after an attempt before a caller's complaint that an API
/// refused the token leads to the next one, at the most.
const REJECT_GAP_MOST: Duration = Duration::from_secs(30);

/// An attempt that comes so late was due while the host slept. No host that is only busy is so late.
const OVERSLEPT: Duration = Duration::from_secs(10);

/// What was due while the host slept is spread over so long after it resumed.
const RESUME_SPREAD: Duration = Duration::from_secs(5);

/// Between an attempt that failed and one because something on this host has changed since: at least this long,
/// and twice as long after each such attempt in vain, so that a file that is rewritten for ever is no attack on
/// the provider.
const CHANGE_GAP: Duration = Duration::from_secs(1);

/// How often that time doubles, at the most: to about four minutes.
const CHANGE_GAP_DOUBLINGS: u32 = 8;

/// What may go better than the last time is tried again spread over so long.
const RETRY_SPREAD: Duration = Duration::from_secs(1);

/// The actor of one credential.
pub(super) struct Actor<P> {
    provider: P,
    issuer: Arc<OriginThrottle>,
    schedule: Schedule,
    publish: watch::Sender<Arc<Snapshot>>,
    inbox: Inbox,
    keep: RecordWriter,
    clock: Clock,
    fingerprinter: Arc<Fingerprinter>,
    roll: fn() -> f64,
    /// The jitter of the held token, rolled once.
    jitter: Jitter,
    /// The longest lifetime with which the provider gave the held token.
    longest_life: Duration,
    /// When the last attempt began.
    last_attempt: Option<Instant>,
    /// Renewals in a row between which nobody used the token.
    unused_renewals: u32,
    /// Token requests in a row during which the process ended, with the one that is under way.
    interrupted_requests: u32,
    /// Attempts because something on this host had changed, since the last success.
    changes_in_vain: u32,
    /// When the last of them began.
    last_change: Option<Instant>,
}

impl<P: Provider> Actor<P> {
    pub(super) fn new(
        provider: P,
        issuer: Arc<OriginThrottle>,
        (schedule, memories): (Schedule, ActorState),
        publish: watch::Sender<Arc<Snapshot>>,
        inbox: Inbox,
        keep: RecordWriter,
        actor_context: &ActorContext,
    ) -> Self {
        let ActorState { jitter, longest_life, last_attempt, unused_renewals, interrupted_requests } =
            memories;
        Self {
            provider,
            issuer,
            schedule,
            publish,
            inbox,
            keep,
            clock: actor_context.clock.clone(),
            fingerprinter: Arc::clone(&actor_context.fingerprinter),
            roll: actor_context.roll,
            jitter,
            longest_life,
            last_attempt,
            unused_renewals,
            interrupted_requests,
            changes_in_vain: 0,
            last_change: None,
        }
    }

    pub(super) fn names(&self) -> &str {
        &self.schedule.names
    }

    /// Serves orders and the schedule until it is stopped. An exchange with the provider is finished before a stop
    /// is looked at: what it brings may be the only copy.
    pub(super) async fn run(&mut self) {
        loop {
            let snapshot = self.snapshot();
            let due = snapshot.next_attempt;
            // Nothing is watched while all is well, nor for a token that rests.
            let hopes_for_change = due.is_some() && snapshot.awaits_change();
            let watch_from = self.heeds_changes_from();
            // In this order, so that nothing is left to chance where several come at once.
            tokio::select! {
                biased;
                () = self.inbox.stop.cancelled() => break,
                () = sleep_until(&self.clock, due) => self.come_due(due).await,
                Some(order) = self.inbox.orders.recv() => self.handle(order).await,
                () = changed(&self.provider, &self.clock, watch_from), if hopes_for_change => {
                    self.try_after_change().await;
                }
            }
        }
        // Who waited for the last exchange has been woken, and comes first.
        tokio::task::yield_now().await;
        self.forget();
    }

    fn heeds_changes_from(&self) -> Option<Instant> {
        let gap = CHANGE_GAP * 2_u32.pow(self.changes_in_vain.min(CHANGE_GAP_DOUBLINGS));
        // An attempt that the issuer's condition does not let happen is none, but the change has been heeded.
        self.last_attempt.max(self.last_change).map(|at| at.after(gap))
    }

    /// Somebody has put something right, perhaps.
    async fn try_after_change(&mut self) {
        self.changes_in_vain = self.changes_in_vain.saturating_add(1);
        self.last_change = Some(self.clock.now());
        tracing::info!(token = self.names(), "a secret of {} was replaced; trying again", self.names());
        self.attempt(Urgency::Needed).await;
    }

    /// What was due while the host slept was due for many tokens, and the network may not be up again. So it is
    /// put off a little, for each token by another span, and callers who cannot wait need not.
    async fn come_due(&mut self, due: Option<Instant>) {
        let now = self.clock.now();
        if due.is_none_or(|due| now.since(due) < OVERSLEPT) {
            self.renew().await;
            return;
        }
        let next_attempt = Some(now.after(RESUME_SPREAD.mul_f64((self.roll)())));
        self.update(|snapshot| snapshot.next_attempt = next_attempt);
    }

    /// What the schedule asks for: a new token, or rest for one that nobody uses.
    async fn renew(&mut self) {
        let last_used = self.inbox.usage.last();
        let is_unused = self.last_attempt.is_some_and(|at| last_used < at);
        self.unused_renewals = if is_unused { self.unused_renewals + 1 } else { 0 };
        if self.schedule.renewal_mode.rests(self.clock.now(), last_used, self.unused_renewals) {
            tracing::debug!(token = self.names(), "{} rests until somebody uses it", self.names());
            self.update(|snapshot| snapshot.next_attempt = None);
        } else {
            self.attempt(Urgency::Scheduled).await;
        }
    }

    /// Ends the back-off, for each token after another short while.
    fn retry(&mut self, now: Instant) {
        let snapshot = self.snapshot();
        let soon = now.after(RETRY_SPREAD.mul_f64((self.roll)()));
        if snapshot.last_error.is_some() && snapshot.next_attempt.is_some_and(|at| at > soon) {
            self.issuer.forget_failures();
            self.update(|snapshot| snapshot.next_attempt = Some(soon));
        }
    }

    /// Back to the schedule, after a rest.
    fn wake(&mut self) {
        let snapshot = self.snapshot();
        if let (None, Some(token)) = (snapshot.next_attempt, &snapshot.token) {
            let next_attempt = Some(self.renewal(token.validity));
            self.update(|snapshot| snapshot.next_attempt = next_attempt);
        }
    }

    /// Puts an actor that a panic stopped into a state to go on from.
    pub(super) fn recover(&mut self) {
        self.interrupted_requests = 0;
        let failure = Failure::new(ErrorClass::Internal, "a fault in the daemon");
        self.failed(failure);
    }

    async fn handle(&mut self, order: Command) {
        let now = self.clock.now();
        match order {
            Command::Need { min_ttl, done } => {
                if matches!(self.may_serve(min_ttl, now), Serving::Wait { .. }) {
                    self.attempt(Urgency::Needed).await;
                }
                let _ = done.send(());
            }
            Command::Refresh { done } => {
                let attempted = self.attempt(Urgency::Needed).await;
                let _ = done.send(attempted);
            }
            Command::Reject { refused, done } => {
                let current = self.snapshot().token.as_ref().map(|token| token.fingerprint);
                let answer = if current != Some(refused) {
                    Rejected::Superseded
                } else if self.is_too_soon_to_replace(now) {
                    Rejected::TooSoon
                } else {
                    tracing::warn!(token = self.names(), fingerprint = %refused, "an API refused the token");
                    Rejected::Attempted(self.attempt(Urgency::Needed).await)
                };
                let _ = done.send(answer);
            }
            Command::Wake => self.wake(),
            Command::Retry => self.retry(now),
            Command::Reschedule(schedule) => self.reschedule(schedule),
        }
    }

    fn may_serve(&self, min_ttl: Duration, now: Instant) -> Serving {
        schedule::may_serve(&self.snapshot(), self.issuer.quiet_until(now), now, min_ttl)
    }

    fn is_too_soon_to_replace(&self, now: Instant) -> bool {
        let snapshot = self.snapshot();
        let gap = snapshot.token.as_ref().map_or(REJECT_GAP_MOST, |token| min_gap(token.validity.lifetime));
        let lately = self.last_attempt.is_some_and(|at| now.since(at) < gap.min(REJECT_GAP_MOST));
        lately || held_back(&snapshot, self.issuer.quiet_until(now), now).is_some()
    }

    /// Orders that came in during an attempt are answered by it.
    fn answer_those_who_waited(&mut self, attempted: &Attempted) {
        let current = self.snapshot().token.as_ref().map(|token| token.fingerprint);
        while let Ok(order) = self.inbox.orders.try_recv() {
            match order {
                Command::Need { done, .. } => drop(done.send(())),
                Command::Refresh { done } => drop(done.send(attempted.clone())),
                Command::Reject { refused, done } if current == Some(refused) => {
                    drop(done.send(Rejected::Attempted(attempted.clone())));
                }
                Command::Reject { done, .. } => drop(done.send(Rejected::Superseded)),
                Command::Wake | Command::Retry => (),
                Command::Reschedule(schedule) => self.reschedule(schedule),
            }
        }
    }

    fn reschedule(&mut self, schedule: Schedule) {
        self.schedule = schedule;
        let snapshot = self.snapshot();
        let next_attempt = match (&snapshot.token, &snapshot.last_error) {
            (Some(token), None) => Some(self.renewal(token.validity)),
            (None, None) if self.schedule.renewal_mode == RenewalMode::Always => Some(self.clock.now()),
            (None, None) | (_, Some(_)) => snapshot.next_attempt,
        };
        self.update(|snapshot| snapshot.next_attempt = next_attempt);
    }

    fn renewal(&self, life: Validity) -> Instant {
        renew_at(life, self.schedule.refresh_before, self.longest_life, self.jitter)
    }

    /// What a successor needs to go on as if it had been here all the time.
    fn record(&self, snapshot: &Snapshot) -> Record {
        let token = snapshot.token.as_ref().map(|token| TokenRecord {
            secret: token.secret.clone(),
            validity: token.validity,
            longest_lifetime: self.longest_life,
            jitter: self.jitter.value(),
            token_type: Arc::clone(&token.token_type),
            scope: token.scope.clone(),
        });
        let failure = snapshot.last_error.clone().filter(|_| snapshot.failures > 0).map(|failed| {
            FailureRecord { failures: snapshot.failures, failed, next_attempt: snapshot.next_attempt }
        });
        let last_used = Some(self.inbox.usage.last());
        let (unused_renewals, interrupted_requests) = (self.unused_renewals, self.interrupted_requests);
        Record { token, failure, last_used, unused_renewals, interrupted_requests, variant_of: None }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.publish.borrow().clone()
    }

    /// Lets go of the token. Others may keep their handle of an ended credential, as a connection does that has not
    /// asked for anything since a reload, and what nobody can be given any more is not to stay in memory for that.
    fn forget(&self) {
        self.update(|snapshot| snapshot.token = None);
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.publish.send_modify(|published| change(Arc::make_mut(published)));
    }
}

/// Ends when something that the provider's answer depends on has changed, but not before a time.
async fn changed(provider: &impl Provider, clock: &Clock, not_before: Option<Instant>) {
    if let Some(at) = not_before {
        clock.sleep_until(at).await;
    }
    provider.changed().await;
}

/// Waits for ever where there is no time.
async fn sleep_until(clock: &Clock, at: Option<Instant>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

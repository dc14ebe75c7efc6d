//! The task that requests and renews the token of one credential.

mod attempt;
mod record;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokend_protocol::{ErrorClass, Fingerprint};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub(super) use self::record::{ActorState, resume};
use super::credential::{ActorContext, Attempted, Rejected, Schedule, Snapshot};
use super::schedule::{REJECT_GAP_MOST, RenewalMode, Serving, held_back, may_serve, min_gap, renew_at};
use super::throttle::{ClientThrottle, Urgency};
use crate::clock::{AtomicInstant, Instant};
use crate::oauth::{Failure, Provider};
use crate::store::RecordWriter;

/// An attempt that is later than this was due while the host was suspended. A busy host is not that late.
const OVERSLEPT: Duration = Duration::from_secs(10);

/// Attempts that were due during a suspend are spread over this time after the resume.
const RESUME_SPREAD: Duration = Duration::from_secs(5);

/// The shortest time between an attempt and one that a replaced secret causes. It doubles after each such attempt
/// that fails, so that a secret file that changes all the time does not flood the provider.
const CHANGE_GAP: Duration = Duration::from_secs(1);

/// How many times [`CHANGE_GAP`] doubles, up to about four minutes.
const CHANGE_GAP_DOUBLINGS: u32 = 8;

/// After a reload or a change of the network, attempts are spread over this time.
const RETRY_SPREAD: Duration = Duration::from_secs(1);

/// The actor of one credential. Only it writes the snapshot.
pub(super) struct Actor<P> {
    pub(super) provider: P,
    pub(super) throttle: Arc<ClientThrottle>,
    pub(super) context: ActorContext,
    pub(super) writer: RecordWriter,
    pub(super) state: ActorState,
    pub(super) publish: watch::Sender<Arc<Snapshot>>,
    pub(super) schedule: Schedule,
    /// The schedule as a reload changed it.
    pub(super) schedules: watch::Receiver<Schedule>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) last_used: Arc<AtomicInstant>,
    /// Ends the actor after the request that is under way.
    pub(super) stop: CancellationToken,
    /// Ends the actor and its request, because the credential is not configured any more.
    pub(super) discarded: CancellationToken,
}

/// A message to an actor.
#[derive(Debug)]
pub(super) enum Command {
    /// A caller waits for a token that lasts at least `min_ttl`.
    Need { min_ttl: Duration, done: oneshot::Sender<()> },
    /// An operator wants a new token.
    Refresh { done: oneshot::Sender<Attempted> },
    /// An API refused the token.
    Reject { refused: Fingerprint, done: oneshot::Sender<Rejected> },
    /// A caller used a token that rests.
    Wake,
    /// A reload or a change of the network may have ended the cause of a failure.
    Retry,
}

impl<P: Provider> Actor<P> {
    pub(super) fn names(&self) -> &str {
        &self.schedule.names
    }

    /// Serves commands and the schedule until it is stopped. A request to the provider is finished before a stop
    /// is looked at: its reply may be the only copy of a token.
    pub(super) async fn run(&mut self) {
        loop {
            let snapshot = self.snapshot();
            let due = snapshot.next_attempt;
            // Secret files are watched only while a failure needs an operator and the token is being renewed.
            let watches_secrets =
                due.is_some() && snapshot.last_error.as_ref().is_some_and(|failed| failed.needs_operator);
            let (watch_from, clock) = (self.watch_secrets_from(), &self.context.clock);
            let renewal = OptionFuture::from(due.map(|at| clock.sleep_until(at)));
            let secret_replaced = async {
                clock.sleep_until(watch_from).await;
                self.provider.changed().await;
            };
            // `biased`, so that the order is the same in every test.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Ok(()) = self.schedules.changed() => self.reschedule(),
                Some(()) = renewal => self.come_due(due).await,
                Some(command) = self.commands.recv() => self.handle(command).await,
                () = secret_replaced, if watches_secrets => self.try_after_change().await,
            }
        }
        // Lets callers that waited for the last request read its token first.
        tokio::task::yield_now().await;
        // A connection may hold its handle of an ended credential for long. Its token must not stay in memory.
        self.update(|snapshot| snapshot.token = None);
    }

    /// Records a panic as a failure, so that the actor can run again.
    pub(super) fn recover(&mut self) {
        self.state.interrupted_requests = 0;
        self.failed(Failure::new(ErrorClass::Internal, "a fault in the daemon"));
    }

    /// When a replaced secret may cause the next attempt.
    fn watch_secrets_from(&self) -> Instant {
        let gap = CHANGE_GAP * 2_u32.pow(self.state.changes_in_vain.min(CHANGE_GAP_DOUBLINGS));
        // Counts from the later one: the throttle may have held back the attempt after the last change.
        let last = self.state.last_attempt.max(self.state.last_change);
        last.map_or_else(|| self.context.clock.now(), |at| at.after(gap))
    }

    /// Tries again because a secret was replaced.
    async fn try_after_change(&mut self) {
        self.state.changes_in_vain = self.state.changes_in_vain.saturating_add(1);
        self.state.last_change = Some(self.context.clock.now());
        let names = self.names();
        tracing::info!(token = names, "a secret or the ca_file of {names} was replaced; trying again");
        self.attempt(Urgency::Ordered).await;
    }

    /// Renews the token. If the renewal was due during a suspend, it is delayed by up to [`RESUME_SPREAD`], because
    /// many tokens are due at once and the network may not be up yet. A waiting caller is not delayed.
    async fn come_due(&mut self, due: Option<Instant>) {
        let now = self.context.clock.now();
        if due.is_some_and(|due| now.since(due) >= OVERSLEPT) {
            self.set_next_attempt(self.spread(now, RESUME_SPREAD));
        } else {
            self.renew().await;
        }
    }

    /// Renews the token, or stops renewing it if nobody uses it.
    async fn renew(&mut self) {
        let (snapshot, now, last_used) = (self.snapshot(), self.context.clock.now(), self.last_used.load());
        // A failed renewal and its retries count as one renewal, while a valid token is held.
        let is_retry = snapshot.failures > 0 && snapshot.usable(now, Duration::ZERO).is_some();
        if self.state.last_attempt.is_none_or(|at| last_used >= at) {
            self.state.unused_renewals = 0;
        } else if !is_retry {
            self.state.unused_renewals = self.state.unused_renewals.saturating_add(1);
        }
        if self.schedule.renewal_mode.rests(now, last_used, self.state.unused_renewals) {
            let names = self.names();
            tracing::debug!(token = names, "{names} is unused; its renewal pauses until the next use");
            self.update(|snapshot| snapshot.next_attempt = None);
        } else {
            self.attempt(Urgency::Scheduled).await;
        }
    }

    async fn handle(&mut self, command: Command) {
        let now = self.context.clock.now();
        let snapshot = self.snapshot();
        match command {
            Command::Need { min_ttl, done } => {
                let throttled = || self.throttle.caller_held_back(snapshot.failures > 0, now);
                if matches!(may_serve(&snapshot, throttled, now, min_ttl), Serving::Wait { .. }) {
                    self.attempt(self.needed()).await;
                }
                let _ = done.send(());
            }
            Command::Refresh { done } => {
                if let Some(attempted) = self.attempt(Urgency::Ordered).await {
                    let _ = done.send(attempted);
                }
            }
            Command::Reject { refused, done } => self.replace(refused, done, now).await,
            Command::Wake => {
                if let (None, Some(token)) = (snapshot.next_attempt, &snapshot.token) {
                    self.set_next_attempt(renew_at(token, self.schedule.refresh_before));
                }
            }
            Command::Retry => {
                let soon = self.spread(now, RETRY_SPREAD);
                if snapshot.last_error.is_some() && snapshot.next_attempt.is_some_and(|at| at > soon) {
                    self.throttle.endpoint.reset();
                    self.update(|snapshot| snapshot.callers_from = snapshot.callers_from.min(Some(soon)));
                    self.set_next_attempt(soon);
                }
            }
        }
    }

    /// Replaces a token that an API refused, unless it is new or the last attempt was recent.
    async fn replace(&mut self, refused: Fingerprint, done: oneshot::Sender<Rejected>, now: Instant) {
        let snapshot = self.snapshot();
        let token = snapshot.token.as_ref().filter(|token| token.fingerprint == refused);
        let Some(token) = token else {
            let _ = done.send(Rejected::Superseded);
            return;
        };
        let gap = min_gap(token.validity.lifetime).min(REJECT_GAP_MOST);
        let is_too_soon = self.state.last_attempt.is_some_and(|at| now.since(at) < gap)
            || held_back(&snapshot, self.throttle.caller_held_back(snapshot.failures > 0, now), now)
                .is_some();
        if is_too_soon {
            let _ = done.send(Rejected::TooSoon);
            return;
        }
        tracing::warn!(token = self.names(), fingerprint = %refused, "an API refused the token");
        if let Some(attempted) = self.attempt(self.needed()).await {
            let _ = done.send(Rejected::Attempted(attempted));
        }
    }

    /// Answers a command that came in during an attempt by what the attempt brought.
    fn answer(&self, command: Command, attempted: &Attempted) {
        match command {
            Command::Need { done, .. } => drop(done.send(())),
            Command::Refresh { done } => drop(done.send(attempted.clone())),
            Command::Reject { refused, done } => {
                let current = self.snapshot().token.as_ref().map(|token| token.fingerprint);
                let is_current = current == Some(refused);
                let rejected =
                    if is_current { Rejected::Attempted(attempted.clone()) } else { Rejected::Superseded };
                drop(done.send(rejected));
            }
            Command::Wake | Command::Retry => (),
        }
    }

    fn reschedule(&mut self) {
        self.schedule = self.schedules.borrow_and_update().clone();
        let snapshot = self.snapshot();
        match (&snapshot.token, &snapshot.last_error) {
            // A token on loan is replaced as soon as possible, so its renewal is not moved.
            (Some(token), None) if self.state.last_attempt.is_some() => {
                self.set_next_attempt(renew_at(token, self.schedule.refresh_before));
            }
            (None, None) if self.schedule.renewal_mode == RenewalMode::Always => {
                self.set_next_attempt(self.context.clock.now());
            }
            _ => (),
        }
    }

    fn needed(&self) -> Urgency {
        Urgency::Needed { has_failed: self.snapshot().failures > 0 }
    }

    /// A random instant within `time` from `start`.
    fn spread(&self, start: Instant, time: Duration) -> Instant {
        start.after(time.mul_f64((self.context.roll)()))
    }

    fn set_next_attempt(&self, at: Instant) {
        self.update(|snapshot| snapshot.next_attempt = Some(at));
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.publish.borrow().clone()
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.publish.send_modify(|published| change(Arc::make_mut(published)));
    }
}

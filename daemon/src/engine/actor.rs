//! The one task that asks a provider for a credential's tokens: when it does, and for whom.

mod attempt;
mod record;

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{ErrorClass, Fingerprint};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub(super) use self::record::{ActorState, resume};
use super::credential::{ActorContext, Attempted, Failed, LastUsed, Rejected, Schedule};
use super::schedule::{
    Jitter, REJECT_GAP_MOST, RenewalMode, Serving, held_back, may_serve, min_gap, renew_at,
};
use super::snapshot::Snapshot;
use super::throttle::{EndpointThrottle, Urgency};
use crate::clock::{Clock, Instant, Validity};
use crate::oauth::{Failure, Provider};
use crate::store::RecordWriter;

/// An attempt that comes so late was due while the host slept. No host that is only busy is so late.
const OVERSLEPT: Duration = Duration::from_secs(10);

/// Attempts that were due while the host slept are spread over this long after it resumed.
const RESUME_SPREAD: Duration = Duration::from_secs(5);

/// The least time between a failed attempt and one because something on this host has changed since. It doubles
/// after each such attempt in vain, so that a file that is rewritten for ever is no attack on the provider.
const CHANGE_GAP: Duration = Duration::from_secs(1);

/// How often that time doubles, at the most: to about four minutes.
const CHANGE_GAP_DOUBLINGS: u32 = 8;

/// Attempts that may succeed now are spread over this long.
const RETRY_SPREAD: Duration = Duration::from_secs(1);

/// The actor of one credential. Only it writes the snapshot.
pub(super) struct Actor<P> {
    pub(super) provider: P,
    pub(super) throttle: Arc<EndpointThrottle>,
    pub(super) context: ActorContext,
    pub(super) writer: RecordWriter,
    pub(super) state: ActorState,
    pub(super) publish: watch::Sender<Arc<Snapshot>>,
    pub(super) schedule: Schedule,
    /// The schedule as a reload changed it.
    pub(super) schedules: watch::Receiver<Schedule>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) last_used: Arc<LastUsed>,
    /// Ends the actor after the request that is under way.
    pub(super) stop: CancellationToken,
    /// Ends the actor and the request: nobody wants the token any more.
    pub(super) discarded: CancellationToken,
}

/// What others want of an actor.
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
    /// Something happened after which an attempt may succeed.
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
            // Nothing is watched while all is well, nor for a token that rests.
            let hopes_for_change =
                due.is_some() && snapshot.last_error.as_ref().is_some_and(Failed::needs_operator);
            let watch_from = self.heeds_changes_from();
            // In this order, so that nothing is left to chance where several come at once.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Ok(()) = self.schedules.changed() => self.reschedule(),
                () = sleep_until(&self.context.clock, due) => self.come_due(due).await,
                Some(command) = self.commands.recv() => self.handle(command).await,
                () = changed(&self.provider, &self.context.clock, watch_from), if hopes_for_change => {
                    self.try_after_change().await;
                }
            }
        }
        // Callers that waited for the last request have been woken, and come first.
        tokio::task::yield_now().await;
        // A connection may keep its handle of an ended credential. The token is not to stay in memory for that.
        self.update(|snapshot| snapshot.token = None);
    }

    /// Puts an actor that a panic stopped into a state to go on from.
    pub(super) fn recover(&mut self) {
        self.state.interrupted_requests = 0;
        self.failed(Failure::new(ErrorClass::Internal, "a fault in the daemon"));
    }

    fn heeds_changes_from(&self) -> Option<Instant> {
        let gap = CHANGE_GAP * 2_u32.pow(self.state.changes_in_vain.min(CHANGE_GAP_DOUBLINGS));
        // An attempt that the throttle does not let happen is none, but the change has been heeded.
        self.state.last_attempt.max(self.state.last_change).map(|at| at.after(gap))
    }

    /// Tries again because somebody has put something right, perhaps.
    async fn try_after_change(&mut self) {
        self.state.changes_in_vain = self.state.changes_in_vain.saturating_add(1);
        self.state.last_change = Some(self.context.clock.now());
        tracing::info!(token = self.names(), "a secret of {} was replaced; trying again", self.names());
        self.attempt(Urgency::Needed).await;
    }

    /// Renews the token, or puts the renewal off a little if it was due while the host slept: it was due for many
    /// tokens then, and the network may not be up again. Callers need not wait for that.
    async fn come_due(&mut self, due: Option<Instant>) {
        let now = self.context.clock.now();
        if due.is_none_or(|due| now.since(due) < OVERSLEPT) {
            self.renew().await;
            return;
        }
        let next_attempt = Some(now.after(RESUME_SPREAD.mul_f64((self.context.roll)())));
        self.update(|snapshot| snapshot.next_attempt = next_attempt);
    }

    /// Does what the schedule asks for: a new token, or rest for one that nobody uses.
    async fn renew(&mut self) {
        let (snapshot, now, last_used) = (self.snapshot(), self.context.clock.now(), self.last_used.get());
        // A renewal that failed and its retries are one, as long as there is a token to keep.
        let is_retry = snapshot.failures > 0 && snapshot.usable(now, Duration::ZERO).is_some();
        if self.state.last_attempt.is_none_or(|at| last_used >= at) {
            self.state.unused_renewals = 0;
        } else if !is_retry {
            self.state.unused_renewals = self.state.unused_renewals.saturating_add(1);
        }
        if self.schedule.renewal_mode.rests(now, last_used, self.state.unused_renewals) {
            tracing::debug!(token = self.names(), "{} rests until somebody uses it", self.names());
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
                let quiet_until = self.throttle.origin().quiet_until(now);
                if matches!(may_serve(&snapshot, quiet_until, now, min_ttl), Serving::Wait { .. }) {
                    self.attempt(Urgency::Needed).await;
                }
                let _ = done.send(());
            }
            Command::Refresh { done } => {
                if let Some(attempted) = self.attempt(Urgency::Needed).await {
                    let _ = done.send(attempted);
                }
            }
            Command::Reject { refused, done } => self.replace(refused, done, now).await,
            Command::Wake => {
                if let (None, Some(token)) = (snapshot.next_attempt, &snapshot.token) {
                    let next_attempt = Some(self.renewal(token.validity));
                    self.update(|snapshot| snapshot.next_attempt = next_attempt);
                }
            }
            Command::Retry => {
                let soon = now.after(RETRY_SPREAD.mul_f64((self.context.roll)()));
                if snapshot.last_error.is_some() && snapshot.next_attempt.is_some_and(|at| at > soon) {
                    self.throttle.answered();
                    self.update(|snapshot| snapshot.next_attempt = Some(soon));
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
            || held_back(&snapshot, self.throttle.origin().quiet_until(now), now).is_some();
        if is_too_soon {
            let _ = done.send(Rejected::TooSoon);
            return;
        }
        tracing::warn!(token = self.names(), fingerprint = %refused, "an API refused the token");
        if let Some(attempted) = self.attempt(Urgency::Needed).await {
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
        let next_attempt = match (&snapshot.token, &snapshot.last_error) {
            // A token on loan is to be replaced as soon as possible.
            (Some(token), None) if self.state.last_attempt.is_some() => Some(self.renewal(token.validity)),
            (None, None) if self.schedule.renewal_mode == RenewalMode::Always => {
                Some(self.context.clock.now())
            }
            _ => snapshot.next_attempt,
        };
        self.update(|snapshot| snapshot.next_attempt = next_attempt);
    }

    fn renewal(&self, validity: Validity) -> Instant {
        let ActorState { longest_lifetime, jitter, .. } = self.state;
        renew_at(validity, self.schedule.refresh_before, longest_lifetime, jitter)
    }

    fn roll_jitter(&self) -> Jitter {
        Jitter::new((self.context.roll)())
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.publish.borrow().clone()
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.publish.send_modify(|published| change(Arc::make_mut(published)));
    }
}

/// Ends when something that the provider's answer depends on has changed, but not before `not_before`.
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

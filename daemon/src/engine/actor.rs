//! The task that requests and renews the token of one credential.

mod attempt;
mod record;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokend_protocol::{ErrorClass, Fingerprint};
use tokio::sync::oneshot;

pub(super) use self::record::{ActorState, resume};
use super::credential::{Attempted, Core, Rejected, Resting, Schedule, Snapshot};
use super::schedule::{REJECT_GAP_MOST, RenewalMode, Serving, held_back, may_serve, min_gap, renew_at};
use super::throttle::Urgency;
use crate::clock::{Instant, LATE};
use crate::oauth::{Failure, Provider};

/// An attempt that is later than this was due while the host was suspended. A busy host is not that late, and neither is an alarm.
const OVERSLEPT: Duration = LATE.saturating_add(Duration::from_secs(10));

/// Attempts that were due during a suspend are spread over this time after the resume.
const RESUME_SPREAD: Duration = Duration::from_secs(5);

/// The shortest time between an attempt and one that a replaced secret causes. It doubles after each such attempt
/// that fails, so that a secret file that changes all the time does not flood the provider.
const CHANGE_GAP: Duration = Duration::from_secs(1);

/// How many times [`CHANGE_GAP`] doubles, up to about four minutes.
const CHANGE_GAP_DOUBLINGS: u32 = 8;

/// How long a panicked actor pauses before it acts again.
const REST_AFTER_PANIC: Duration = Duration::from_secs(1);

/// After a reload or a change of the network, attempts are spread over this time.
const RETRY_SPREAD: Duration = Duration::from_secs(1);

/// The actor of one credential, while it acts. Only it writes the snapshot.
pub(super) struct Actor<P> {
    kept: Box<Kept<P>>,
    schedule: Schedule,
    core: Arc<Core>,
}

/// The parts of an actor that it keeps while it rests.
struct Kept<P> {
    provider: P,
    state: ActorState,
}

/// The next step of an actor.
enum Step {
    End,
    Renew,
    /// Handles the first command, which takes time.
    Handle,
    Wait,
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

impl Command {
    /// Whether no caller waits for its answer.
    pub(super) fn is_hint(&self) -> bool {
        matches!(self, Self::Wake | Self::Retry)
    }

    /// Whether its caller has given up.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::Need { done, .. } => done.is_closed(),
            Self::Refresh { done } => done.is_closed(),
            Self::Reject { done, .. } => done.is_closed(),
            Self::Wake | Self::Retry => false,
        }
    }
}

impl<P: Provider> Resting for Kept<P> {
    fn wake(self: Box<Self>, core: Arc<Core>) {
        let mut actor = Actor { kept: self, schedule: core.schedule(), core };
        match catch_unwind(AssertUnwindSafe(|| actor.next())) {
            Ok(Step::Wait) if actor.watched_secrets().is_none() => actor.rest(),
            next => {
                // After a panic the task looks again what to do, and recovers if it panics again.
                let (next, tasks) = (next.ok(), actor.core.context.tasks.clone());
                // Boxed, so that the task itself is small: it is aligned to 128 bytes, and the allocator seldom uses such memory again.
                drop(tasks.spawn(Box::pin(async move {
                    match actor.live(next).await {
                        Step::End => actor.core.end(),
                        _ => actor.rest(),
                    }
                })));
            }
        }
    }
}

impl<P: Provider> Actor<P> {
    /// Starts an actor, which rests until its first request is due.
    pub(super) fn start(provider: P, state: ActorState, core: &Arc<Core>) {
        core.rest(Box::new(Kept { provider, state }));
    }

    fn rest(self) {
        self.core.rest(self.kept);
    }

    fn names(&self) -> &str {
        &self.schedule.names
    }

    /// Acts until there is nothing left to do or the actor is stopped. After a panic it goes on with the token that it holds.
    async fn live(&mut self, mut next: Option<Step>) -> Step {
        loop {
            match AssertUnwindSafe(self.run(next.take())).catch_unwind().await {
                Ok(Step::End) => break,
                Ok(step) => return step,
                Err(_) => (),
            }
            let (names, clock) = (self.names(), &self.core.context.clock);
            tracing::error!(token = names, "a panic stopped the renewal of {names}; it is started again");
            clock.sleep_until(clock.now().after(REST_AFTER_PANIC)).await;
            self.recover();
        }
        // Lets callers that waited for the last request read its token first.
        tokio::task::yield_now().await;
        Step::End
    }

    /// Serves commands and the schedule while there is something to do. A request to the provider is finished before a
    /// stop is looked at: its reply may be the only copy of a token.
    ///
    /// Most actors wait for the throttle at a start with many tokens. What is larger than that is boxed.
    async fn run(&mut self, first: Option<Step>) -> Step {
        let mut next = first.unwrap_or_else(|| self.next());
        loop {
            match next {
                Step::End => return next,
                Step::Renew => drop(self.attempt(Urgency::Scheduled).await),
                Step::Handle => Box::pin(self.handle()).await,
                Step::Wait => match self.watched_secrets() {
                    None => return next,
                    Some((watch_from, due)) => Box::pin(self.watch_secrets(watch_from, due)).await,
                },
            }
            next = self.next();
        }
    }

    /// Does the work that takes no time, and returns the next step.
    fn next(&mut self) -> Step {
        loop {
            if self.core.is_stopped() {
                return Step::End;
            }
            if let Some(schedule) = self.core.take_schedule() {
                self.reschedule(schedule);
            }
            let now = self.core.context.clock.now();
            if let Some(due) = self.snapshot().next_attempt.filter(|due| *due <= now) {
                if self.renews(due, now) {
                    return Step::Renew;
                }
                continue;
            }
            match self.core.take_hint() {
                Some(Command::Wake) => self.resume_renewal(),
                Some(_) => self.retry_soon(now),
                None if self.core.has_command() => return Step::Handle,
                None => return Step::Wait,
            }
        }
    }

    /// Records a panic as a failure, so that the actor can go on.
    fn recover(&mut self) {
        self.kept.state.interrupted_requests = 0;
        self.failed(Failure::new(ErrorClass::Internal, "a fault in the daemon"));
    }

    /// When secret files are watched from, and until when: only while a failure needs an operator and the token is being
    /// renewed.
    fn watched_secrets(&self) -> Option<(Instant, Instant)> {
        let snapshot = self.snapshot();
        let needs_operator = snapshot.last_error.as_ref().is_some_and(|failed| failed.needs_operator);
        snapshot.next_attempt.filter(|_| needs_operator).map(|due| (self.watch_secrets_from(), due))
    }

    /// Waits for a replaced secret, which causes an attempt, or for anything else to do.
    async fn watch_secrets(&mut self, from: Instant, due: Instant) {
        let clock = &self.core.context.clock;
        let secret_replaced = async {
            clock.sleep_until(from).await;
            self.kept.provider.changed().await;
        };
        // `biased`, so that the order is the same in every test.
        tokio::select! {
            biased;
            () = self.core.news() => (),
            () = clock.sleep_until(due) => (),
            () = secret_replaced => self.try_after_change().await,
        }
    }

    /// When a replaced secret may cause the next attempt.
    fn watch_secrets_from(&self) -> Instant {
        let gap = CHANGE_GAP * 2_u32.pow(self.kept.state.changes_in_vain.min(CHANGE_GAP_DOUBLINGS));
        // Counts from the later one: the throttle may have held back the attempt after the last change.
        let last = self.kept.state.last_attempt.max(self.kept.state.last_change);
        last.map_or_else(|| self.core.context.clock.now(), |at| at.after(gap))
    }

    /// Tries again because a secret was replaced.
    async fn try_after_change(&mut self) {
        self.kept.state.changes_in_vain = self.kept.state.changes_in_vain.saturating_add(1);
        self.kept.state.last_change = Some(self.core.context.clock.now());
        let names = self.names();
        tracing::info!(
            token = names,
            "a secret, a certificate or the ca_file of {names} was replaced; trying again"
        );
        self.attempt(Urgency::Ordered).await;
    }

    /// Whether a due token is renewed now. If it was due during a suspend, it is delayed by up to [`RESUME_SPREAD`], because
    /// many tokens are due at once and the network may not be up yet. If nobody uses it, it is not renewed any more.
    fn renews(&mut self, due: Instant, now: Instant) -> bool {
        if now.since(due) >= OVERSLEPT {
            self.set_next_attempt(self.spread(now, RESUME_SPREAD));
            return false;
        }
        let (snapshot, last_used) = (self.snapshot(), self.core.last_used.load());
        // A failed renewal and its retries count as one renewal, while a valid token is held.
        let is_retry = snapshot.failures > 0 && snapshot.usable(now, Duration::ZERO).is_some();
        if self.kept.state.last_attempt.is_none_or(|at| last_used >= at) {
            self.kept.state.unused_renewals = 0;
        } else if !is_retry {
            self.kept.state.unused_renewals = self.kept.state.unused_renewals.saturating_add(1);
        }
        let rests = self.schedule.renewal_mode.rests(now, last_used, self.kept.state.unused_renewals);
        if rests {
            let names = self.names();
            tracing::debug!(token = names, "{names} is unused; its renewal pauses until the next use");
            self.update(|snapshot| snapshot.next_attempt = None);
        }
        !rests
    }

    /// Renews the token again, because a caller used it while it was not renewed.
    fn resume_renewal(&self) {
        let snapshot = self.snapshot();
        if let (None, Some(token)) = (snapshot.next_attempt, &snapshot.token) {
            self.set_next_attempt(renew_at(token, self.schedule.refresh_before));
        }
    }

    fn retry_soon(&self, now: Instant) {
        let (snapshot, soon) = (self.snapshot(), self.spread(now, RETRY_SPREAD));
        if snapshot.last_error.is_some() && snapshot.next_attempt.is_some_and(|at| at > soon) {
            self.core.throttle.endpoint.reset();
            self.update(|snapshot| snapshot.callers_from = snapshot.callers_from.min(Some(soon)));
            self.set_next_attempt(soon);
        }
    }

    async fn handle(&mut self) {
        let Some(command) = self.core.take_command() else { return };
        let now = self.core.context.clock.now();
        let snapshot = self.snapshot();
        match command {
            Command::Need { min_ttl, done } => {
                let throttled = || self.core.throttle.caller_held_back(snapshot.failures > 0, now);
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
            Command::Wake => self.resume_renewal(),
            Command::Retry => self.retry_soon(now),
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
        let is_too_soon = self.kept.state.last_attempt.is_some_and(|at| now.since(at) < gap)
            || held_back(&snapshot, self.core.throttle.caller_held_back(snapshot.failures > 0, now), now)
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

    fn reschedule(&mut self, schedule: Schedule) {
        self.schedule = schedule;
        let snapshot = self.snapshot();
        match (&snapshot.token, &snapshot.last_error) {
            // A token on loan is replaced as soon as possible, so its renewal is not moved.
            (Some(token), None) if self.kept.state.last_attempt.is_some() => {
                self.set_next_attempt(renew_at(token, self.schedule.refresh_before));
            }
            (None, None) if self.schedule.renewal_mode == RenewalMode::Always => {
                self.set_next_attempt(self.core.context.clock.now());
            }
            _ => (),
        }
    }

    fn needed(&self) -> Urgency {
        Urgency::Needed { has_failed: self.snapshot().failures > 0 }
    }

    /// A random instant within `time` from `start`.
    fn spread(&self, start: Instant, time: Duration) -> Instant {
        start.after(time.mul_f64((self.core.context.roll)()))
    }

    fn set_next_attempt(&self, at: Instant) {
        self.update(|snapshot| snapshot.next_attempt = Some(at));
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.core.published.snapshot()
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.core.published.update(change);
    }
}

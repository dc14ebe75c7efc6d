//! The handle of one credential, its published state, and the start of its actor.
//!
//! There is one actor for each distinct set of settings, so that two requests for the same token are never in flight.
//! Only the actor publishes snapshots. Readers of a valid token wait for nothing.

mod core;
mod encoded_reply;
mod published;

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{ErrorClass, Fingerprint, State};
use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;

pub(super) use self::core::{Core, Resting};
use self::encoded_reply::EncodedReply;
use self::published::{Published, Superseded};
use super::actor::{Actor, Command, resume};
use super::schedule::{self, RenewalMode, Serving};
use super::throttle::{ClientThrottle, Facts};
use crate::clock::{AtomicInstant, Clock, Instant};
use crate::fingerprint::Fingerprinter;
use crate::oauth::{Provider, SecretInUse};
use crate::store::record::Record;
pub use crate::store::record::{Failed, Token};
use crate::store::{PreviousExit, RecordWriter};

/// The clock and other services that every actor uses.
#[derive(Clone, Debug)]
pub struct ActorContext {
    pub clock: Clock,
    pub fingerprinter: Arc<Fingerprinter>,
    /// Returns a random number in `0..1`.
    pub roll: fn() -> f64,
    /// Where the actors' tasks run.
    pub tasks: TaskTracker,
}

/// The settings of a credential that a reload can change without replacing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The names of its tokens, for logs.
    pub names: Arc<str>,
    /// How long before expiry it is renewed; `None` leaves that to [`schedule::renew_at`].
    pub refresh_before: Option<Duration>,
    /// Whether it is renewed while nobody uses it.
    pub renewal_mode: RenewalMode,
}

/// The initial state of a credential.
#[derive(Debug, Default)]
pub struct StartState {
    pub writer: RecordWriter,
    /// Its state before a restart of the daemon.
    pub record: Option<Record>,
    pub previous_exit: PreviousExit,
    /// The valid token of the credential that a reload replaces by this one, if both ask for the same token. It is
    /// served until this credential has one of its own.
    pub loan: Option<Arc<Token>>,
    /// The delay of its first request, unless a caller needs the token.
    pub delay: Duration,
}

/// The state of a credential at one moment. Token and health are separate: a valid token is served whatever the health
/// says.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The newest token, valid or expired.
    pub token: Option<Arc<Token>>,
    /// Whether a request is under way, or waits for its turn.
    pub in_flight: bool,
    /// The last failure since the last success, or the throttle's reason for not asking.
    pub last_error: Option<Arc<Failed>>,
    /// Failures since the last success.
    pub failures: u32,
    /// When the provider is asked next; `None` while the token is not renewed because nobody uses it.
    pub next_attempt: Option<Instant>,
    /// When a caller without a token may cause the next request, after a failure.
    pub callers_from: Option<Instant>,
    /// Token requests sent so far.
    pub requests: u32,
    /// Tolerated deviations from the RFCs so far, sorted.
    pub deviations: Box<[(&'static str, u64)]>,
    /// Failed requests so far by class, sorted.
    pub failed: Box<[(ErrorClass, u64)]>,
    /// The client secret that brought the newest token, where several are configured.
    pub client_secret: Option<SecretInUse>,
    /// The details of the last token request.
    pub facts: Facts,
    /// By how many seconds the provider's clock was ahead of this host's at its last reply.
    pub clock_skew: Option<i64>,
    pub reply: EncodedReply,
    pub(super) superseded: Superseded,
}

/// The handle of a credential's actor. The actor ends when the last handle is dropped.
#[derive(Debug)]
pub struct Credential {
    core: Arc<Core>,
}

/// The result of an attempt to get a new token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempted {
    /// Another token than before.
    Changed,
    /// The token that is held, again.
    Unchanged,
    /// A failure, and when the next attempt is.
    Failed(Failed, Option<Instant>),
}

/// The result of rejecting a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// The token had been replaced already.
    Superseded,
    /// The token is too new, or the last attempt too recent, to ask again.
    TooSoon,
    /// The provider was asked.
    Attempted(Attempted),
}

/// Why there is no token for a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unobtainable {
    /// The last attempt failed, and the next is at this time.
    Failed(Failed, Option<Instant>),
    /// A valid token is held, but for less than `min_ttl`, and a new one cannot be had now or would not last longer.
    /// With its remaining lifetime.
    MinTtlUnreachable(Duration),
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// A reload ended the credential meanwhile. Another may have taken its place.
    Ended,
}

impl Snapshot {
    /// The token, if it is valid for at least `min_ttl`.
    pub fn usable(&self, now: Instant, min_ttl: Duration) -> Option<Arc<Token>> {
        self.token.as_ref().filter(|token| token.validity.is_usable(now, min_ttl)).cloned()
    }

    /// Whether it is not the newest any more.
    pub fn is_superseded(&self) -> bool {
        self.superseded.get()
    }

    pub(super) fn count_failure(&mut self, class: ErrorClass) {
        let mut counted = std::mem::take(&mut self.failed).into_vec();
        match counted.iter_mut().find(|(known, _)| *known == class) {
            Some((_, count)) => *count += 1,
            None => counted.push((class, 1)),
        }
        self.failed = counted.into();
    }

    pub(super) fn count_deviations(&mut self, deviations: Vec<&'static str>) {
        let mut counted = std::mem::take(&mut self.deviations).into_vec();
        for deviation in deviations {
            match counted.binary_search_by_key(&deviation, |(known, _)| known) {
                Ok(index) => counted.iter_mut().skip(index).take(1).for_each(|(_, count)| *count += 1),
                Err(index) => counted.insert(index, (deviation, 1)),
            }
        }
        self.deviations = counted.into();
    }

    /// Whether the token is not renewed because nobody uses it.
    pub fn is_resting(&self) -> bool {
        self.next_attempt.is_none() && !self.in_flight
    }

    /// The state for `status`, `list` and the log.
    pub fn state(&self, now: Instant) -> State {
        match (self.usable(now, Duration::ZERO), &self.last_error) {
            (Some(_), Some(_)) => State::Degraded,
            (Some(_), None) if self.in_flight || self.next_attempt.is_some_and(|at| at <= now) => {
                State::Refreshing
            }
            (Some(_), None) => State::Fresh,
            (None, None) => State::Pending,
            (None, Some(failed)) if failed.needs_operator => State::NeedsOperator,
            (None, Some(_)) => State::Unavailable,
        }
    }
}

impl Credential {
    /// Starts an actor in the state of `start`.
    pub fn start(
        provider: impl Provider,
        throttle: Arc<ClientThrottle>,
        schedule: Schedule,
        start: StartState,
        context: &Arc<ActorContext>,
    ) -> Self {
        let now = context.clock.now();
        let (first, state) = resume(&start, &schedule, &context.fingerprinter, now);
        let last_used = start.record.and_then(|record| record.last_used);
        let last_used = AtomicInstant::new(last_used.unwrap_or(Instant::at(Duration::ZERO)));
        let published = Published::new(first);
        let core = Core::new(Arc::clone(context), throttle, start.writer, published, last_used, schedule);
        Actor::start(provider, state, &core);
        Self { core }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.core.published.snapshot()
    }

    /// When the next attempt is, unless a caller causes one before: the later one of the token's own time and the throttle's.
    pub fn next_attempt(&self) -> Option<Instant> {
        let next_attempt = self.snapshot().next_attempt?;
        Some(self.core.throttle.scheduled_from(next_attempt, self.now()))
    }

    /// Receives every change of the state.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.core.published.subscribe()
    }

    /// Decides as [`schedule::may_serve`] whether a caller gets the held token.
    pub fn may_serve(&self, min_ttl: Duration) -> Serving {
        let (now, snapshot) = (self.now(), self.snapshot());
        let throttled = || self.core.throttle.caller_held_back(snapshot.failures > 0, now);
        match schedule::may_serve(&snapshot, throttled, now, min_ttl) {
            Serving::Refuse(_) if self.core.is_stopped() => Serving::Refuse(Unobtainable::Ended),
            serving => serving,
        }
    }

    /// The snapshot with the token that a caller gets at once, if it gets one. Counts as a use.
    pub fn serve_held(&self, min_ttl: Duration, now: Instant) -> Option<Arc<Snapshot>> {
        let snapshot = self.snapshot();
        schedule::served(&snapshot, now, min_ttl)?;
        self.core.last_used.store(now);
        if snapshot.is_resting() {
            self.core.send(Command::Wake);
        }
        Some(snapshot)
    }

    /// A token that lasts at least `min_ttl`: the held one at once if it does, otherwise a new one.
    pub async fn obtain(&self, min_ttl: Duration, deadline: Instant) -> Result<Arc<Token>, Unobtainable> {
        let now = self.now();
        if let Some(token) = self.serve_held(min_ttl, now).and_then(|snapshot| snapshot.token.clone()) {
            return Ok(token);
        }
        self.note_use();
        match self.may_serve(min_ttl) {
            Serving::Token(token) => return Ok(token),
            Serving::Refuse(reason) => return Err(reason),
            Serving::Wait { .. } if deadline <= now => return Err(Unobtainable::DeadlineExceeded),
            Serving::Wait { .. } => (),
        }
        let mut seen = self.subscribe();
        let _waiting = self.core.count_waiting();
        // A token may arrive before this command has its turn.
        let answered = tokio::select! {
            biased;
            answered = self.command(deadline, |done| Command::Need { min_ttl, done }) => answered,
            Ok(()) = async {
                seen.wait_for(|snapshot| snapshot.usable(self.now(), min_ttl).is_some()).await.map(drop)
            } => Ok(()),
        };
        // Notes the use again, because `unused_renewals` compares it with the time of the request.
        self.note_use();
        match (self.may_serve(min_ttl), answered) {
            (Serving::Token(token), _) => Ok(token),
            (_, Err(reason)) | (Serving::Refuse(reason), Ok(())) => Err(reason),
            (Serving::Wait { .. }, Ok(())) => Err(self.unobtainable()),
        }
    }

    /// How many callers wait for a token.
    pub fn waiting(&self) -> u64 {
        self.core.waiting()
    }

    /// Asks the provider now, whatever the schedule says.
    pub async fn refresh(&self, deadline: Instant) -> Result<Attempted, Unobtainable> {
        self.command(deadline, |done| Command::Refresh { done }).await
    }

    /// Reports that an API refused a token: at most one request follows, however many report it.
    pub async fn reject(&self, refused: Fingerprint, deadline: Instant) -> Result<Rejected, Unobtainable> {
        self.command(deadline, |done| Command::Reject { refused, done }).await
    }

    pub fn reschedule(&self, schedule: Schedule) {
        self.core.reschedule(schedule);
    }

    /// Tries again soon if the last attempt failed, because its cause may have ended.
    pub fn retry(&self) {
        self.core.send(Command::Retry);
    }

    /// Whether the token is not renewed because nobody uses it, and has expired.
    pub fn is_dormant(&self) -> bool {
        let snapshot = self.snapshot();
        // A new variant has neither token nor error; its first caller is about to use it.
        let was_used = snapshot.token.is_some() || snapshot.last_error.is_some();
        snapshot.is_resting() && was_used && snapshot.usable(self.now(), Duration::ZERO).is_none()
    }

    /// When the token was last asked for.
    pub fn last_used(&self) -> Instant {
        self.core.last_used.load()
    }

    /// Notes that somebody is about to use the token.
    pub fn note_use(&self) {
        self.core.last_used.store(self.now());
    }

    /// Ends the actor, after the request that is under way.
    pub fn stop(&self) {
        self.core.stop();
    }

    /// Ends the actor and its request at once and wipes its record, because it is not configured any more.
    pub fn discard(&self) {
        self.core.discard();
    }

    /// Publishes a token, as if the provider had returned it, and lets it be.
    #[cfg(test)]
    pub(crate) fn hold(&self, token: Token) {
        let next_attempt = Some(self.now().after(Duration::from_secs(3_600)));
        self.core.published.update(|snapshot| {
            (snapshot.token, snapshot.next_attempt) = (Some(Arc::new(token)), next_attempt);
        });
    }

    #[cfg(test)]
    pub(super) fn schedule(&self) -> Schedule {
        self.core.schedule()
    }

    fn now(&self) -> Instant {
        self.core.context.clock.now()
    }

    async fn command<T>(
        &self,
        deadline: Instant,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Unobtainable> {
        let (done, answer) = oneshot::channel();
        if !self.core.send(command(done)) {
            return Err(Unobtainable::Ended);
        }
        // An answer that comes with the deadline counts.
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| Unobtainable::Ended),
            () = self.core.context.clock.sleep_until(deadline) => Err(Unobtainable::DeadlineExceeded),
        }
    }

    /// Returns why there is no token after the provider has answered.
    fn unobtainable(&self) -> Unobtainable {
        if self.core.is_stopped() {
            return Unobtainable::Ended;
        }
        let (snapshot, now) = (self.snapshot(), self.now());
        if let Some(token) = snapshot.usable(now, Duration::ZERO) {
            return Unobtainable::MinTtlUnreachable(token.validity.remaining(now));
        }
        let expired = "the token expired before it was handed out";
        let failed = snapshot.last_error.as_deref().cloned();
        let failed = failed.unwrap_or_else(|| Failed::new(ErrorClass::Internal, expired, now));
        Unobtainable::Failed(failed, snapshot.next_attempt)
    }
}

impl Drop for Credential {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;

//! One credential: the actor that alone asks its provider, and the handle by which others see what it holds.
//!
//! There is one actor for each distinct set of settings, so that a second request in flight for the same
//! token is impossible by construction. Only the actor writes; readers see snapshots and never wait for it
//! while a valid token is held.

mod actor;
mod restore;
mod snapshot;
mod usage;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokend_protocol::{ErrorClass, Fingerprint};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::actor::Actor;
pub use self::restore::Kept;
pub use self::snapshot::{Snapshot, Token};
use self::usage::Usage;
use crate::clock::{Clock, Instant};
use crate::engine::schedule::{self, Jitter, RenewalMode, Serving};
use crate::engine::throttle::OriginThrottle;
use crate::fingerprint::Fingerprinter;
use crate::oauth::Provider;
use crate::store::RecordWriter;
pub use crate::store::record::Failed;

/// Orders that may wait for the actor. Those who have to wait for a place wait in their own task.
const ORDERS_MAX: usize = 64;

/// How long an actor rests that was stopped by a fault of its own.
const REST_AFTER_PANIC: Duration = Duration::from_secs(1);

/// What an actor needs besides its provider.
#[derive(Clone, Debug)]
pub struct ActorContext {
    /// Time.
    pub clock: Clock,
    /// Names tokens in logs and replies.
    pub fingerprinter: Arc<Fingerprinter>,
    /// Rolls a number in `0..1`.
    pub roll: fn() -> f64,
    /// Where its task runs.
    pub tasks: TaskTracker,
}

/// What may change about a credential without making it another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The names of its tokens, for logs.
    pub names: Arc<str>,
    /// How long before its expiry it is renewed, where policy shall not choose.
    pub refresh_before: Option<Duration>,
    /// Whether it is renewed while nobody uses it.
    pub renewal_mode: RenewalMode,
}

/// The way to a credential's actor. The actor ends when the last handle is dropped.
#[derive(Debug)]
pub struct Credential {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    orders: mpsc::Sender<Command>,
    usage: Arc<Usage>,
    clock: Clock,
    issuer: Arc<OriginThrottle>,
    keep: RecordWriter,
    stop: CancellationToken,
    discarded: CancellationToken,
}

/// What reaches an actor from outside.
struct Inbox {
    orders: mpsc::Receiver<Command>,
    usage: Arc<Usage>,
    stop: CancellationToken,
    /// Nobody wants any more what an exchange may bring.
    discarded: CancellationToken,
}

/// What others want of the actor.
#[derive(Debug)]
enum Command {
    /// A caller waits for a token that lasts so long.
    Need { min_ttl: Duration, done: oneshot::Sender<()> },
    /// An operator wants a new token.
    Refresh { done: oneshot::Sender<Attempted> },
    /// An API refused the token.
    Reject { refused: Fingerprint, done: oneshot::Sender<Rejected> },
    /// A caller used a token that rests.
    Wake,
    /// Something happened after which it may go better than the last time.
    Retry,
    /// The configuration changed.
    Reschedule(Schedule),
}

/// What an attempt to get a new token brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempted {
    /// Another token than before.
    Changed,
    /// The same token again, or no answer that changes anything.
    Unchanged,
    /// A failure, and when the next attempt is.
    Failed(Failed, Option<Instant>),
}

/// What became of a refused token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// It was not current any more.
    Superseded,
    /// It is too new, or the last attempt too recent, to ask again.
    TooSoon,
    /// The provider was asked.
    Attempted(Attempted),
}

/// Why there is no token for a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unobtainable {
    /// The last attempt failed, and the next is at this time.
    Failed(Failed, Option<Instant>),
    /// A valid token is held, but the provider's tokens do not last as long as asked.
    MinTtlUnreachable(Duration),
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// A reload ended the credential meanwhile. Another may have taken its place.
    Ended,
}

impl Credential {
    /// Starts an actor, whose first request goes out at `first_attempt` or when a caller needs it. Without a
    /// time, only a caller starts it.
    pub fn start(
        provider: impl Provider,
        issuer: Arc<OriginThrottle>,
        schedule: Schedule,
        first_attempt: Option<Instant>,
        actor_context: &ActorContext,
    ) -> Self {
        Self::resume(provider, issuer, schedule, first_attempt, Kept::default(), actor_context)
    }

    /// The same for a credential of which something is kept: it goes on from there.
    pub fn resume(
        provider: impl Provider,
        issuer: Arc<OriginThrottle>,
        schedule: Schedule,
        first_attempt: Option<Instant>,
        kept: Kept,
        actor_context: &ActorContext,
    ) -> Self {
        let Kept { keep, record, previous_exit } = kept;
        let clock = actor_context.clock.clone();
        let jitter = Jitter::new((actor_context.roll)());
        let record = record.unwrap_or_default();
        let (first, memories) = restore::resume(
            &record,
            previous_exit,
            (&schedule, first_attempt),
            jitter,
            &actor_context.fingerprinter,
            clock.now(),
        );
        let (publish, snapshot) = watch::channel(Arc::new(first));
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        let stop = CancellationToken::new();
        let usage = Arc::new(Usage::default());
        record.last_used.into_iter().for_each(|at| usage.note(at));
        let discarded = CancellationToken::new();
        let inbox = Inbox {
            orders: received,
            usage: Arc::clone(&usage),
            stop: stop.clone(),
            discarded: discarded.clone(),
        };
        let state = (schedule, memories);
        let actor =
            Actor::new(provider, Arc::clone(&issuer), state, publish, inbox, keep.clone(), actor_context);
        actor_context.tasks.spawn(keep_running(actor, clock.clone()));
        Self { snapshot, orders, usage, clock, issuer, keep, stop, discarded }
    }

    /// What the actor holds.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Tells of every change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// What a caller is given that needs a token for `min_ttl`: see [`schedule::may_serve`].
    pub fn may_serve(&self, min_ttl: Duration) -> Serving {
        let now = self.clock.now();
        match schedule::may_serve(&self.snapshot.borrow(), self.issuer.quiet_until(now), now, min_ttl) {
            Serving::Refuse(_) if self.stop.is_cancelled() => Serving::Refuse(Unobtainable::Ended),
            serving => serving,
        }
    }

    /// A token that lasts at least `min_ttl`: the held one at once if it does, otherwise a new one.
    pub async fn obtain(&self, min_ttl: Duration, deadline: Instant) -> Result<Arc<Token>, Unobtainable> {
        let now = self.clock.now();
        self.usage.note(now);
        match self.may_serve(min_ttl) {
            Serving::Token(token) => {
                self.wake_if_resting(&self.snapshot());
                return Ok(token);
            }
            Serving::Refuse(reason) => return Err(reason),
            Serving::Wait { .. } if deadline <= now => return Err(Unobtainable::DeadlineExceeded),
            Serving::Wait { .. } => (),
        }
        let mut seen = self.snapshot.clone();
        // Orders may be many, and a token may come for the sake of another one.
        let answered = tokio::select! {
            biased;
            answered = self.order(deadline, |done| Command::Need { min_ttl, done }) => answered,
            Ok(()) = async {
                seen.wait_for(|snapshot| snapshot.usable(self.clock.now(), min_ttl).is_some()).await.map(drop)
            } => Ok(()),
        };
        match (self.may_serve(min_ttl), answered) {
            (Serving::Token(token), _) => Ok(token),
            (_, Err(reason)) | (Serving::Refuse(reason), Ok(())) => Err(reason),
            (Serving::Wait { .. }, Ok(())) => Err(self.unobtainable()),
        }
    }

    /// Asks the provider now, whatever the schedule says.
    pub async fn refresh(&self, deadline: Instant) -> Result<Attempted, Unobtainable> {
        self.order(deadline, |done| Command::Refresh { done }).await
    }

    /// Reports that an API refused a token: at most one request follows, however many report it.
    pub async fn reject(&self, refused: Fingerprint, deadline: Instant) -> Result<Rejected, Unobtainable> {
        self.order(deadline, |done| Command::Reject { refused, done }).await
    }

    /// Changes what may change.
    pub async fn reschedule(&self, schedule: Schedule) {
        // Fails only when the actor has ended, and then there is nothing to change.
        let _ = self.orders.send(Command::Reschedule(schedule)).await;
    }

    /// Tries again soon if the last attempt failed, because something happened after which it may go better.
    pub fn retry(&self) {
        // Where there is no place for one more order, the actor is about to be busy anyway.
        let _ = self.orders.try_send(Command::Retry);
    }

    /// Whether the token rests because nobody uses it, and has expired meanwhile.
    pub fn is_dormant(&self) -> bool {
        let snapshot = self.snapshot();
        let rests = snapshot.next_attempt.is_none() && !snapshot.in_flight;
        // One that has just been started has neither, and its first caller is on the way.
        let was_used = snapshot.token.is_some() || snapshot.last_error.is_some();
        rests && was_used && snapshot.usable(self.clock.now(), Duration::ZERO).is_none()
    }

    /// When the token was last asked for.
    pub fn last_used(&self) -> Instant {
        self.usage.last()
    }

    /// Notes that somebody is about to use the token.
    pub fn note_use(&self) {
        self.usage.note(self.clock.now());
    }

    /// Ends the actor, after the exchange that it may be in.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Ends the actor for good and at once, with the exchange that it may be in: the configuration has no use for it
    /// any more, and nothing of it is kept.
    pub fn discard(&self) {
        self.keep.discard();
        self.discarded.cancel();
        self.stop();
    }

    /// Somebody uses the token again, so it is to be renewed again.
    fn wake_if_resting(&self, snapshot: &Snapshot) {
        if snapshot.next_attempt.is_none() && !snapshot.in_flight {
            // Where there is no place for one more order, another one will do.
            let _ = self.orders.try_send(Command::Wake);
        }
    }

    async fn order<T>(
        &self,
        deadline: Instant,
        order: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Unobtainable> {
        let (done, answer) = oneshot::channel();
        let exchange = async {
            self.orders.send(order(done)).await.map_err(|_| Unobtainable::Ended)?;
            answer.await.map_err(|_| Unobtainable::Ended)
        };
        // An answer that comes with the deadline counts.
        tokio::select! {
            biased;
            answer = exchange => answer,
            () = self.clock.sleep_until(deadline) => Err(Unobtainable::DeadlineExceeded),
        }
    }

    /// Why there is no token although the wait for the provider is over.
    fn unobtainable(&self) -> Unobtainable {
        if self.stop.is_cancelled() {
            return Unobtainable::Ended;
        }
        let (snapshot, now) = (self.snapshot(), self.clock.now());
        if let Some(token) = snapshot.usable(now, Duration::ZERO) {
            return Unobtainable::MinTtlUnreachable(token.validity.remaining(now));
        }
        let failed = snapshot.last_error.clone().unwrap_or_else(|| Failed {
            class: ErrorClass::Internal,
            message: "the token expired before it was handed out".into(),
            detail: None,
            at: now,
        });
        Unobtainable::Failed(failed, snapshot.next_attempt)
    }
}

impl Drop for Credential {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Runs an actor until it is stopped. A panic in it is a fault of this program, and is no reason to let a
/// token expire: the actor goes on with what it held.
async fn keep_running<P: Provider>(mut actor: Actor<P>, clock: Clock) {
    while AssertUnwindSafe(actor.run()).catch_unwind().await.is_err() {
        tracing::error!(token = actor.names(), "a fault in the daemon stopped the renewal; it goes on");
        clock.sleep_until(clock.now().after(REST_AFTER_PANIC)).await;
        actor.recover();
    }
}

#[cfg(test)]
mod tests;

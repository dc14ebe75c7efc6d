//! `Watch`: a subscription to tokens. It remembers only its last event of each token, so a slow subscriber gets the latest
//! condition and never a backlog.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll, once, unfold};
use tokend_protocol::{
    BootInstant, ErrorClass, ErrorCode, ErrorReply, EventReply, Fingerprint, State, TokenReply, WatchRequest,
    WatchedToken,
};
use tokio::sync::watch::Receiver;

use super::{Asked, Session, in_task, refusal, view};
use crate::access::ResolvedIds;
use crate::clock::{Clock, Instant};
use crate::engine::credential::{Credential, Snapshot, Unobtainable};
use crate::engine::registry::{Entry, Registry};
use crate::engine::schedule::Serving;
use crate::quota::{Held, Resource};
use crate::server::audit::Operation;

/// Tokens that are authorized, audited and subscribed to in one turn.
const STRETCH: usize = 8;

/// How long a watch that needs a token waits for the provider's answer as one of its callers.
const NEED_TIMEOUT: Duration = Duration::from_secs(60);

/// A subscription.
#[expect(missing_debug_implementations, reason = "it holds streams, which have no such implementation")]
pub struct Watch {
    session: Arc<Session>,
    /// The parts of the user's quota that the watch takes.
    _held: [Held; 2],
    registry: Receiver<Arc<Registry>>,
    ids: Receiver<ResolvedIds>,
    tokens: Arc<[WatchedToken]>,
    /// Whether the events carry the tokens, and the watch counts as their use.
    with_tokens: bool,
    /// The last event of each token. Empty before the first subscription.
    told: Vec<Option<Told>>,
    /// Each token under the present registry.
    subscribed: Vec<Subscribed>,
    snapshots: Snapshots,
}

/// A token that the caller may have, under one registry.
struct Subscribed {
    entry: Arc<Entry>,
    /// Why the caller may have it.
    reason: Arc<str>,
    /// Held here, so that a variant is not evicted.
    credential: Arc<Credential>,
    /// The quota of a caller that waits for the provider, from the decision until the wait.
    place: Option<Held>,
}

/// The snapshots of each token under the present registry, with its index in the request.
type Snapshots = SelectAll<BoxStream<'static, (usize, Arc<Snapshot>)>>;

/// The parts of an event that are compared to decide whether to send it. Its other times are left out: they always differ.
type Told = (State, Option<(Fingerprint, BootInstant)>, Option<ErrorClass>);

impl Session {
    /// Begins a watch.
    ///
    /// # Errors
    /// The caller may not have one of the tokens, or asks for too many.
    pub async fn watch(self: Arc<Self>, request: WatchRequest) -> Result<Watch, ErrorReply> {
        let WatchRequest { tokens, with_tokens } = request;
        if tokens.is_empty() {
            return Err(refusal(ErrorCode::InvalidRequest, "a watch names at least one token"));
        }
        let held = [self.take(Resource::Watches, 1)?, self.take(Resource::WatchedTokens, tokens.len())?];
        // Subscribed before the decisions, so that a change during a decision is noticed.
        let (registry, ids) = (self.shared.registry.subscribe(), self.shared.names.ids.subscribe());
        let (told, subscribed, snapshots) = (Vec::new(), Vec::new(), SelectAll::new());
        let (tokens, session) = (Arc::from(tokens), self);
        let mut watch =
            Watch { session, _held: held, registry, ids, tokens, with_tokens, told, subscribed, snapshots };
        watch.subscribe().await?;
        Ok(watch)
    }

    /// Decides whether the caller may have a token.
    fn subscribe(&self, watched: &WatchedToken) -> Result<Subscribed, ErrorReply> {
        let (entry, reason, credential) = self.authorized(asked(watched), Self::authorize)?;
        Ok(Subscribed { entry, reason, credential, place: None })
    }

    /// Takes quota if a caller that needs the token would have to wait for it.
    fn place_for_need(
        &self,
        watched: &WatchedToken,
        credential: &Credential,
    ) -> Result<Option<Held>, ErrorReply> {
        match credential.may_serve(Duration::ZERO) {
            Serving::Wait { in_flight } => self.wait_for_provider(asked(watched), !in_flight).map(Some),
            Serving::Token(_) | Serving::Refuse(_) => Ok(None),
        }
    }
}

impl Watch {
    /// Waits for the next event. The first event of each token is its present condition. If the future is dropped before
    /// it is ready, the watch must be dropped too.
    ///
    /// # Errors
    /// The caller may not have one of the tokens any more. The watch is over.
    pub async fn next(&mut self) -> Result<EventReply, ErrorReply> {
        loop {
            tokio::select! {
                // First, because a reload may end the watch.
                biased;
                Ok(()) = self.registry.changed() => self.subscribe().await?,
                Ok(()) = self.ids.changed() => self.subscribe().await?,
                Some((index, snapshot)) = self.snapshots.next() => {
                    self.use_token(index);
                    if let Some(event) = self.event(index, &snapshot) {
                        return Ok(event);
                    }
                }
            }
        }
    }

    /// Decides whether the caller may have the tokens, and subscribes to their present credentials.
    async fn subscribe(&mut self) -> Result<(), ErrorReply> {
        self.snapshots.clear();
        let (session, tokens, with_tokens) =
            (Arc::clone(&self.session), Arc::clone(&self.tokens), self.with_tokens);
        let is_first = self.told.is_empty();
        let subscribed = in_task(async move {
            let (mut all, mut turn) = (Vec::with_capacity(tokens.len()), None);
            for (index, watched) in tokens.iter().enumerate() {
                session.turn(&mut turn, index, STRETCH).await;
                let mut subscribed = session.subscribe(watched)?;
                if is_first {
                    session.audit_allowed(asked(watched), &subscribed.entry, &subscribed.reason, None);
                }
                if with_tokens {
                    subscribed.place = session.place_for_need(watched, &subscribed.credential)?;
                }
                all.push(subscribed);
            }
            Ok(all)
        });
        self.subscribed = subscribed.await?;
        self.told.resize(self.tokens.len(), None);
        for (index, subscribed) in self.subscribed.iter().enumerate() {
            let published = subscribed.credential.subscribe();
            let snapshots = snapshots(published, self.session.shared.clock.clone());
            self.snapshots.push(snapshots.map(move |snapshot| (index, snapshot)).boxed());
        }
        Ok(())
    }

    /// Uses a token whose events carry it, at every change, so that it is renewed as long as it is watched.
    fn use_token(&mut self, index: usize) {
        let Some(subscribed) = self.subscribed.get_mut(index).filter(|_| self.with_tokens) else { return };
        let (credential, place) = (&subscribed.credential, subscribed.place.take());
        if place.is_none() && !credential.snapshot().is_resting() {
            return credential.note_use();
        }
        let need = need(Arc::clone(credential), self.session.shared.clock.clone(), place);
        self.snapshots.push(once(need).filter_map(|()| ready(None)).boxed());
    }

    /// The event of a token, if its condition has changed.
    fn event(&mut self, index: usize, snapshot: &Snapshot) -> Option<EventReply> {
        let (watched, subscribed) = (self.tokens.get(index)?, self.subscribed.get(index)?);
        let last = self.told.get_mut(index)?;
        let mut event = view::event(index, watched.name.clone(), snapshot, &self.session.shared.clock);
        // A provider may return the token that it returned before, for longer.
        let held = event.held.map(|held| (held.fingerprint, held.expires_at));
        let before = last.replace((event.state, held, event.last_error));
        if before == *last {
            return None;
        }
        if self.with_tokens && held != before.and_then(|(_, held, _)| held) {
            event.token = self.hand_out(watched, subscribed, snapshot);
        }
        Some(event)
    }

    /// The token itself, while it is valid.
    fn hand_out(
        &self,
        watched: &WatchedToken,
        subscribed: &Subscribed,
        snapshot: &Snapshot,
    ) -> Option<TokenReply> {
        let clock = &self.session.shared.clock;
        let token = snapshot.usable(clock.now(), Duration::ZERO)?;
        let Subscribed { entry, reason, .. } = subscribed;
        entry.count_hand_out();
        self.session.audit_allowed(asked(watched), entry, reason, Some(token.fingerprint));
        Some(view::token_reply(&token, view::token_info(&token, snapshot, clock)))
    }
}

fn asked(WatchedToken { name, variant }: &WatchedToken) -> Asked<'_> {
    Asked { operation: Operation::Watch, name, variant }
}

/// Requests a resting token as a caller does, until its actor renews it again.
async fn need(credential: Arc<Credential>, clock: Clock, mut place: Option<Held>) {
    loop {
        let obtained = credential.obtain(Duration::ZERO, clock.now().after(NEED_TIMEOUT)).await;
        drop(place.take());
        match obtained {
            Err(Unobtainable::Failed(_, Some(at))) if credential.snapshot().is_resting() => {
                clock.sleep_until(at).await;
            }
            _ => return,
        }
    }
}

/// The snapshot of a credential now, and each time that its state may have changed: when a snapshot is published, and when
/// time changes the state. Ends with the credential, when only a reload brings news.
fn snapshots(
    mut published: Receiver<Arc<Snapshot>>,
    clock: Clock,
) -> impl futures_util::Stream<Item = Arc<Snapshot>> {
    published.mark_changed();
    unfold((published, None), move |(mut published, timed): (_, Option<Instant>)| {
        let clock = clock.clone();
        async move {
            tokio::select! {
                Ok(()) = published.changed() => (),
                () = clock.sleep_until(timed.unwrap_or_else(|| clock.now())), if timed.is_some() => (),
                else => return None,
            }
            let snapshot = published.borrow_and_update().clone();
            let timed = next_timed_change(&snapshot, clock.now());
            Some((snapshot, (published, timed)))
        }
    })
}

/// The time at which the state changes by itself: the token becomes due, or expires.
fn next_timed_change(snapshot: &Snapshot, now: Instant) -> Option<Instant> {
    let token = snapshot.usable(now, Duration::ZERO)?;
    let due = snapshot.next_attempt.filter(|at| *at > now && snapshot.last_error.is_none());
    Some(due.map_or(token.validity.expires_at(), |due| due.min(token.validity.expires_at())))
}

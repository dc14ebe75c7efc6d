//! `Watch`: a subscription to tokens. It remembers only its last event of each token, so a slow subscriber gets the latest
//! condition and never a backlog.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll, unfold};
use tokend_protocol::{
    ErrorClass, ErrorCode, ErrorReply, EventReply, Fingerprint, State, TokenName, Variant, WatchRequest,
};
use tokio::sync::watch::Receiver;

use super::{Asked, Session, in_task, refusal, view};
use crate::access::ResolvedIds;
use crate::clock::{Clock, Instant};
use crate::engine::credential::Snapshot;
use crate::engine::registry::Registry;
use crate::quota::{Held, Resource};
use crate::server::audit::Operation;

/// Tokens that are authorized, audited and subscribed to in one turn.
const STRETCH: usize = 8;

/// A subscription.
#[expect(missing_debug_implementations, reason = "it holds streams, which have no such implementation")]
pub struct Watch {
    session: Arc<Session>,
    /// The parts of the user's quota that the watch takes.
    _held: [Held; 2],
    registry: Receiver<Arc<Registry>>,
    ids: Receiver<ResolvedIds>,
    names: Arc<[TokenName]>,
    /// The last event of each token. Empty before the first subscription.
    told: Vec<Option<Told>>,
    snapshots: Snapshots,
}

/// The snapshots of each token under the present registry, with its index in the names.
type Snapshots = SelectAll<BoxStream<'static, (usize, Arc<Snapshot>)>>;

/// The parts of an event that are compared to decide whether to send it. Times are left out: they always differ.
type Told = (State, Option<Fingerprint>, Option<ErrorClass>);

impl Session {
    /// Begins a watch.
    ///
    /// # Errors
    /// The caller may not have one of the tokens, or asks for too many.
    pub async fn watch(self: Arc<Self>, request: WatchRequest) -> Result<Watch, ErrorReply> {
        let names = Arc::from(request.names);
        let count = <[TokenName]>::len(&names);
        if count == 0 {
            return Err(refusal(ErrorCode::InvalidRequest, "a watch names at least one token"));
        }
        let held = [self.take(Resource::Watches, 1)?, self.take(Resource::WatchedTokens, count)?];
        // Subscribed before the decisions, so that a change during a decision is noticed.
        let (registry, ids) = (self.shared.registry.subscribe(), self.shared.names.ids.subscribe());
        let (told, snapshots) = (Vec::new(), SelectAll::new());
        let mut watch = Watch { session: self, _held: held, registry, ids, names, told, snapshots };
        watch.subscribe().await?;
        Ok(watch)
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
        let (session, names, is_first) =
            (Arc::clone(&self.session), Arc::clone(&self.names), self.told.is_empty());
        let subscribed = in_task(async move {
            let (mut all, mut turn, variant) = (SelectAll::new(), None, Variant::default());
            for (index, name) in names.iter().enumerate() {
                session.turn(&mut turn, index, STRETCH).await;
                let asked = Asked { operation: Operation::Watch, name, variant: &variant };
                let (entry, reason) = session.authorize(&session.registry(), asked)?;
                if is_first {
                    session.audit(asked, Ok(&reason));
                }
                let snapshots = snapshots(entry.credential.subscribe(), session.shared.clock.clone());
                all.push(snapshots.map(move |snapshot| (index, snapshot)).boxed());
            }
            Ok(all)
        });
        self.snapshots = subscribed.await?;
        self.told.resize(self.names.len(), None);
        Ok(())
    }

    /// The event of a token, if its condition has changed.
    fn event(&mut self, index: usize, snapshot: &Snapshot) -> Option<EventReply> {
        let (name, last) = (self.names.get(index)?, self.told.get_mut(index)?);
        let event = view::event(name.clone(), snapshot, &self.session.shared.clock);
        let told = (event.state, event.held.map(|held| held.fingerprint), event.last_error);
        (last.replace(told) != Some(told)).then_some(event)
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

//! `Watch`: a subscription to tokens. It remembers only its last event of each token, so a slow subscriber gets the latest
//! condition and never a backlog.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokend_protocol::{
    ErrorClass, ErrorCode, ErrorReply, EventReply, Fingerprint, State, TokenName, Variant, WatchRequest,
};
use tokio::sync::watch::Receiver;

use super::authorize::Authorized;
use super::{Asked, Session, refusal, view};
use crate::access::ResolvedIds;
use crate::clock::{Clock, Instant};
use crate::engine::credential::Snapshot;
use crate::engine::registry::Registry;
use crate::quota::{Held, Resource};
use crate::server::audit::Operation;

/// Tokens of one watch. It is asked for in one frame, and every name of it is audited.
pub(super) const WATCHED_MAX: usize = 256;

/// A subscription.
#[derive(Debug)]
pub struct Watch {
    session: Arc<Session>,
    /// The parts of the user's quota that the watch takes.
    _held: [Held; 2],
    registry: Receiver<Arc<Registry>>,
    ids: Receiver<ResolvedIds>,
    watched: Vec<Watched>,
    /// The next change of each token under this registry, so that a change of one costs no look at the others.
    changes: FuturesUnordered<Change>,
}

#[derive(Debug)]
struct Watched {
    name: TokenName,
    told: Option<Told>,
}

/// The parts of an event that are compared to decide whether to send it. Times are left out: they always differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    state: State,
    held: Option<Fingerprint>,
    last_error: Option<ErrorClass>,
}

/// Ends when the state of a token may have changed.
type Change = Pin<Box<dyn Future<Output = Changed> + Send>>;

struct Changed {
    /// The index of the token in [`Watch::watched`].
    index: usize,
    snapshots: Receiver<Arc<Snapshot>>,
}

impl Session {
    /// Begins a watch.
    ///
    /// # Errors
    /// The caller may not have one of the tokens, or asks for too many.
    pub async fn watch(self: Arc<Self>, request: WatchRequest) -> Result<Watch, ErrorReply> {
        let mut names = request.names;
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Err(refusal(ErrorCode::InvalidRequest, "a watch names at least one token"));
        }
        if names.len() > WATCHED_MAX {
            let message = format!(
                "a watch of {} tokens, expected {WATCHED_MAX} at most: watch the others on a connection of \
                 their own",
                names.len()
            );
            return Err(refusal(ErrorCode::InvalidRequest, message));
        }
        let held = [self.take(Resource::Watches, 1)?, self.take(Resource::WatchedTokens, names.len())?];
        let (mut registry, ids) = (self.shared.registry.subscribe(), self.shared.names.subscribe());
        for (index, name) in names.iter().enumerate() {
            self.pause(index).await;
            let reason = self.authorize_watch(name)?.reason;
            self.shared.audit.allowed(self.peer.facts(), Operation::Watch, name, &reason);
        }
        // The tokens have not been looked at yet.
        registry.mark_changed();
        let watched = names.into_iter().map(|name| Watched { name, told: None }).collect();
        Ok(Watch { session: self, _held: held, registry, ids, watched, changes: FuturesUnordered::new() })
    }

    fn authorize_watch(&self, name: &TokenName) -> Result<Authorized, ErrorReply> {
        let asked = Asked { operation: Operation::Watch, name, variant: &Variant::default() };
        self.authorize(&self.registry(), asked)
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
                Some(changed) = self.changes.next() => {
                    if let Some(event) = self.news(changed) {
                        return Ok(event);
                    }
                }
            }
        }
    }

    /// Decides again whether the caller may have the tokens, and subscribes to their present credentials.
    async fn subscribe(&mut self) -> Result<(), ErrorReply> {
        self.changes.clear();
        for (index, watched) in self.watched.iter().enumerate() {
            self.session.pause(index).await;
            let entry = self.session.authorize_watch(&watched.name)?.entry;
            let mut snapshots = entry.credential.subscribe();
            snapshots.mark_changed();
            self.changes.push(change(index, snapshots, None, self.session.shared.clock.clone()));
        }
        Ok(())
    }

    /// The event, if the condition changed. The token stays watched in any case.
    fn news(&mut self, Changed { index, mut snapshots }: Changed) -> Option<EventReply> {
        let clock = &self.session.shared.clock;
        let snapshot = snapshots.borrow_and_update().clone();
        let event = self.watched.get_mut(index)?.news(&snapshot, clock);
        self.changes.push(change(index, snapshots, next_timed_change(&snapshot, clock.now()), clock.clone()));
        event
    }
}

/// Waits until a new snapshot is published, or until `at`.
fn change(index: usize, mut snapshots: Receiver<Arc<Snapshot>>, at: Option<Instant>, clock: Clock) -> Change {
    Box::pin(async move {
        let passing = async {
            match at {
                Some(at) => clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let published = async {
            if snapshots.changed().await.is_err() {
                // The credential has ended; only a reload brings news.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = published => (),
            () = passing => (),
        }
        Changed { index, snapshots }
    })
}

/// The time at which the state changes by itself: the token becomes due, or expires.
fn next_timed_change(snapshot: &Snapshot, now: Instant) -> Option<Instant> {
    let token = snapshot.usable(now, Duration::ZERO)?;
    let due = snapshot.next_attempt.filter(|at| *at > now && snapshot.last_error.is_none());
    Some(due.map_or(token.validity.expires_at(), |due| due.min(token.validity.expires_at())))
}

impl Watched {
    fn news(&mut self, snapshot: &Snapshot, clock: &Clock) -> Option<EventReply> {
        let event = view::event(self.name.clone(), snapshot, clock);
        let held = event.held.map(|held| held.fingerprint);
        let told = Told { state: event.state, held, last_error: event.last_error };
        (self.told.replace(told) != Some(told)).then_some(event)
    }
}

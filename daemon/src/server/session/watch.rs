//! A subscription to tokens. It remembers only what it told last, so a slow subscriber gets the latest
//! condition and never a backlog.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokend_protocol::{ErrorClass, ErrorReply, EventReply, Fingerprint, State, TokenName, Variant};
use tokio::sync::watch::Receiver;

use super::{Session, view};
use crate::access::directory::Patience;
use crate::clock::{Clock, Instant};
use crate::engine::credential::Snapshot;
use crate::engine::registry::Registry;
use crate::quota::Held;
use crate::server::audit::Operation;

/// A subscription.
#[derive(Debug)]
pub struct Watch {
    session: Arc<Session>,
    /// Of the user's quota.
    _held: [Held; 2],
    registry: Receiver<Arc<Registry>>,
    watched: Vec<Watched>,
    /// The next change of each token under this registry, so that a change of one costs no look at the others.
    changes: FuturesUnordered<Change>,
}

#[derive(Debug)]
struct Watched {
    name: TokenName,
    told: Option<Told>,
}

/// What makes an event worth telling: all of it but what changes with every moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    state: State,
    held: Option<Fingerprint>,
    last_error: Option<ErrorClass>,
}

/// Ends when there may be news of a token.
type Change = Pin<Box<dyn Future<Output = Changed> + Send>>;

struct Changed {
    /// Which of the watched tokens.
    index: usize,
    snapshots: Receiver<Arc<Snapshot>>,
}

impl Watch {
    /// A subscription of `names`, each given once.
    pub(super) fn new(session: Arc<Session>, names: Vec<TokenName>, held: [Held; 2]) -> Self {
        let mut registry = session.shared.registry.subscribe();
        // What is in force now has not been looked at yet.
        registry.mark_changed();
        let watched = names.into_iter().map(|name| Watched { name, told: None }).collect();
        Self { session, _held: held, registry, watched, changes: FuturesUnordered::new() }
    }

    /// Waits for the next event. The first of each token is its condition at once. Whoever drops the future
    /// before it is ready drops the watch too.
    ///
    /// # Errors
    /// A reload took a token away from the peer. The watch is over.
    pub async fn next(&mut self) -> Result<EventReply, ErrorReply> {
        loop {
            tokio::select! {
                // First, because a reload may end the watch.
                biased;
                Ok(()) = self.registry.changed() => self.subscribe().await?,
                Some(changed) = self.changes.next() => {
                    if let Some(event) = self.news(changed) {
                        return Ok(event);
                    }
                }
            }
        }
    }

    /// Finds out anew what the names lead to, and whether the peer may still have it.
    async fn subscribe(&mut self) -> Result<(), ErrorReply> {
        self.changes.clear();
        let patience = Patience::of_a_request();
        for (index, watched) in self.watched.iter().enumerate() {
            self.session.turn_for_name(index).await;
            let entry = self
                .session
                .entitled(&watched.name, &Variant::default(), Operation::Watch, patience)
                .await?
                .entry;
            let mut snapshots = entry.credential.subscribe();
            snapshots.mark_changed();
            self.changes.push(change(index, snapshots, None, self.session.shared.clock.clone()));
        }
        Ok(())
    }

    /// The event, if there is anything to tell. In any case the token is watched further.
    fn news(&mut self, Changed { index, mut snapshots }: Changed) -> Option<EventReply> {
        let clock = &self.session.shared.clock;
        let snapshot = snapshots.borrow_and_update().clone();
        let event = self.watched.get_mut(index)?.news(&snapshot, clock);
        self.changes.push(change(index, snapshots, next_turn(&snapshot, clock.now()), clock.clone()));
        event
    }
}

/// Waits until a snapshot is published that has not been looked at, or for `turn`.
fn change(
    index: usize,
    mut snapshots: Receiver<Arc<Snapshot>>,
    turn: Option<Instant>,
    clock: Clock,
) -> Change {
    Box::pin(async move {
        let passing = async {
            match turn {
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

/// When the passing of time alone changes the state: the token becomes due, or expires.
fn next_turn(snapshot: &Snapshot, now: Instant) -> Option<Instant> {
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

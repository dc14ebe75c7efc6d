//! A subscription to tokens. It remembers only what it told last, so a slow subscriber gets the latest
//! condition and never a backlog.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokend_protocol::{ErrorClass, ErrorReply, EventReply, Fingerprint, State, TokenName};
use tokio::sync::watch::Receiver;

use super::{Session, view};
use crate::audit::Verb;
use crate::clock::Instant;
use crate::credential::Snapshot;
use crate::registry::Registry;

/// A subscription.
#[derive(Debug)]
pub struct Watch {
    session: Arc<Session>,
    registry: Receiver<Arc<Registry>>,
    watched: Vec<Watched>,
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

impl Watch {
    pub(super) fn new(session: Arc<Session>, mut names: Vec<TokenName>) -> Self {
        names.sort_unstable();
        names.dedup();
        let registry = session.shared.registry.subscribe();
        let watched = names.into_iter().map(|name| Watched { name, told: None }).collect();
        Self { session, registry, watched }
    }

    /// Waits for the next event. The first of each token is its condition at once.
    ///
    /// # Errors
    /// A reload took a token away from the peer. The watch is over.
    pub async fn next(&mut self) -> Result<EventReply, ErrorReply> {
        loop {
            self.registry.mark_unchanged();
            let mut snapshots = Vec::with_capacity(self.watched.len());
            for watched in &mut self.watched {
                let entry = self.session.entitled(&watched.name, Verb::Watch).await?.entry;
                let mut receiver = entry.credential.subscribe();
                let snapshot = receiver.borrow_and_update().clone();
                if let Some(event) = watched.news(&snapshot, &self.session) {
                    return Ok(event);
                }
                snapshots.push((receiver, snapshot));
            }
            self.wait_for_change(snapshots).await;
        }
    }

    /// Waits until one of the snapshots, the registry or, by the mere passing of time, a state changes.
    async fn wait_for_change(&mut self, snapshots: Vec<(Receiver<Arc<Snapshot>>, Arc<Snapshot>)>) {
        let clock = &self.session.shared.clock;
        let now = clock.now();
        let turning = snapshots.iter().filter_map(|(_, snapshot)| next_turn(snapshot, now)).min();
        let passing = async {
            match turning {
                Some(at) => clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let changes = snapshots.into_iter().map(|(mut receiver, _)| {
            Box::pin(async move {
                if receiver.changed().await.is_err() {
                    // The credential has ended; only a reload brings news.
                    std::future::pending::<()>().await;
                }
            })
        });
        tokio::select! {
            _ = select_all(changes) => (),
            () = passing => (),
            _ = self.registry.changed() => (),
        }
    }
}

/// When the passing of time alone changes the state: the token becomes due, or expires.
fn next_turn(snapshot: &Snapshot, now: Instant) -> Option<Instant> {
    let token = snapshot.usable(now, Duration::ZERO)?;
    let due = Some(snapshot.next_attempt).filter(|at| *at > now && snapshot.last_error.is_none());
    Some(due.map_or(token.life.expires_at(), |due| due.min(token.life.expires_at())))
}

impl Watched {
    /// The event, if there is anything to tell.
    fn news(&mut self, snapshot: &Snapshot, session: &Session) -> Option<EventReply> {
        let event = view::event(self.name.clone(), snapshot, &session.shared.clock);
        let held = event.held.map(|held| held.fingerprint);
        let told = Told { state: event.state, held, last_error: event.last_error };
        (self.told.replace(told) != Some(told)).then_some(event)
    }
}

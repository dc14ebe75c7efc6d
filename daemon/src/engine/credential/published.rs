//! The published state of a credential. Readers take it at any time. A channel exists only while somebody awaits changes,
//! because it is larger than the rest of a credential.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::Snapshot;

/// The newest snapshot. Only the actor changes it.
#[derive(Debug)]
pub(in crate::engine) struct Published(Mutex<State>);

#[derive(Debug)]
struct State {
    snapshot: Arc<Snapshot>,
    receivers: Option<watch::Sender<Arc<Snapshot>>>,
    has_ended: bool,
}

impl Published {
    pub(super) fn new(snapshot: Snapshot) -> Self {
        Self(Mutex::new(State { snapshot: Arc::new(snapshot), receivers: None, has_ended: false }))
    }

    pub(in crate::engine) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.lock().snapshot)
    }

    /// Receives every change of the state, until the actor ends.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        let mut state = self.lock();
        let State { snapshot, receivers, has_ended } = &mut *state;
        let receiver = receivers.get_or_insert_with(|| watch::Sender::new(Arc::clone(snapshot))).subscribe();
        if *has_ended {
            *receivers = None;
        }
        receiver
    }

    pub(in crate::engine) fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut state = self.lock();
        change(Arc::make_mut(&mut state.snapshot));
        state.send();
    }

    pub(in crate::engine) fn replace(&self, snapshot: Snapshot) {
        let mut state = self.lock();
        state.snapshot = Arc::new(snapshot);
        state.send();
    }

    /// Drops the token and ends the receivers. A handle may be held for long after, and the token must not stay in memory.
    pub(in crate::engine) fn end(&self) {
        self.update(|snapshot| snapshot.token = None);
        let mut state = self.lock();
        state.has_ended = true;
        state.receivers = None;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn send(&mut self) {
        self.receivers = self.receivers.take().filter(|receivers| receivers.receiver_count() > 0);
        if let Some(receivers) = &self.receivers {
            receivers.send_replace(Arc::clone(&self.snapshot));
        }
    }
}

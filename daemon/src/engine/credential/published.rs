//! The published state of a credential. Readers take it at any time. A channel exists only while somebody awaits changes,
//! because it is larger than the rest of a credential.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{EncodedReply, Snapshot};

/// The newest snapshot. Only the actor changes it.
#[derive(Debug)]
pub(in crate::engine) struct Published(Mutex<State>);

/// Whether a snapshot is not the newest one any more. A copy is made to be published, and begins as the newest.
#[derive(Debug, Default)]
pub(in crate::engine) struct Superseded(AtomicBool);

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
        state.snapshot.superseded.set();
        let snapshot = Arc::make_mut(&mut state.snapshot);
        // From before the change.
        (snapshot.reply, snapshot.superseded) = (EncodedReply::default(), Superseded::default());
        change(snapshot);
        state.send();
    }

    pub(in crate::engine) fn replace(&self, snapshot: Snapshot) {
        let mut state = self.lock();
        state.snapshot.superseded.set();
        // In the memory of the former one, if nobody reads that.
        *Arc::make_mut(&mut state.snapshot) = snapshot;
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

impl Superseded {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Clone for Superseded {
    fn clone(&self) -> Self {
        Self::default()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokend_protocol::{
        BootInstant, Fingerprint, Secret, State, Timestamp, TokenFrame, TokenInfo, TokenReply,
    };

    use super::*;
    use crate::clock::Instant;

    #[test]
    fn a_reply_that_was_encoded_before_a_change_is_not_used_after_it() {
        let published = Published::new(Snapshot::default());
        let now = Instant::at(Duration::from_secs(1));
        let encode = |state| {
            let info = TokenInfo {
                issued_at: BootInstant(1),
                expires_at: BootInstant(2),
                expires_at_wall: Timestamp(3),
                state,
                last_error: None,
                next_attempt: None,
                fingerprint: Fingerprint([0; 8]),
            };
            let token = Secret::from("t".to_owned());
            let reply = TokenReply { info, token, token_type: "Bearer".to_owned(), scope: None };
            Some((now.after(Duration::from_secs(9)), TokenFrame::new(&reply).unwrap()))
        };
        let reply = |state| {
            let frame = published.snapshot().reply.get(now, || encode(state)).unwrap();
            let mut wire = Vec::new();
            frame.append(1, &Secret::from("t".to_owned()), &mut wire);
            wire
        };
        let before = reply(State::Fresh);
        assert_eq!(reply(State::Refreshing), before, "nothing has changed");
        published.update(|snapshot| snapshot.in_flight = true);
        assert_ne!(reply(State::Refreshing), before);
    }

    #[test]
    fn only_the_newest_snapshot_is_not_superseded() {
        let published = Published::new(Snapshot::default());
        let changes: [fn(&Published); 3] = [
            |published| published.update(|snapshot| snapshot.failures += 1),
            |published| published.replace(Snapshot::clone(&published.snapshot())),
            Published::end,
        ];
        for change in changes {
            let before = published.snapshot();
            assert!(!before.superseded.get());
            change(&published);
            assert!(before.superseded.get());
        }
        assert!(!published.snapshot().superseded.get());
    }
}

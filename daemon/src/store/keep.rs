//! The way from a credential, or an issuer, to where its state is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Store;
use super::key::Key;
use super::layout::Bytes;
use super::record::{Record, ThrottleRecord};

/// Keeps the state of one credential.
#[derive(Clone, Debug, Default)]
pub struct RecordWriter(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    store: Arc<Store>,
    key: Key,
    variant_of: Option<Key>,
    /// The credential is not configured any more.
    is_discarded: AtomicBool,
}

/// Keeps the condition of one issuer.
#[derive(Clone, Debug, Default)]
pub struct ThrottleWriter(Option<(Arc<Store>, Key)>);

impl RecordWriter {
    pub(super) fn new(store: Arc<Store>, key: Key, variant_of: Option<Key>) -> Self {
        Self(Some(Arc::new(Held { store, key, variant_of, is_discarded: AtomicBool::new(false) })))
    }

    /// Keeps the state after a success. It is in memory at once, and when this returns on the disk too, unless that
    /// takes too long.
    pub async fn renewed(&self, record: Record) {
        let Some(held) = &self.0 else { return };
        let Some(bytes) = held.put_in_memory(record) else { return };
        if let Some(files) = &held.store.files {
            files.write(held.key, bytes).await;
        }
    }

    /// Keeps the state before a token request or after one that failed, in memory. No file is written for it: a reboot
    /// is a reason to try again.
    pub fn changed(&self, record: Record) {
        let Some(held) = &self.0 else { return };
        // Another credential with these settings may hold a token, which is worth more than a failure.
        if record.token.is_some() || !held.store.is_shared(&held.key) {
            held.put_in_memory(record);
        }
    }

    /// Wipes what is kept, and keeps nothing more: the credential is not configured any more.
    pub fn discard(&self) {
        let Some(held) = &self.0 else { return };
        let is_first = !held.is_discarded.swap(true, Ordering::Relaxed);
        if let (true, Some(files)) = (is_first && held.store.release(&held.key), &held.store.files) {
            files.remove([held.key]);
        }
    }
}

impl Held {
    fn put_in_memory(&self, record: Record) -> Option<Bytes> {
        if self.is_discarded.load(Ordering::Relaxed) {
            return None;
        }
        let record = Record { variant_of: self.variant_of, ..record };
        let bytes = record.encode(&self.key, &self.store.now());
        self.store.put(&mut self.store.lock(), &self.key, &bytes);
        Some(bytes)
    }
}

impl ThrottleWriter {
    pub(super) fn new(store: Arc<Store>, key: Key) -> Self {
        Self(Some((store, key)))
    }

    /// Keeps the condition, in memory.
    pub fn changed(&self, record: &ThrottleRecord) {
        let Some((store, key)) = &self.0 else { return };
        store.put(&mut store.lock(), key, &record.encode(&store.now()));
    }
}

impl Store {
    /// Whether several credentials have this key, as where a variant of one token is the whole of another.
    fn is_shared(&self, key: &Key) -> bool {
        self.lock().claims.get(key).is_some_and(|claims| *claims > 1)
    }

    /// Wipes a record unless another credential has the same key. Whether it did.
    fn release(&self, key: &Key) -> bool {
        let mut state = self.lock();
        let others = state.claims.get(key).copied().unwrap_or_default().saturating_sub(1);
        if others > 0 {
            state.claims.insert(*key, others);
            return false;
        }
        state.claims.remove(key);
        self.wipe(&mut state, key);
        true
    }
}

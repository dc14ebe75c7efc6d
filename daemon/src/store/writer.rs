//! Handles for persisting the state of a credential and of an issuer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Store;
use super::key::Key;
use super::record::{self, Record, ThrottleRecord};

/// Handle for persisting the state of one credential. The default one stores nothing.
#[derive(Clone, Debug, Default)]
pub struct RecordWriter(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    key: Key,
    variant_of: Option<Key>,
    /// The credential is not configured any more.
    is_discarded: AtomicBool,
}

/// Handle for persisting the condition of one issuer. The default one stores nothing.
#[derive(Clone, Debug, Default)]
pub struct ThrottleWriter(Option<(Arc<Store>, Key)>);

impl RecordWriter {
    pub(super) fn new(store: Arc<Store>, key: Key, variant_of: Option<Key>) -> Self {
        Self(Some(Arc::new(Inner { store, key, variant_of, is_discarded: AtomicBool::new(false) })))
    }

    /// Stores the state after a success: in memory at once, and before this returns on the disk too, unless that takes
    /// too long.
    pub async fn renewed(&self, record: Record) {
        let Some(inner) = &self.0 else { return };
        let Some(bytes) = inner.put_in_memory(record) else { return };
        if let Some(files) = &inner.store.files {
            files.write(inner.key, bytes).await;
        }
    }

    /// Stores the state before a token request or after a failed one, in memory only: a reboot is a reason to try
    /// again.
    pub fn changed(&self, record: Record) {
        let Some(inner) = &self.0 else { return };
        // Another credential with these settings may hold a token, which matters more than a failure.
        if record.token.is_some() || !inner.store.is_shared(&inner.key) {
            inner.put_in_memory(record);
        }
    }

    /// Wipes the record and stores nothing more: the credential is not configured any more.
    pub fn discard(&self) {
        let Some(inner) = &self.0 else { return };
        if !inner.is_discarded.swap(true, Ordering::Relaxed) {
            inner.store.release(inner.key);
        }
    }
}

impl Inner {
    fn put_in_memory(&self, record: Record) -> Option<Vec<u8>> {
        if self.is_discarded.load(Ordering::Relaxed) {
            return None;
        }
        let record = Record { variant_of: self.variant_of, ..record };
        let bytes = record::encode(&record, self.store.now());
        self.store.put(&mut self.store.lock(), &self.key, &bytes);
        Some(bytes)
    }
}

impl ThrottleWriter {
    pub(super) fn new(store: Arc<Store>, key: Key) -> Self {
        Self(Some((store, key)))
    }

    /// Stores the condition, in memory only.
    pub fn changed(&self, record: &ThrottleRecord) {
        let Some((store, key)) = &self.0 else { return };
        store.put(&mut store.lock(), key, &record::encode(record, store.now()));
    }
}

//! Handles for persisting the state of a credential and of a throttle.

use std::sync::Arc;

use super::Store;
use super::key::Key;
use super::record::{self, Record, ThrottleRecord};

/// Handle for persisting the state of one credential, with the key of its base token. The default one stores nothing.
#[derive(Clone, Debug, Default)]
pub struct RecordWriter(pub(super) Option<(Arc<Store>, Key, Option<Key>)>);

/// Handle for persisting the state of one throttle. The default one stores nothing.
#[derive(Clone, Debug, Default)]
pub struct ThrottleWriter(pub(super) Option<(Arc<Store>, Key)>);

impl RecordWriter {
    /// Stores the state after a success: in memory at once, then on the disk, for which it waits a bounded time.
    pub async fn renewed(&self, record: Record) {
        let written = self.put_in_memory(record);
        if let (Some((store, key, _)), Some(bytes)) = (&self.0, written)
            && let Some(files) = &store.files
        {
            files.write(*key, bytes).await;
        }
    }

    /// Stores the state before a token request or after a failed one, in memory only: a reboot is a reason to try again.
    pub fn changed(&self, record: Record) {
        self.put_in_memory(record);
    }

    /// Wipes the record, unless another credential has the same key. To be called once, when the credential is not
    /// configured any more.
    pub fn discard(&self) {
        let Some((store, key, _)) = &self.0 else { return };
        let mut state = store.lock();
        match state.claims.get_mut(key) {
            Some(claims) if *claims > 1 => *claims -= 1,
            _ => {
                state.claims.remove(key);
                state.write(|memory| memory.remove(key));
                store.submit(*key, None);
            }
        }
    }

    fn put_in_memory(&self, record: Record) -> Option<Vec<u8>> {
        let (store, key, variant_of) = self.0.as_ref()?;
        let mut state = store.lock();
        // A discarded credential stores nothing. A failure of one of two credentials of a key may not replace the token.
        let claims = state.claims.get(key)?;
        if record.token.is_none() && *claims > 1 {
            return None;
        }
        let bytes = record::encode(&Record { variant_of: *variant_of, ..record }, store.now());
        state.write(|memory| memory.put(key, &bytes));
        Some(bytes)
    }
}

impl ThrottleWriter {
    /// Stores the state, in memory only.
    pub fn changed(&self, record: &ThrottleRecord) {
        let Some((store, key)) = &self.0 else { return };
        let bytes = record::encode(record, store.now());
        store.lock().write(|memory| memory.put(key, &bytes));
    }
}

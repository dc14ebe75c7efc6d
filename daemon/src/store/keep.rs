//! The way from a credential, or an issuer, to where its state is kept.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Store;
use super::folder::{Folder, FolderError};
use super::key::Key;
use super::layout::Bytes;
use super::record::{IssuerRecord, Record};

/// How long a token waits to be on the disk before it is handed out all the same. A disk that is only busy is done
/// by then, and callers wait no longer than for a slow provider.
const DISK_LIMIT: Duration = Duration::from_secs(2);

/// Keeps the state of one credential.
#[derive(Clone, Debug, Default)]
pub struct Keep(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    store: Arc<Store>,
    key: Key,
    variant_of: Option<Key>,
    /// The credential is not configured any more.
    is_discarded: AtomicBool,
    /// Tokens that were to be written to the disk so far.
    renewals: AtomicU64,
    /// The last of them that was: a write that takes its time must not undo a later one.
    on_disk: Arc<Mutex<u64>>,
}

/// Keeps the condition of one issuer.
#[derive(Clone, Debug, Default)]
pub struct IssuerKeep(Option<(Arc<Store>, Key)>);

impl Keep {
    pub(super) fn new(store: Arc<Store>, key: Key, variant_of: Option<Key>) -> Self {
        Self(Some(Arc::new(Held {
            store,
            key,
            variant_of,
            is_discarded: AtomicBool::new(false),
            renewals: AtomicU64::new(0),
            on_disk: Arc::default(),
        })))
    }

    /// Keeps the state after a success. It is in memory at once, and when this returns on the disk too, unless that
    /// takes too long.
    pub async fn renewed(&self, record: Record) {
        let Some(held) = &self.0 else { return };
        let Some(bytes) = held.put_in_memory(record) else { return };
        let number = held.renewals.fetch_add(1, Ordering::Relaxed) + 1;
        held.put_on_disk(number, bytes).await;
    }

    /// Keeps the state after a failure, in memory. No file is written for it: a reboot is a reason to try again.
    pub fn failed(&self, record: Record) {
        let Some(held) = &self.0 else { return };
        held.put_in_memory(record);
    }

    /// Wipes what is kept, and keeps nothing more: the credential is not configured any more.
    pub fn discard(&self) {
        let Some(held) = &self.0 else { return };
        if !held.is_discarded.swap(true, Ordering::Relaxed) && held.store.release(&held.key) {
            held.remove_file();
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

    async fn put_on_disk(&self, number: u64, bytes: Bytes) {
        let (on_disk, key) = (Arc::clone(&self.on_disk), self.key);
        within_limit(&self.store, move |folder| {
            let mut newest = on_disk.lock().unwrap_or_else(PoisonError::into_inner);
            if *newest > number {
                return Ok(());
            }
            *newest = number;
            folder.write(&key, &bytes)
        })
        .await;
    }

    fn remove_file(&self) {
        let Some(folder) = self.store.folder.clone() else { return };
        let (on_disk, key) = (Arc::clone(&self.on_disk), self.key);
        tokio::task::spawn_blocking(move || {
            // Whatever is still being written is older.
            *on_disk.lock().unwrap_or_else(PoisonError::into_inner) = u64::MAX;
            let _ = folder.remove(&key);
        });
    }
}

impl IssuerKeep {
    pub(super) fn new(store: Arc<Store>, key: Key) -> Self {
        Self(Some((store, key)))
    }

    /// Keeps the condition, in memory.
    pub fn changed(&self, record: &IssuerRecord) {
        let Some((store, key)) = &self.0 else { return };
        store.put(&mut store.lock(), key, &record.encode(&store.now()));
    }
}

impl Store {
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

/// Writes a sealed file, where there is a folder for it.
pub(super) async fn write_file(store: &Store, key: &Key, bytes: Bytes) {
    let key = *key;
    within_limit(store, move |folder| folder.write(&key, &bytes)).await;
}

/// Does what blocks on a thread that may, waits for it as long as a token may wait, and reports how it went.
async fn within_limit(
    store: &Store,
    write: impl FnOnce(&Folder) -> Result<(), FolderError> + Send + 'static,
) {
    let Some(folder) = store.folder.clone() else { return };
    let path = folder.path().to_owned();
    let writing = async {
        // Fails only for a closed semaphore, and nothing closes it.
        let place = Arc::clone(&store.writes).acquire_owned().await.ok();
        let writing = tokio::task::spawn_blocking(move || {
            // Given back when the writing ends, not when nobody waits for it any more.
            let _place = place;
            write(&folder)
        });
        writing.await
    };
    match tokio::time::timeout(DISK_LIMIT, writing).await {
        Ok(Ok(written)) => store.report.file(written.as_ref().copied().map_err(|error| error as _)),
        Ok(Err(_)) => store.report.file(Err(&"a write to the state directory broke off")),
        Err(_) => store.report.slow_disk(&path, DISK_LIMIT),
    }
}

/// Removes sealed files, on a thread that may wait for the disk.
pub(super) fn remove_files(store: &Arc<Store>, keys: Vec<Key>) {
    let Some(folder) = store.folder.clone().filter(|_| !keys.is_empty()) else { return };
    let store = Arc::clone(store);
    tokio::task::spawn_blocking(move || {
        let removed = keys.iter().try_for_each(|key| folder.remove(key));
        if let Err(error) = removed {
            store.report.file(Err(&error));
        }
    });
}

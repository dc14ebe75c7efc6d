//! The folder of sealed files as the daemon's tasks use it: by few threads at a time, the newest order for a file
//! last, no token kept waiting for long, and what could not be done tried again once the disk works.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use super::folder::Folder;
use super::key::Key;
use super::layout::Bytes;
use super::report::Report;

/// How long a token waits to be on the disk before it is handed out all the same. A disk that is only busy is done
/// by then, and callers wait no longer than for a slow provider.
const LIMIT: Duration = Duration::from_secs(2);

/// Orders that are carried out at once. On a disk that hangs each holds a thread.
pub(super) const PLACES: usize = 8;

/// The way to the folder.
#[derive(Clone, Debug)]
pub(super) struct Files(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: Arc<Folder>,
    report: Arc<Report>,
    places: Arc<Semaphore>,
    /// Held for a look or a change, never while the disk is at work.
    orders: Mutex<Orders>,
}

#[derive(Debug, Default)]
struct Orders {
    newest: HashMap<Key, Arc<Order>>,
    /// Files that a thread is at work on.
    under_way: HashSet<Key>,
    /// Files whose newest order could not be carried out.
    failed: HashSet<Key>,
    /// Whether somebody waited in vain, and nothing has been done since.
    is_slow: bool,
}

/// What is to become of a file.
#[derive(Debug)]
enum Order {
    Write(Bytes),
    Remove,
}

impl Files {
    pub(super) fn new(folder: Arc<Folder>, report: Arc<Report>) -> Self {
        let (places, orders) = (Arc::new(Semaphore::new(PLACES)), Mutex::default());
        Self(Arc::new(Shared { folder, report, places, orders }))
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.0.folder
    }

    /// Writes a record, and waits for it as long as a token may wait; not at all while the disk is known to be slow.
    pub(super) async fn write(&self, key: Key, record: Bytes) {
        self.0.orders().newest.insert(key, Arc::new(Order::Write(record)));
        let limit = if self.0.orders().is_slow { Duration::ZERO } else { LIMIT };
        if tokio::time::timeout(limit, carry_out(Arc::clone(&self.0), key)).await.is_err() {
            self.0.waited(&key);
        }
    }

    /// Writes a record for which nobody waits.
    pub(super) fn write_some_time(&self, key: Key, record: Bytes) {
        self.0.orders().newest.insert(key, Arc::new(Order::Write(record)));
        tokio::spawn(carry_out(Arc::clone(&self.0), key));
    }

    /// Removes records. Nobody waits for it.
    pub(super) fn remove(&self, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            self.0.orders().newest.insert(key, Arc::new(Order::Remove));
            tokio::spawn(carry_out(Arc::clone(&self.0), key));
        }
    }

    /// All places for orders, when none is being carried out.
    #[cfg(test)]
    pub(super) async fn all_places(&self) -> OwnedSemaphorePermit {
        let all = u32::try_from(PLACES).unwrap();
        Arc::clone(&self.0.places).acquire_many_owned(all).await.unwrap()
    }
}

/// Carries out the newest order for a file, on a thread that may block, and then what has failed before.
async fn carry_out(shared: Arc<Shared>, key: Key) {
    let Some(place) = shared.place().await else { return };
    let done = spawn_blocking(move || {
        let mut next = Some(key);
        while let Some(key) = next {
            next = shared.carry_out(key);
        }
        // Given back when it is done, not when nobody waits for it any more; and last, so that nothing is left of an
        // order whose place is free.
        drop(shared);
        drop(place);
    });
    // Ends early only with the daemon.
    let _ = done.await;
}

impl Shared {
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // Fails only for a closed semaphore, and nothing closes it.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Carries out the newest order for a file, and tells which file is worth another try after that.
    fn carry_out(&self, key: Key) -> Option<Key> {
        let order = {
            let mut orders = self.orders();
            let order = Arc::clone(orders.newest.get(&key)?);
            // Whoever is at work on it looks for a newer order when done.
            if !orders.under_way.insert(key) {
                return None;
            }
            order
        };
        let done = match &*order {
            Order::Write(record) => self.folder.write(&key, record),
            Order::Remove => self.folder.remove(&key),
        };
        let mut orders = self.orders();
        orders.under_way.remove(&key);
        let is_newest = orders.newest.get(&key).is_some_and(|newest| Arc::ptr_eq(newest, &order));
        let mut next = None;
        if done.is_ok() {
            orders.is_slow = false;
            orders.failed.remove(&key);
            if is_newest {
                orders.newest.remove(&key);
            }
            next = orders.failed.iter().next().copied();
        } else {
            orders.failed.insert(key);
        }
        let is_all_done = orders.failed.is_empty();
        drop(orders);
        match done {
            Err(error) => self.report.files(Err(&error)),
            Ok(()) if is_all_done => self.report.files(Ok(())),
            Ok(()) => (),
        }
        if is_newest { next } else { Some(key) }
    }

    /// Notes that somebody waited for long enough, unless it was done in this very moment.
    fn waited(&self, key: &Key) {
        let mut orders = self.orders();
        let has_just_failed = orders.failed.contains(key) && !orders.under_way.contains(key);
        if !orders.newest.contains_key(key) || has_just_failed {
            return;
        }
        orders.is_slow = true;
        drop(orders);
        self.report.files(Err(&format!(
            "{}: writing takes more than {} s; tokens are handed out before they are on the disk; look into the disk",
            self.folder.path().display(),
            LIMIT.as_secs()
        )));
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use tempfile::TempDir;
    use tokend_protocol::Secret;
    use tokio::task::yield_now;
    use tokio::time::timeout;
    use zeroize::Zeroizing;

    use super::*;
    use crate::store::sealed::Sealer;

    /// More than any of it takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    const KEY: Key = Key::from_bytes([1; 32]);

    #[tokio::test]
    async fn a_file_that_hangs_takes_one_place_and_has_its_newest_record_in_the_end() {
        let disk = TempDir::new().unwrap();
        let sealer = Sealer::new(&Secret::from("0123456789abcdef0123456789abcdef".to_owned())).unwrap();
        let files = Files::new(Arc::new(Folder::new(disk.path(), sealer)), Arc::default());
        let hanging = files.folder().hang();
        for record in ["one", "two", "three"] {
            files.write_some_time(KEY, Zeroizing::new(record.as_bytes().to_vec()));
            let taken_up = async {
                yield_now().await;
                while !files.0.orders().under_way.contains(&KEY) {
                    yield_now().await;
                }
            };
            timeout(PATIENCE, taken_up).await.expect("a thread takes it up");
        }
        let others = Arc::clone(&files.0.places).acquire_many_owned(7);
        drop(timeout(PATIENCE, others).await.expect("all but one are for other files"));
        drop(hanging);
        drop(files.all_places().await);
        let mut records = Vec::new();
        let take = |record: Bytes| {
            records.push(record.to_vec());
            ControlFlow::Continue(())
        };
        files.folder().read(&HashSet::new(), take).unwrap();
        assert_eq!(records, [b"three"]);
    }
}

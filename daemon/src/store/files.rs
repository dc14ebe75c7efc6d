//! Writes and removes sealed files in the background: one at a time, the newest state of each file only. A token waits
//! for its file for a bounded time. A write that failed is repeated after the next success, and after a while.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::task::spawn_blocking;

use super::folder::Folder;
use super::note;
use super::record::Key;

/// How long a new token waits for its file. Afterwards it is handed out before it is on the disk.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// The time between attempts at writes that failed, while no other write succeeds.
const RETRY_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Files {
    pub(super) folder: Folder,
    /// Never locked while the disk is at work.
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    pending: HashMap<Key, Pending>,
    /// The pending files in the order in which they are worked on, so that each has its turn.
    order: VecDeque<Key>,
    /// The files whose last attempt failed, and that have no newer state. They become pending again.
    failed: HashMap<Key, Pending>,
    pub(super) is_working: bool,
    /// Whether a token waited for [`WRITE_LIMIT`], and no write has succeeded since.
    is_slow: bool,
    /// Why files are not written, until no file is left that failed.
    pub(super) fault: Option<String>,
}

/// The newest state of a file: a record, or none.
#[derive(Debug, Default)]
struct Pending {
    record: Option<Vec<u8>>,
    /// Dropping a sender ends the wait of a token.
    waiters: Vec<oneshot::Sender<()>>,
}

impl Files {
    pub(super) fn new(folder: Folder) -> Arc<Self> {
        let files = Arc::new(Self { folder, queue: Mutex::default() });
        let weak = Arc::downgrade(&files);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETRY_EVERY).await;
                let Some(files) = weak.upgrade() else { return };
                files.work(Queue::retry);
            }
        });
        files
    }

    /// Writes a record, and waits for the disk for up to two seconds; not at all while it is known to be slow.
    pub(super) async fn write(self: &Arc<Self>, key: Key, record: Vec<u8>) {
        let mut written = self.submit(key, Some(record));
        let is_slow = self.queue().is_slow;
        if is_slow || tokio::time::timeout(WRITE_LIMIT, &mut written).await.is_ok() {
            return;
        }
        let mut queue = self.queue();
        // The write may have ended just now.
        if written.try_recv() == Err(TryRecvError::Empty) {
            queue.is_slow = true;
            let fault = format!(
                "{}: writing takes more than {} s; tokens are handed out before they are on the disk; check the disk",
                self.folder.path.display(),
                WRITE_LIMIT.as_secs()
            );
            note(&mut queue.fault, Some(fault), "reboot");
        }
    }

    /// Writes a record, or removes the one with this key, in the background. The receiver ends after the attempt.
    pub(super) fn submit(self: &Arc<Self>, key: Key, record: Option<Vec<u8>>) -> oneshot::Receiver<()> {
        let (waiter, attempted) = oneshot::channel();
        self.work(|queue| {
            queue.failed.remove(&key);
            if !queue.pending.contains_key(&key) {
                queue.order.push_back(key);
            }
            let pending = queue.pending.entry(key).or_default();
            pending.record = record;
            pending.waiters.push(waiter);
        });
        attempted
    }

    /// Changes the queue, and starts a thread for it if there is work and none is running.
    fn work(self: &Arc<Self>, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.queue();
        change(&mut queue);
        if !queue.pending.is_empty() && !std::mem::replace(&mut queue.is_working, true) {
            let this = Arc::clone(self);
            spawn_blocking(move || while this.work_on_next() {});
        }
    }

    /// Writes or removes the file whose turn it is. Returns whether there was one.
    fn work_on_next(&self) -> bool {
        let mut queue = self.queue();
        let next = queue.order.pop_front().and_then(|key| queue.pending.remove_entry(&key));
        let Some((key, Pending { record, waiters })) = next else {
            queue.is_working = false;
            return false;
        };
        drop(queue);
        let done = match &record {
            Some(record) => self.folder.write(&key, record),
            None => self.folder.remove(&key),
        };
        let mut queue = self.queue();
        drop(waiters);
        match done {
            Ok(()) => {
                queue.is_slow = false;
                if queue.pending.is_empty() && queue.failed.is_empty() {
                    note(&mut queue.fault, None, "reboot");
                }
                queue.retry();
            }
            Err(fault) => {
                note(&mut queue.fault, Some(fault), "reboot");
                if !queue.pending.contains_key(&key) {
                    queue.failed.insert(key, Pending { record, waiters: Vec::new() });
                }
            }
        }
        true
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn retry(&mut self) {
        self.order.extend(self.failed.keys());
        self.pending.extend(self.failed.drain());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;
    use tokend_protocol::Secret;
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;
    use crate::store::sealed::Sealer;

    impl Files {
        /// Waits until no thread works on the files or holds their folder.
        pub(in crate::store) async fn done(self: &Arc<Self>) {
            while self.queue().is_working || Arc::strong_count(self) > 1 {
                yield_now().await;
            }
        }
    }

    /// More than any of it takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn key(number: u8) -> Key {
        Key([number; 32])
    }

    fn sealer() -> Sealer {
        Sealer::new(&Secret::from("0123456789abcdef0123456789abcdef".to_owned())).unwrap()
    }

    fn files(disk: &TempDir) -> Arc<Files> {
        Files::new(Folder::new(disk.path(), sealer()))
    }

    fn records(files: &Files) -> HashMap<Key, Vec<u8>> {
        let mut records = HashMap::new();
        let take = |key: Key, record: Vec<u8>| {
            records.insert(key, record);
            true
        };
        files.folder.read(take).unwrap();
        records
    }

    #[tokio::test]
    async fn after_a_hang_each_file_has_its_newest_record() {
        let disk = TempDir::new().unwrap();
        let files = files(&disk);
        let hanging = files.folder.hang();
        for record in ["one", "two", "three"] {
            files.submit(key(1), Some(record.as_bytes().to_vec()));
            let taken_up = async {
                while record == "one" && files.queue().pending.contains_key(&key(1)) {
                    yield_now().await;
                }
            };
            timeout(PATIENCE, taken_up).await.expect("a thread takes it up");
        }
        files.submit(key(2), Some(b"of another file".to_vec()));
        drop(hanging);
        timeout(PATIENCE, files.done()).await.unwrap();
        let expected = [(key(1), b"three".to_vec()), (key(2), b"of another file".to_vec())];
        assert_eq!(records(&files), expected.into());
    }

    #[tokio::test]
    async fn a_file_that_keeps_failing_holds_up_no_other_retry() {
        let disk = TempDir::new().unwrap();
        let place = disk.path().join("tokens");
        fs::write(&place, b"a file where the folder should be").unwrap();
        let files = files(&disk);
        for number in 1..=8 {
            files.write(key(number), vec![number]).await;
        }
        assert_eq!(files.queue().failed.len(), 8);
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        // A damaged file that cannot be moved aside, because there are nine of its name already.
        let name = sealer().name(&key(3));
        let ends = (1..=9).map(|number| format!(".{number}.damaged"));
        for end in ends.chain([String::new()]) {
            fs::write(place.join(format!("{name}{end}")), b"spoilt").unwrap();
        }
        files.write(key(9), vec![9]).await;
        timeout(PATIENCE, files.done()).await.unwrap();
        let mut written: Vec<u8> = records(&files).into_values().flatten().collect();
        written.sort_unstable();
        assert_eq!(written, [1, 2, 4, 5, 6, 7, 8, 9]);
        let failed: Vec<Key> = files.queue().failed.keys().copied().collect();
        assert_eq!(failed, [key(3)], "it is tried again after the next success");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_fault_of_the_disk_the_files_are_written_although_nothing_else_is() {
        let disk = TempDir::new().unwrap();
        let place = disk.path().join("tokens");
        fs::write(&place, b"a file where the folder should be").unwrap();
        let files = files(&disk);
        for number in 1..=3 {
            files.write(key(number), vec![number]).await;
        }
        fs::remove_file(&place).unwrap();
        tokio::time::sleep(RETRY_EVERY + Duration::from_secs(1)).await;
        timeout(PATIENCE, files.done()).await.unwrap();
        assert_eq!(records(&files).len(), 3);
        assert_eq!(files.queue().fault, None, "the status has no fault any more");
    }

    #[tokio::test]
    async fn each_file_has_its_turn_however_often_others_change() {
        let state_dir = tempfile::tempdir().unwrap();
        let sealer = Sealer::new(&"k".repeat(32).into()).unwrap();
        let files = Files::new(Folder::new(state_dir.path(), sealer));
        // No thread takes the work away.
        files.queue().is_working = true;
        let key = |number: u8| Key([number; 32]);
        for number in (0..20).chain(0..20) {
            drop(files.submit(key(number), Some(vec![number])));
        }
        for number in 0..20 {
            assert!(files.work_on_next());
            assert!(!files.queue().pending.contains_key(&key(number)), "file {number} had its turn");
            drop(files.submit(key(0), Some(vec![0])));
        }
    }
}

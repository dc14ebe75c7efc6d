//! What outlives the process: the tokens with their schedules, so that a crash, a restart or an upgrade costs the
//! provider no request and no caller a token.
//!
//! There are two media. The first is memory that the service manager keeps open while the daemon is not running; it
//! is written at every change, before others see it. The second is a folder of sealed files, for hosts on which
//! tokens are to survive a reboot; it is written where there is a state key, and only for tokens.
//!
//! Neither may ever stop the daemon. What cannot be kept is reported once, and the token is served nevertheless;
//! what cannot be read is as if it had never been there; and nothing that is found is trusted beyond what its
//! checksum or seal proves.

mod fields;
mod files;
pub mod folder;
mod keep;
pub mod key;
pub mod layout;
pub mod memory;
pub mod moment;
mod open;
pub mod record;
mod report;
pub mod sealed;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use self::files::Files;
use self::folder::Folder;
pub use self::keep::{RecordWriter, ThrottleWriter};
use self::key::Key;
use self::layout::Bytes;
use self::memory::{Memory, Recovered};
use self::moment::{BootId, Moment, Uptime};
pub use self::open::{FdStore, Media};
use self::record::{Record, ThrottleRecord};
use self::report::Report;
use crate::clock::Clock;
use crate::fingerprint::NoRandomness;

/// What outlives the process.
#[derive(Debug)]
pub struct Store {
    clock: Clock,
    boot: Option<BootId>,
    files: Option<Files>,
    report: Arc<Report>,
    /// Held for a look or a change, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    memory: Option<Memory>,
    /// What was found and has not been asked for yet.
    found: HashMap<Key, Found>,
    /// How many credentials there are of a key: there may be two where a variant has two names.
    claims: HashMap<Key, usize>,
    /// What was found on the disk.
    on_disk: HashSet<Key>,
    /// [`PreviousExit::Orderly`] where the process before ended because it was told to.
    previous_exit: PreviousExit,
}

/// How the process before this one ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreviousExit {
    /// It crashed or was killed. That ends no back-off, or a crash loop would be an attack on the provider.
    #[default]
    Crashed,
    /// It was told to stop, as by `systemctl restart`. That ends every back-off, as a reload does.
    Orderly,
}

/// A record as it was found.
#[derive(Debug)]
struct Found {
    bytes: Bytes,
    uptime: Uptime,
}

impl Store {
    /// One that keeps nothing.
    pub fn forgetful(clock: Clock) -> Arc<Self> {
        Arc::new(Self::new(clock, None, State::default(), Report::default()))
    }

    /// One that keeps records in this memory alone, beginning with what is in it.
    pub fn in_memory(clock: Clock, left: Recovered) -> Arc<Self> {
        let mut state = State::default();
        state.take(left);
        Arc::new(Self::new(clock, None, state, Report::default()))
    }

    fn new(clock: Clock, folder: Option<Arc<Folder>>, state: State, report: Report) -> Self {
        let boot = moment::boot_id();
        let report = Arc::new(report);
        let files = folder.map(|folder| Files::new(folder, Arc::clone(&report)));
        Self { clock, boot, files, report, state: Mutex::new(state) }
    }

    /// The record of a credential, if there is one, and the way to keep its next ones.
    pub fn claim(self: &Arc<Self>, key: Key, variant_of: Option<Key>) -> (RecordWriter, Option<Record>) {
        let mut state = self.lock();
        *state.claims.entry(key).or_default() += 1;
        let found = state.find(&key);
        let now = self.now();
        let record = found.as_ref().and_then(|found| Record::decode(&found.bytes, &key, &now, found.uptime));
        let record = record.map(|record| record.as_of(now.at));
        match (&found, &record) {
            // From the disk, or from another uptime: as it is now, it is kept in memory.
            (Some(_), Some(record)) => {
                let bytes = record.encode(&key, &now);
                self.put(&mut state, &key, &bytes);
                if record.token.is_some() && !state.on_disk.contains(&key) {
                    self.write_some_time(key, bytes);
                }
            }
            (Some(_), None) => self.wipe(&mut state, &key),
            (None, _) => (),
        }
        drop(state);
        if record.as_ref().is_some_and(|record| record.is_usable(now.at)) {
            self.report.restored();
        }
        if let Some(files) = &self.files {
            files.folder().tell_of_damage(&key);
        }
        (RecordWriter::new(Arc::clone(self), key, variant_of), record)
    }

    /// The condition of an issuer, if it was kept, and the way to keep it.
    pub fn claim_issuer(self: &Arc<Self>, origin: &str) -> (ThrottleWriter, Option<ThrottleRecord>) {
        let key = Key::of_issuer(origin);
        let now = self.now();
        let found = self.lock().found.remove(&key);
        let record = found.and_then(|found| ThrottleRecord::decode(&found.bytes, &now, found.uptime));
        (ThrottleWriter::new(Arc::clone(self), key), record)
    }

    /// The key of fingerprints: the one before, so that a fingerprint in a log still names the same token.
    pub async fn fingerprint_key(self: &Arc<Self>) -> Result<Zeroizing<[u8; 32]>, NoRandomness> {
        let key = Key::of_the("fingerprint key");
        let found = self.lock().found.remove(&key);
        if let Some(secret) = found.and_then(|found| record::decode_fingerprint_key(&found.bytes)) {
            let bytes = record::encode_fingerprint_key(&secret, &key, &self.now());
            let mut state = self.lock();
            self.put(&mut state, &key, &bytes);
            if !state.on_disk.contains(&key) {
                self.write_some_time(key, bytes);
            }
            return Ok(secret);
        }
        let mut secret = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(secret.as_mut_slice()).map_err(|_| NoRandomness)?;
        let bytes = record::encode_fingerprint_key(&secret, &key, &self.now());
        self.put(&mut self.lock(), &key, &bytes);
        if let Some(files) = &self.files {
            files.write(key, bytes).await;
        }
        Ok(secret)
    }

    /// What the start means for those that wait after a failure: where the process before was told to end, as by
    /// `systemctl restart`, whoever told it may have put something right.
    pub fn previous_exit(&self) -> PreviousExit {
        self.lock().previous_exit
    }

    /// Notes that the process ends because it was told to.
    pub fn note_orderly_end(&self) {
        let bytes = record::encode_mark(&self.now());
        self.put(&mut self.lock(), &orderly_end(), &bytes);
    }

    /// Wipes what was found and belongs to no credential: its token is not configured any more. Variants are kept
    /// while what they are variants of is there, because nobody may have asked for them again yet.
    pub fn drop_unclaimed(self: &Arc<Self>) {
        let mut state = self.lock();
        let State { found, claims, .. } = &mut *state;
        let now = self.now();
        let is_wanted = |key: &Key, found: &Found| {
            let record = Record::decode(&found.bytes, key, &now, found.uptime);
            record.is_some_and(|record| {
                record.says_anything(now.at)
                    && record.variant_of.is_some_and(|base| claims.contains_key(&base))
            })
        };
        let unwanted: Vec<Key> =
            found.iter().filter(|(key, found)| !is_wanted(key, found)).map(|(key, _)| *key).collect();
        for key in &unwanted {
            state.found.remove(key);
            self.wipe(&mut state, key);
        }
        if let Some(folder) = self.files.as_ref().map(Files::folder) {
            report::foreign_files(folder.path(), folder.foreign(state.claims.keys()));
        }
        drop(state);
        if let Some(files) = &self.files {
            files.remove(unwanted);
        }
    }

    /// What there is to say about it, as names and values for people.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        self.report.facts(self.files.as_ref().map(Files::folder))
    }

    fn note_how_the_last_one_ended(&self) {
        let mut state = self.lock();
        if state.found.remove(&orderly_end()).is_some() {
            state.previous_exit = PreviousExit::Orderly;
        }
        self.wipe(&mut state, &orderly_end());
    }

    fn write_some_time(&self, key: Key, bytes: Bytes) {
        if let Some(files) = &self.files {
            files.write_some_time(key, bytes);
        }
    }

    fn now(&self) -> Moment {
        Moment::now(&self.clock, self.boot)
    }

    fn put(&self, state: &mut State, key: &Key, record: &[u8]) {
        let Some(memory) = &mut state.memory else { return };
        self.report.memory(memory.put(key, record));
    }

    fn wipe(&self, state: &mut State, key: &Key) {
        let Some(memory) = &mut state.memory else { return };
        self.report.memory(memory.remove(key).map_err(Into::into));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, left: Recovered) {
        let found = |bytes| Found { bytes, uptime: Uptime::SameBoot };
        self.found.extend(left.records.into_iter().map(|(key, bytes)| (key, found(bytes))));
        self.memory = Some(left.memory);
    }

    fn replace_memory(&mut self, mut memory: Memory, report: &Report) {
        for (key, found) in &self.found {
            report.memory(memory.put(key, &found.bytes));
        }
        self.memory = Some(memory);
    }

    /// A record that was found, and is not needed a second time; one that is claimed again, as it is in memory now.
    fn find(&mut self, key: &Key) -> Option<Found> {
        let now = || self.memory.as_ref()?.record(key).map(|bytes| Found { bytes, uptime: Uptime::SameBoot });
        self.found.remove(key).or_else(now)
    }

    /// What is in memory is never older than what is on the disk.
    fn take_from_disk(&mut self, bytes: Bytes) {
        if let Some(key) = record::key_of(&bytes) {
            self.on_disk.insert(key);
            self.found.entry(key).or_insert(Found { bytes, uptime: Uptime::Unknown });
        }
    }
}

/// The mark of a process that ended because it was told to.
fn orderly_end() -> Key {
    Key::of_the("orderly end")
}

#[cfg(test)]
mod tests;

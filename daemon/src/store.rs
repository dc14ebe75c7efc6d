//! What outlives the process: tokens with their schedules, so that a crash, a restart or an upgrade costs no request
//! and no token.
//!
//! Records are stored in two places. The first is memory that the service manager keeps open while the daemon is not
//! running. It is written at every change, before callers see the change. The second is a folder of sealed files, for
//! tokens that survive a reboot. It is written only if there is a state key, and only for tokens.
//!
//! Neither may stop the daemon. A record that cannot be stored is reported once, and its token is served nevertheless.
//! A record that cannot be read is treated as if it had never been there. Nothing is used before its checksum or seal
//! was found right.

mod files;
pub mod folder;
pub mod key;
pub mod memory;
mod open;
pub mod record;
mod report;
pub mod sealed;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::{SecureRandom, SystemRandom};

use self::files::Files;
use self::key::Key;
use self::memory::{Memory, Recovered};
pub use self::open::{FdStore, Media};
use self::record::{Moment, Record, ThrottleRecord, Uptime};
use self::report::Report;
pub use self::writer::{RecordWriter, ThrottleWriter};
use crate::clock::Clock;
use crate::fingerprint::NoRandomness;

/// Stores the state of credentials and issuers, and finds what the process before stored.
#[derive(Debug)]
pub struct Store {
    clock: Clock,
    files: Option<Arc<Files>>,
    report: Arc<Report>,
    /// Never locked across an await, nor while the disk is at work.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    memory: Option<Memory>,
    /// What the process before left and no credential has claimed yet.
    found: HashMap<Key, Found>,
    /// Whether what is found on the disk comes too late.
    has_started: bool,
    /// How many credentials have a key. There are two where a variant has two names.
    claims: HashMap<Key, usize>,
    previous_exit: PreviousExit,
}

/// How the process before this one ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreviousExit {
    /// It crashed or was killed. Back-offs stay in force, or a crash loop would be an attack on the provider.
    #[default]
    Crashed,
    /// It was told to stop, as by `systemctl restart`. That ends every back-off, as a reload does.
    Orderly,
}

#[derive(Debug)]
struct Found {
    bytes: Vec<u8>,
    uptime: Uptime,
    on_disk: bool,
}

impl Store {
    /// Creates a store that stores nothing.
    pub fn forgetful(clock: Clock) -> Arc<Self> {
        Self::new(clock, None, State::default(), Arc::default())
    }

    /// Creates a store with memory only.
    pub fn in_memory(clock: Clock, recovered: Recovered) -> Arc<Self> {
        let mut state = State::default();
        state.take(recovered);
        Self::new(clock, None, state, Arc::default())
    }

    fn new(clock: Clock, files: Option<Arc<Files>>, mut state: State, report: Arc<Report>) -> Arc<Self> {
        if state.found.remove(&orderly_end()).is_some() {
            state.previous_exit = PreviousExit::Orderly;
        }
        let store = Self { clock, files, report, state: Mutex::new(state) };
        store.wipe(&mut store.lock(), &orderly_end());
        Arc::new(store)
    }

    /// The record of a credential, if there is one, and the handle for storing its next ones.
    pub fn claim(self: &Arc<Self>, key: Key, variant_of: Option<Key>) -> (RecordWriter, Option<Record>) {
        let now = self.now();
        let mut state = self.lock();
        *state.claims.entry(key).or_default() += 1;
        let found = state.find(&key);
        let record = found.as_ref().and_then(|found| Record::decode(&found.bytes, now, found.uptime));
        match (&found, &record) {
            // It may be from the disk, or its token may have expired: memory gets it as it is now.
            (Some(found), Some(record)) => {
                let bytes = record::encode(record, now);
                self.put(&mut state, &key, &bytes);
                if record.token.is_some() && !found.on_disk {
                    self.write_in_background(key, bytes);
                }
            }
            (Some(_), None) => self.wipe(&mut state, &key),
            (None, _) => (),
        }
        drop(state);
        if record.as_ref().is_some_and(|record| record.token.is_some()) {
            self.report.restored();
        }
        (RecordWriter::new(Arc::clone(self), key, variant_of), record)
    }

    /// The condition of an issuer, if it was stored, and the handle for storing it.
    pub fn claim_issuer(self: &Arc<Self>, origin: &str) -> (ThrottleWriter, Option<ThrottleRecord>) {
        let key = Key::of_issuer(origin);
        let found = self.lock().found.remove(&key);
        let record = found.and_then(|found| ThrottleRecord::decode(&found.bytes, self.now(), found.uptime));
        (ThrottleWriter::new(Arc::clone(self), key), record)
    }

    /// The key of fingerprints. It is the one of the process before, so that a fingerprint in a log still names the same
    /// token.
    pub async fn fingerprint_key(&self) -> Result<[u8; 32], NoRandomness> {
        let key = Key::named("fingerprint key");
        let found = self.lock().found.remove(&key);
        let on_disk = found.as_ref().map(|found| found.on_disk);
        let known: Option<[u8; 32]> = found.and_then(|found| record::decode(&found.bytes));
        let mut secret = known.unwrap_or_default();
        if known.is_none() {
            SystemRandom::new().fill(&mut secret).map_err(|_| NoRandomness)?;
        }
        let bytes = record::encode(&secret, self.now());
        self.put(&mut self.lock(), &key, &bytes);
        match (known, on_disk, &self.files) {
            (None, _, Some(files)) => files.write(key, bytes).await,
            (Some(_), Some(false), _) => self.write_in_background(key, bytes),
            _ => (),
        }
        Ok(secret)
    }

    /// How the process before ended. If it was told to end, the operator may have put something right.
    pub fn previous_exit(&self) -> PreviousExit {
        self.lock().previous_exit
    }

    /// Notes that the process ends because it was told to.
    pub fn note_orderly_end(&self) {
        self.put(&mut self.lock(), &orderly_end(), &record::encode(&(), self.now()));
    }

    /// Wipes the records of tokens that are not configured any more. Variants stay while their base token is there,
    /// because a caller may ask for them again.
    pub fn drop_unclaimed(&self) {
        let now = self.now();
        let mut state = self.lock();
        let State { found, claims, .. } = &mut *state;
        let is_wanted = |found: &Found| {
            let record = Record::decode(&found.bytes, now, found.uptime);
            record.is_some_and(|record| {
                record.matters(now.at) && record.variant_of.is_some_and(|base| claims.contains_key(&base))
            })
        };
        let unwanted: Vec<Key> = found.extract_if(|_, found| !is_wanted(found)).map(|(key, _)| key).collect();
        for key in &unwanted {
            self.wipe(&mut state, key);
        }
        drop(state);
        if let Some(files) = &self.files {
            files.remove(unwanted);
        }
    }

    /// The condition of the store, as names and values for people.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        self.report.facts(self.files.as_ref().map(|files| &files.folder))
    }

    /// Whether several credentials have this key, as where a variant of one token is the whole of another.
    fn is_shared(&self, key: &Key) -> bool {
        self.lock().claims.get(key).is_some_and(|claims| *claims > 1)
    }

    /// Removes a record, unless another credential has the same key.
    fn release(&self, key: Key) {
        let mut state = self.lock();
        match state.claims.get_mut(&key) {
            Some(claims) if *claims > 1 => *claims -= 1,
            _ => {
                state.claims.remove(&key);
                self.wipe(&mut state, &key);
                drop(state);
                if let Some(files) = &self.files {
                    files.remove([key]);
                }
            }
        }
    }

    fn write_in_background(&self, key: Key, bytes: Vec<u8>) {
        if let Some(files) = &self.files {
            files.write_in_background(key, bytes);
        }
    }

    fn now(&self) -> Moment {
        Moment::now(&self.clock)
    }

    fn put(&self, state: &mut State, key: &Key, record: &[u8]) {
        if let Some(memory) = &mut state.memory {
            self.report.memory(memory.put(key, record));
        }
    }

    fn wipe(&self, state: &mut State, key: &Key) {
        if let Some(memory) = &mut state.memory {
            self.report.memory(memory.remove(key));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The record that the process before left, or the current one where another credential has claimed it already.
    fn find(&mut self, key: &Key) -> Option<Found> {
        let current = || {
            let bytes = self.memory.as_ref()?.record(key)?;
            Some(Found { bytes, uptime: Uptime::SameBoot, on_disk: true })
        };
        self.found.remove(key).or_else(current)
    }
}

/// The key of the mark that a process leaves which ends because it was told to.
fn orderly_end() -> Key {
    Key::named("orderly end")
}

#[cfg(test)]
mod tests;

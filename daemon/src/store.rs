//! Persists tokens with their schedules, so that a crash, a restart or an upgrade costs no token and no request.
//!
//! Records are stored in memory that the service manager keeps open while the daemon is not running: at every change,
//! before callers see the change. With a state key, tokens are also stored in sealed files, which survive a reboot.
//!
//! Neither place may stop the daemon. A record that cannot be stored is reported once, and its token is served. A
//! record with a wrong checksum or seal is ignored.

mod files;
mod folder;
pub mod memory;
pub mod record;
pub mod sealed;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::files::Files;
use self::folder::Folder;
use self::memory::{Memory, Recovered};
use self::record::{Key, Moment, Record, ThrottleRecord};
pub use self::record::{RecordWriter, ThrottleWriter};
use self::sealed::Sealer;
use crate::clock::Clock;
use crate::fingerprint::NoRandomness;
use crate::secret_source::SecretSource;

/// How long the start may take to read sealed files. The service manager waits for longer.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Stores the state of credentials and throttles, and finds what the previous process stored.
#[derive(Debug)]
pub struct Store {
    clock: Clock,
    files: Option<Arc<Files>>,
    pub previous_exit: PreviousExit,
    /// Never locked across an await, or while the disk is accessed.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    memory: Option<Memory>,
    /// Records of the previous process that no credential has claimed yet.
    found: HashMap<Key, Found>,
    /// How many credentials share a key. Two tokens with equal variants share one.
    claims: HashMap<Key, u32>,
    /// Whether the service manager certainly keeps the memory; `None` without a service manager.
    is_kept: Option<bool>,
    /// How many tokens were still valid.
    restored: usize,
    memory_fault: Option<String>,
    /// Why the state key is not used.
    key_fault: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreviousExit {
    /// The process crashed or was killed. Back-offs stay in force, so that a crash loop does not flood the provider.
    #[default]
    Crashed,
    /// The process was told to stop, as by `systemctl restart`. That ends every back-off, as a reload does.
    Orderly,
}

/// Whether a service manager started the daemon, and keeps descriptors while the daemon is not running.
#[derive(Debug)]
pub enum FdStore {
    Absent,
    Present {
        /// The memory that the previous process left with it.
        left: Option<OwnedFd>,
        /// Whether it certainly keeps descriptors. Only systemd 254 and later announce it (`$FDSTORE`).
        is_proved: bool,
    },
}

#[derive(Debug)]
struct Found {
    bytes: Vec<u8>,
    /// Whether the host may have rebooted since it was written.
    may_have_rebooted: bool,
    on_disk: bool,
}

impl Store {
    /// A store that stores nothing.
    pub fn forgetful(clock: Clock) -> Arc<Self> {
        Self::new(clock, None, State::default())
    }

    /// Opens what the previous process left. Faults are reported, and are no reason not to start. `keep` gives the
    /// service manager a descriptor.
    pub async fn open(
        clock: Clock,
        manager: FdStore,
        keep: fn(BorrowedFd<'_>),
        state_dir: &Path,
        state_key: Option<&SecretSource>,
    ) -> Arc<Self> {
        let (mut state, mut files) = (State::default(), None);
        match manager {
            FdStore::Absent => {
                tracing::info!("no service manager keeps tokens while the daemon does not run");
            }
            FdStore::Present { left, is_proved } => state.open_memory(left, is_proved, keep),
        }
        if let Some(source) = state_key {
            let secret = source.read().await.map_err(|error| error.to_string());
            let sealer = secret
                .and_then(|secret| Sealer::new(&secret).map_err(|reason| format!("{source}: {reason}")))
                .map_err(|fault| format!("daemon.state_key: {fault}; put it right, then restart the daemon"));
            match sealer {
                Ok(sealer) => files = Some(Files::new(Folder::new(state_dir, sealer))),
                Err(fault) => note(&mut state.key_fault, Some(fault), "reboot"),
            }
        }
        let store = Self::new(clock, files, state);
        store.read_folder().await;
        store
    }

    fn new(clock: Clock, files: Option<Arc<Files>>, mut state: State) -> Arc<Self> {
        let end = state.found.remove(&orderly_end());
        let previous_exit = end.map_or(PreviousExit::Crashed, |_| PreviousExit::Orderly);
        state.write(|memory| memory.remove(&orderly_end()));
        Arc::new(Self { clock, files, previous_exit, state: Mutex::new(state) })
    }

    /// Takes over the records of the folder, as far as they are read in time. Memory has the same or newer ones.
    async fn read_folder(&self) {
        let Some(files) = &self.files else { return };
        let (reader, (sender, mut records)) = (Arc::clone(files), mpsc::channel(16));
        let send = move |key, bytes| sender.blocking_send((key, bytes)).is_ok();
        let reading = spawn_blocking(move || reader.folder.read(send));
        let taking_over = async {
            while let Some((key, bytes)) = records.recv().await {
                let found = || Found { bytes, may_have_rebooted: true, on_disk: true };
                self.lock().found.entry(key).or_insert_with(found).on_disk = true;
            }
            reading.await
        };
        let fault = match timeout(READ_LIMIT, taking_over).await {
            Ok(Ok(read)) => read.err(),
            Ok(Err(_)) => Some("reading the state directory broke off".to_owned()),
            Err(_) => Some(format!(
                "{}: reading takes more than {} s; tokens that were not read are asked for anew; check the disk",
                files.folder.path.display(),
                READ_LIMIT.as_secs()
            )),
        };
        note(&mut files.queue().fault, fault, "reboot");
    }

    /// The record of a credential, if there is one, and the handle for storing its next ones.
    pub fn claim(self: &Arc<Self>, key: Key, variant_of: Option<Key>) -> (RecordWriter, Option<Record>) {
        let now = self.now();
        let mut state = self.lock();
        *state.claims.entry(key).or_default() += 1;
        let record = state.find(&key).and_then(|found| {
            let Some(record) = Record::decode(&found.bytes, now, found.may_have_rebooted) else {
                state.write(|memory| memory.remove(&key));
                return None;
            };
            // Stored again, because it may be from the disk, or its token may have expired.
            let bytes = record::encode(&record, now);
            state.write(|memory| memory.put(&key, &bytes));
            if record.token.is_some() {
                state.restored += 1;
                if !found.on_disk {
                    self.submit(key, Some(bytes));
                }
            }
            Some(record)
        });
        (RecordWriter(Some((Arc::clone(self), key, variant_of.map(Box::new)))), record)
    }

    /// The stored state of a throttle of a host or a token endpoint, and the handle for storing it.
    pub fn claim_throttle(self: &Arc<Self>, name: &str) -> (ThrottleWriter, Option<ThrottleRecord>) {
        let key = Key::of_throttle(name);
        let found = self.lock().found.remove(&key);
        let record =
            found.and_then(|found| ThrottleRecord::decode(&found.bytes, self.now(), found.may_have_rebooted));
        (ThrottleWriter(Some((Arc::clone(self), key))), record)
    }

    /// The key of fingerprints: that of the previous process, so that a fingerprint in a log still names the same token.
    pub async fn fingerprint_key(&self) -> Result<[u8; 32], NoRandomness> {
        let key = Key::named("fingerprint key");
        let found = self.lock().found.remove(&key);
        let on_disk = found.as_ref().is_some_and(|found| found.on_disk);
        let known = found.and_then(|found| record::decode(&found.bytes));
        let mut secret: [u8; 32] = known.unwrap_or_default();
        if known.is_none() {
            SystemRandom::new().fill(&mut secret).map_err(|_| NoRandomness)?;
        }
        let bytes = record::encode(&secret, self.now());
        self.lock().write(|memory| memory.put(&key, &bytes));
        if let Some(files) = self.files.as_ref().filter(|_| known.is_none() || !on_disk) {
            files.write(key, bytes).await;
        }
        Ok(secret)
    }

    pub fn note_orderly_end(&self) {
        let bytes = record::encode(&(), self.now());
        self.lock().write(|memory| memory.put(&orderly_end(), &bytes));
    }

    /// Wipes the records of tokens that are not configured any more. Variants stay while their base token is there,
    /// because a caller may ask for them again.
    pub fn drop_unclaimed(&self) {
        let now = self.now();
        let mut state = self.lock();
        let State { found, claims, .. } = &mut *state;
        let is_wanted = |found: &Found| {
            let record = Record::decode(&found.bytes, now, found.may_have_rebooted).unwrap_or_default();
            let backs_off = record.failure.is_some_and(|failure| failure.next_attempt > Some(now.at));
            (record.token.is_some() || backs_off)
                && record.variant_of.is_some_and(|base| claims.contains_key(&base))
        };
        let unwanted: Vec<Key> = found.extract_if(|_, found| !is_wanted(found)).map(|(key, _)| key).collect();
        for key in unwanted {
            state.write(|memory| memory.remove(&key));
            self.submit(key, None);
        }
    }

    /// The state of the store for `tokenctl status`, as names and values.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let state = self.lock();
        let keeper = match state.is_kept {
            None => "no service manager keeps the tokens",
            Some(true) => "the service manager keeps the tokens",
            Some(false) => {
                "the service manager is to keep the tokens (FileDescriptorStoreMax= must allow it)"
            }
        };
        let not_kept = |fault: &String| format!("tokens are not kept: {fault}");
        let mut facts = vec![
            ("hot-restart", state.memory_fault.as_ref().map_or(keeper.to_owned(), not_kept)),
            ("restored", format!("{} valid at the start", state.restored)),
        ];
        facts.extend(state.key_fault.as_ref().map(|fault| ("reboot", not_kept(fault))));
        if let Some(files) = &self.files {
            let sealed = || format!("tokens are sealed in {}", files.folder.path.display());
            facts.push(("reboot", files.queue().fault.as_ref().map_or_else(sealed, not_kept)));
            let damaged = files.folder.damaged.load(Ordering::Relaxed);
            if damaged > 0 {
                let text = format!("{damaged} found since the start and not used; the log names each");
                facts.push(("damaged-files", text));
            }
        }
        facts
    }

    /// Writes or removes a file in the background.
    fn submit(&self, key: Key, record: Option<Vec<u8>>) {
        if let Some(files) = &self.files {
            files.submit(key, record);
        }
    }

    fn now(&self) -> Moment {
        Moment { at: self.clock.now(), wall: self.clock.wall() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Opens the memory that the previous process left, or creates one.
    fn open_memory(&mut self, left: Option<OwnedFd>, is_proved: bool, keep: fn(BorrowedFd<'_>)) {
        match left.map(Memory::adopt) {
            None => (),
            Some(Ok(Recovered { memory, records, is_damaged })) => {
                let found = |bytes| Found { bytes, may_have_rebooted: false, on_disk: false };
                self.found = records.into_iter().map(|(key, bytes)| (key, found(bytes))).collect();
                self.memory = Some(memory);
                if !is_damaged {
                    self.is_kept = Some(true);
                    return;
                }
                tracing::error!(
                    "the last process left damaged memory; its whole records are used, others are lost"
                );
            }
            Some(Err(reason)) => tracing::error!("the memory of the last process is replaced: {reason}"),
        }
        // Filled before the manager has it, so that the next process always finds the records.
        let filled = Memory::create().and_then(|mut memory| {
            self.found.iter().try_for_each(|(key, found)| memory.put(key, &found.bytes))?;
            Ok(memory)
        });
        match filled {
            Ok(memory) => {
                keep(memory.as_fd());
                self.is_kept = Some(is_proved);
                self.memory = Some(memory);
            }
            Err(error) => note(&mut self.memory_fault, Some(format!("writing memory: {error}")), "restart"),
        }
    }

    /// The record of the previous process, or the current one if another credential has claimed it.
    fn find(&mut self, key: &Key) -> Option<Found> {
        let current = || {
            let bytes = self.memory.as_ref()?.record(key)?;
            // The credential that claimed it first has written its file.
            Some(Found { bytes, may_have_rebooted: false, on_disk: true })
        };
        self.found.remove(key).or_else(current)
    }

    /// Changes memory, if there is one.
    fn write(&mut self, change: impl FnOnce(&mut Memory) -> io::Result<()>) {
        if let Some(memory) = &mut self.memory {
            let fault = change(memory).err().map(|error| format!("writing memory: {error}"));
            note(&mut self.memory_fault, fault, "restart");
        }
    }
}

/// The key of the record that marks an orderly end of the process.
fn orderly_end() -> Key {
    Key::named("orderly end")
}

/// Logs the first fault and its end only, because many writes fail for the same reason.
fn note(known: &mut Option<String>, fault: Option<String>, end: &str) {
    match (&known, &fault) {
        (None, Some(fault)) => tracing::error!("a {end} would lose tokens: {fault}"),
        (Some(_), None) => tracing::info!("tokens are kept for a {end} again"),
        _ => (),
    }
    *known = fault;
}

#[cfg(test)]
mod tests;

//! The start: reads what the process before left in memory and on the disk, and replaces what is of no use.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::files::Files;
use super::folder::Folder;
use super::key::Key;
use super::memory::{Memory, Recovered};
use super::record::Uptime;
use super::report::Report;
use super::sealed::Sealer;
use super::{Found, State, Store};
use crate::clock::Clock;
use crate::secret_source::SecretSource;

/// How long the start may take to read sealed files. The service manager waits for longer.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Whether the service manager keeps descriptors while the daemon is not running.
#[derive(Debug)]
pub enum FdStore {
    /// There is no service manager.
    Absent,
    /// There is one.
    Present {
        /// What the process before left with it.
        left: Option<OwnedFd>,
        /// Whether it certainly keeps what it is given. Only systemd 254 and later say so beforehand.
        is_proved: bool,
    },
}

/// Where the store finds what the process before left, and where it stores records.
#[derive(Debug)]
pub struct Media {
    /// What the service manager keeps.
    pub manager: FdStore,
    /// Gives the service manager a descriptor to keep.
    pub keep: fn(BorrowedFd<'_>),
    /// The daemon's state directory.
    pub state_dir: PathBuf,
    /// The source of the state key.
    pub state_key: Option<SecretSource>,
}

impl Store {
    /// Finds what the process before left. Whatever is wrong with it is reported, and is no reason not to start.
    pub async fn open(clock: Clock, media: Media) -> Arc<Self> {
        let report = Arc::new(Report::default());
        let mut state = State::default();
        match media.manager {
            FdStore::Absent => {
                tracing::info!("no service manager keeps tokens while the daemon is not running");
            }
            FdStore::Present { left, is_proved } => {
                open_memory(&mut state, left, is_proved, media.keep, &report);
            }
        }
        let files = match media.state_key {
            Some(source) => open_files(&media.state_dir, &source, &report).await,
            None => None,
        };
        let store = Self::new(clock, files, state, report);
        store.read_folder().await;
        store
    }

    /// Takes over the records of the folder, as far as they are read in time.
    pub(super) async fn read_folder(self: &Arc<Self>) {
        let Some(files) = &self.files else { return };
        let (store, folder) = (Arc::clone(self), Arc::clone(files));
        let reading = tokio::task::spawn_blocking(move || {
            folder.folder.read(|key, record| store.lock().take_from_disk(key, record))
        });
        let read = tokio::time::timeout(READ_LIMIT, reading).await;
        self.lock().has_started = true;
        self.report.files(match read {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(fault))) => Err(fault),
            Ok(Err(_)) => Err("reading the state directory broke off".to_owned()),
            Err(_) => Err(format!(
                "{}: reading takes more than {} s; tokens that were not read are asked for anew; check the disk",
                files.folder.path().display(),
                READ_LIMIT.as_secs()
            )),
        });
    }
}

impl State {
    /// Takes over what the process before left in memory.
    pub(super) fn take(&mut self, recovered: Recovered) {
        let found = |bytes| Found { bytes, uptime: Uptime::SameBoot, on_disk: false };
        self.found.extend(recovered.records.into_iter().map(|(key, bytes)| (key, found(bytes))));
        self.memory = Some(recovered.memory);
    }

    /// Takes over a record from the disk, unless memory has the same or a newer one.
    fn take_from_disk(&mut self, key: Key, bytes: Vec<u8>) -> ControlFlow<()> {
        if self.has_started {
            return ControlFlow::Break(());
        }
        let found = || Found { bytes, uptime: Uptime::Unknown, on_disk: true };
        self.found.entry(key).or_insert_with(found).on_disk = true;
        ControlFlow::Continue(())
    }
}

/// Opens the memory that the process before left, or creates one.
fn open_memory(
    state: &mut State,
    left: Option<OwnedFd>,
    is_proved: bool,
    keep: fn(BorrowedFd<'_>),
    report: &Report,
) {
    match left.map(Memory::adopt).transpose() {
        Ok(Some(recovered)) if !recovered.is_damaged => {
            report.kept_by_manager(true);
            return state.take(recovered);
        }
        Ok(Some(recovered)) => {
            tracing::error!(
                "the memory that the last process left is damaged; its whole records are used, the rest is asked for anew"
            );
            state.take(recovered);
        }
        Ok(None) => (),
        Err(reason) => tracing::error!(
            "the memory that the last process left is not used, and is replaced: {reason}; tokens are asked for anew"
        ),
    }
    let mut memory = match Memory::create() {
        Ok(memory) => memory,
        Err(error) => return report.memory(Err(error)),
    };
    // Filled first: as soon as the manager has it, a successor finds what is in it.
    for (key, found) in &state.found {
        report.memory(memory.put(key, &found.bytes));
    }
    keep(memory.as_fd());
    state.memory = Some(memory);
    report.kept_by_manager(is_proved);
}

/// The writer of sealed files, if the state key can be used.
async fn open_files(state_dir: &Path, source: &SecretSource, report: &Arc<Report>) -> Option<Arc<Files>> {
    let sealer = match source.read().await {
        Ok(secret) => Sealer::new(&secret).map_err(|reason| format!("{source}: {reason}")),
        Err(error) => Err(error.to_string()),
    };
    match sealer {
        Ok(sealer) => Some(Files::new(Folder::new(state_dir, sealer), Arc::clone(report))),
        Err(fault) => {
            report.files(Err(format!("daemon.state_key: {fault}; put it right, then restart the daemon")));
            None
        }
    }
}

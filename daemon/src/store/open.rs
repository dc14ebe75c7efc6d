//! The start: what the process before left, on either medium, and what takes its place where that is of no use.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::folder::Folder;
use super::key::Key;
use super::layout::Bytes;
use super::memory::Memory;
use super::report::{self, Report};
use super::sealed::Sealer;
use super::{State, Store};
use crate::clock::Clock;
use crate::secret_source::SecretSource;

/// How long the start may take to read sealed files. The service manager waits for longer.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Sealed files that are read ahead of being taken.
const READ_AHEAD: usize = 64;

/// Whether the service manager keeps descriptors while the daemon is not running.
#[derive(Debug)]
pub enum FdStore {
    /// There is no service manager.
    Absent,
    /// There is one.
    Present {
        /// What the process before left with it.
        left: Option<OwnedFd>,
        /// Whether it is certain that it keeps what it is given. Only systemd 254 and later say so beforehand.
        is_proved: bool,
    },
}

/// Where the store looks for what the process before left, and where it keeps what it is given.
#[derive(Debug)]
pub struct Media {
    /// What the service manager keeps, and has kept.
    pub manager: FdStore,
    /// Gives the service manager a descriptor to keep.
    pub keep: fn(BorrowedFd<'_>),
    /// The daemon's state directory.
    pub state_dir: PathBuf,
    /// The source of the state key.
    pub state_key: Option<SecretSource>,
}

impl Store {
    /// Finds what the process before left. Whatever is wrong with it is reported, and no reason not to start.
    pub async fn open(clock: Clock, media: Media) -> Arc<Self> {
        let report = Report::default();
        let mut state = State::default();
        match media.manager {
            FdStore::Absent => report::no_manager(),
            FdStore::Present { left, is_proved } => {
                open_memory(&mut state, left, is_proved, media.keep, &report)
            }
        }
        let folder = match media.state_key {
            Some(source) => open_folder(&mut state, media.state_dir, &source, &report).await,
            None => None,
        };
        let store = Self::new(clock, folder, state, report);
        store.note_how_the_last_one_ended();
        Arc::new(store)
    }
}

/// The memory that was left, or a new one.
fn open_memory(
    state: &mut State,
    left: Option<OwnedFd>,
    is_proved: bool,
    keep: fn(BorrowedFd<'_>),
    report: &Report,
) {
    match left.map(Memory::adopt).transpose() {
        Ok(Some(left)) if !left.is_damaged => {
            report.kept(true);
            state.take(left);
            return;
        }
        // What is whole in it is taken over into the new one.
        Ok(Some(left)) => {
            report::damaged_memory();
            state.take(left);
        }
        Ok(None) => (),
        Err(reason) => report::unreadable_memory(reason),
    }
    match Memory::create() {
        Ok(memory) => {
            // Filled first: from the moment on that the manager has it, it is what a successor finds.
            state.replace_memory(memory, report);
            if let Some(memory) = &state.memory {
                keep(memory.as_fd());
            }
            report.kept(is_proved);
        }
        Err(error) => report.memory(Err(error.into())),
    }
}

/// The folder of sealed files with what opens in it.
async fn open_folder(
    state: &mut State,
    state_dir: PathBuf,
    source: &SecretSource,
    report: &Report,
) -> Option<Arc<Folder>> {
    let secret = match source.read().await {
        Ok(secret) => secret,
        Err(error) => {
            report.no_state_key(&error);
            return None;
        }
    };
    let sealer = match Sealer::new(&secret) {
        Ok(sealer) => sealer,
        Err(reason) => {
            report.no_state_key(&format!("{source}: {reason}"));
            return None;
        }
    };
    let folder = Arc::new(Folder::new(&state_dir, sealer));
    read_folder(state, &folder, report).await;
    Some(folder)
}

/// Takes what opens in the folder, as far as it is read in time.
async fn read_folder(state: &mut State, folder: &Arc<Folder>, report: &Report) {
    let held: HashSet<Key> = state.found.keys().copied().collect();
    let (sender, mut records) = mpsc::channel::<Bytes>(READ_AHEAD);
    let reading = tokio::task::spawn_blocking({
        let folder = Arc::clone(folder);
        move || {
            folder.read(&held, |record| match sender.blocking_send(record) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            })
        }
    });
    let taken = async {
        while let Some(record) = records.recv().await {
            state.take_from_disk(record);
        }
        reading.await
    };
    match tokio::time::timeout(READ_LIMIT, taken).await {
        Ok(Ok(Ok(present))) => state.on_disk.extend(present),
        Ok(Ok(Err(error))) => report.files(Err(&error)),
        Ok(Err(_)) => report.files(Err(&"reading the state directory broke off")),
        Err(_) => report.files(Err(&format!(
            "{}: reading takes more than {} s; tokens that were not read by then are asked for anew; look into the disk",
            folder.path().display(),
            READ_LIMIT.as_secs()
        ))),
    }
}

//! What there is to say about what is kept: once in the log, when it changes, and in the status for as long as it
//! is so.

use std::fmt::Display;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::folder::Folder;
use super::layout::Unreadable;
use super::memory::NotKept;
use super::sealed::Unopened;

/// What there is to say.
#[derive(Debug, Default)]
pub(super) struct Report(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    keeper: Keeper,
    restored: usize,
    /// Why memory is not written.
    memory: Option<String>,
    /// Why files are not written.
    files: Option<String>,
    /// Why there is no state key.
    state_key: Option<String>,
}

/// Who keeps the memory while the daemon is not running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Keeper {
    /// Nobody.
    #[default]
    None,
    /// The service manager has been asked to. Before release 254 systemd does not say whether it does.
    Asked,
    /// The service manager.
    Proved,
}

impl Report {
    pub(super) fn kept(&self, is_proved: bool) {
        self.lock().keeper = if is_proved { Keeper::Proved } else { Keeper::Asked };
    }

    pub(super) fn restored(&self) {
        self.lock().restored += 1;
    }

    /// How writing memory went.
    pub(super) fn memory(&self, written: Result<(), NotKept>) {
        let trouble = written.err().map(|error| error.to_string());
        let mut told = self.lock();
        if told.memory != trouble {
            if let Some(trouble) = &trouble {
                tracing::error!("a restart would lose tokens: {trouble}");
            } else {
                tracing::info!("tokens are kept for a restart again");
            }
            told.memory = trouble;
        }
    }

    /// How it went to write and remove files. All is well again only when nothing is left that failed.
    pub(super) fn files(&self, done: Result<(), &dyn Display>) {
        self.lock().note_files(done.err().map(ToString::to_string));
    }

    pub(super) fn no_state_key(&self, reason: &dyn Display) {
        let text = format!("daemon.state_key: {reason}");
        tracing::error!("nothing is kept for a reboot: {text}; put it right, then restart the daemon");
        self.lock().state_key = Some(text);
    }

    /// Names and values for people, in order of the names.
    pub(super) fn facts(&self, folder: Option<&Folder>) -> Vec<(&'static str, String)> {
        let told = self.lock();
        let mut facts = Vec::new();
        if let Some(damaged) = folder.map(Folder::damaged).filter(|damaged| *damaged > 0) {
            facts.push((
                "damaged-files",
                format!("{damaged} found since the start and not used; the log names each"),
            ));
        }
        facts.push(("hot-restart", told.hot_restart()));
        if let Some(reboot) = told.reboot(folder.map(Folder::path)) {
            facts.push(("reboot", reboot));
        }
        facts.push(("restored", format!("{} valid at the start", told.restored)));
        facts
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody keeps memory.
pub(super) fn no_manager() {
    tracing::info!("there is no service manager to leave tokens with while the daemon is not running");
}

/// A part of the memory makes no sense.
pub(super) fn damaged_memory() {
    tracing::error!(
        "the memory that the last process left has damage; what is whole in it is used, the rest is asked for anew"
    );
}

/// Nothing of the memory can be used.
pub(super) fn unreadable_memory(reason: Unreadable) {
    tracing::error!(
        "the memory that the last process left is not used, and is replaced: {reason}; tokens are asked for anew"
    );
}

/// A file has the right name and does not open.
pub(super) fn damaged_file(path: &Path, reason: Unopened) {
    tracing::error!(
        "{}: {reason}; it is not used, and moved aside to {}.damaged before the next token is written",
        path.display(),
        path.display()
    );
}

/// Files do not open, and have names that are none of ours.
pub(super) fn foreign_files(folder: &Path, count: usize) {
    if count > 0 {
        tracing::warn!(
            "{}: {count} file(s) do not open with this state key; they are left as they are; if the key was replaced \
             for good, remove them",
            folder.display()
        );
    }
}

impl Told {
    /// One file after the other fails for the same reason.
    fn note_files(&mut self, trouble: Option<String>) {
        let Some(trouble) = trouble else {
            if self.files.take().is_some() {
                tracing::info!("tokens are kept for a reboot again");
            }
            return;
        };
        if self.files.is_none() {
            tracing::error!("a reboot would lose tokens: {trouble}");
        }
        self.files = Some(trouble);
    }

    fn hot_restart(&self) -> String {
        let keeper = match (&self.memory, self.keeper) {
            (Some(trouble), _) => return format!("tokens are not kept: {trouble}"),
            (None, Keeper::None) => "no service manager keeps the tokens",
            (None, Keeper::Asked) => {
                "the service manager was asked to keep the tokens (FileDescriptorStoreMax= must allow it)"
            }
            (None, Keeper::Proved) => "the service manager keeps the tokens",
        };
        keeper.to_owned()
    }

    fn reboot(&self, folder: Option<&Path>) -> Option<String> {
        match (&self.state_key, &self.files, folder) {
            (Some(trouble), ..) | (None, Some(trouble), _) => Some(format!("tokens are not kept: {trouble}")),
            (None, None, Some(folder)) => Some(format!("tokens are sealed in {}", folder.display())),
            (None, None, None) => None,
        }
    }
}

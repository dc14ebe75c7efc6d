//! The files of a folder that did not open: damaged, if the key of the name is in use, and otherwise of another state
//! key.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::report;
use crate::store::sealed::Unopened;

/// Files that did not open, by name.
#[derive(Debug, Default)]
pub(super) struct UnopenedFiles {
    /// Held for a look or a change.
    files: Mutex<HashMap<String, File>>,
    /// How many were told to be damaged.
    damaged: AtomicUsize,
}

#[derive(Debug)]
struct File {
    reason: Unopened,
    is_told: bool,
}

impl UnopenedFiles {
    pub(super) fn note(&self, name: String, reason: Unopened) {
        self.files().insert(name, File { reason, is_told: false });
    }

    /// Notes that there is none of this name any more.
    pub(super) fn forget(&self, name: &str) {
        self.files().remove(name);
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.files().contains_key(name)
    }

    /// Whether there is one of this name, which is in use, in `folder`. The first time it is told.
    pub(super) fn is_damaged(&self, folder: &Path, name: &str) -> bool {
        let mut files = self.files();
        let Some(file) = files.get_mut(name) else { return false };
        if !file.is_told {
            file.is_told = true;
            self.damaged.fetch_add(1, Ordering::Relaxed);
            report::damaged_file(&folder.join(name), file.reason);
        }
        true
    }

    /// How many were found damaged.
    pub(super) fn damaged(&self) -> usize {
        self.damaged.load(Ordering::Relaxed)
    }

    /// How many have none of these names.
    pub(super) fn foreign(&self, known: impl Iterator<Item = String>) -> usize {
        let files = self.files();
        if files.is_empty() {
            return 0;
        }
        let known: HashSet<String> = known.collect();
        files.keys().filter(|name| !known.contains(*name)).count()
    }

    fn files(&self) -> MutexGuard<'_, HashMap<String, File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The folder of sealed records in the state directory: one file for each, written as a whole or not at all. All
//! of it blocks, and is for a thread that may.
//!
//! It must never overwrite what could still be recovered. A file that does not open is never written over: under
//! another state key records have other names, and one that has the right name and does not open is moved aside.

mod unopened;

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use self::unopened::UnopenedFiles;
use super::key::Key;
use super::layout::Bytes;
use super::sealed::{Sealer, Unopened};

/// The folder within the state directory.
const FOLDER: &str = "tokens";

/// Ends the name of a file that is being written.
const DRAFT: &str = ".new";

/// Ends the name of a file that was moved aside.
const DAMAGED: &str = ".damaged";

/// So many damaged files of one name are kept.
const DAMAGED_MAX: u32 = 9;

/// The largest file that is read. The largest record has two mebibytes.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// The sealed records of one state key.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    sealer: Sealer,
    /// Open, and locked against a second daemon, once the folder is there.
    directory: Mutex<Option<Arc<Flock<File>>>>,
    unopened: UnopenedFiles,
    /// Whether all files have been looked at, so that those that do not open are known.
    is_known: AtomicBool,
    drafts: AtomicU64,
}

/// A fault of the folder, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system refuses.
    #[error("{}: {what}: {source}; {}", path.display(), remedy(source))]
    System {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another daemon writes there.
    #[error("{}: another process uses this folder; give each daemon a daemon.state_dir of its own", .0.display())]
    Taken(PathBuf),
}

impl Folder {
    /// The folder in this state directory, which need not be there yet.
    pub fn new(state_dir: &Path, sealer: Sealer) -> Self {
        Self {
            path: state_dir.join(FOLDER),
            sealer,
            directory: Mutex::new(None),
            unopened: UnopenedFiles::default(),
            is_known: AtomicBool::new(false),
            drafts: AtomicU64::new(0),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the records that open, but for those that are `held` already, and removes what a write that was cut off
    /// has left. Each is given to `take` at once, until that wants no more. Tells which of the held ones are there.
    pub fn read(
        &self,
        held: &HashSet<Key>,
        mut take: impl FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<HashSet<Key>, FolderError> {
        self.directory()?;
        let held: HashMap<String, Key> = held.iter().map(|key| (self.sealer.name(key), *key)).collect();
        let mut present = HashSet::new();
        for entry in fs::read_dir(&self.path).map_err(|source| self.fault("reading", None, source))? {
            let entry = entry.map_err(|source| self.fault("reading", None, source))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.strip_suffix(DRAFT).is_some_and(|stem| is_name(stem.split('.').next())) {
                // A disk that is full or read-only is told of by the first write.
                let _ = fs::remove_file(entry.path());
            } else if let Some(key) = held.get(&name) {
                present.insert(*key);
            } else if is_name(Some(&name)) {
                let taken = match self.open(&name) {
                    Ok(record) => take(record),
                    Err(reason) => {
                        self.unopened.note(name, reason);
                        ControlFlow::Continue(())
                    }
                };
                if taken.is_break() {
                    return Ok(present);
                }
            }
        }
        // What is held was not opened, so it may yet be found not to.
        self.is_known.store(held.is_empty(), Ordering::Relaxed);
        Ok(present)
    }

    fn open(&self, name: &str) -> Result<Bytes, Unopened> {
        let content = content(&self.path.join(name)).map_err(|_| Unopened::Unreadable)?;
        self.sealer.open(name, &content)
    }

    /// Tells, once, that the file of this key is damaged, if it is there and did not open.
    pub fn tell_of_damage(&self, key: &Key) {
        self.unopened.is_damaged(&self.path, &self.sealer.name(key));
    }

    /// How many files were found damaged.
    pub fn damaged(&self) -> usize {
        self.unopened.damaged()
    }

    /// How many files did not open that have the name of none of these keys.
    pub fn foreign<'a>(&self, known: impl Iterator<Item = &'a Key>) -> usize {
        self.unopened.foreign(known.map(|key| self.sealer.name(key)))
    }

    /// Writes a record. When it returns without a fault, the record survives a loss of power.
    pub fn write(&self, key: &Key, record: &[u8]) -> Result<(), FolderError> {
        let directory = self.directory()?;
        let name = self.sealer.name(key);
        let number = self.drafts.fetch_add(1, Ordering::Relaxed);
        let draft = self.path.join(format!("{name}.{number}{DRAFT}"));
        let written = self.sealer.seal(&name, record).map_err(io::Error::other).and_then(|sealed| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(&sealed)?;
            file.sync_all()
        });
        let placed = written.and_then(|()| self.put_in_place(&draft, &name));
        let placed = placed.and_then(|()| directory.sync_all());
        placed.map_err(|source| {
            let _ = fs::remove_file(&draft);
            if source.kind() == io::ErrorKind::NotFound {
                // Somebody removed the folder. It is made anew for the next record.
                *self.directory.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            self.fault("writing", Some(&name), source)
        })
    }

    /// Removes a record, if there is one.
    pub fn remove(&self, key: &Key) -> Result<(), FolderError> {
        let name = self.sealer.name(key);
        if self.unopened.contains(&name) {
            return Ok(());
        }
        match fs::remove_file(self.path.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.fault("removing", Some(&name), error))
            }
            _ => Ok(()),
        }
    }

    fn put_in_place(&self, draft: &Path, name: &str) -> io::Result<()> {
        let place = self.path.join(name);
        self.look_at(name);
        if self.unopened.is_damaged(&self.path, name) {
            fs::rename(&place, self.free_name(name)?)?;
            self.unopened.forget(name);
        }
        fs::rename(draft, place)
    }

    /// Finds out whether the file of this name opens, if it is there, and not all were looked at before.
    fn look_at(&self, name: &str) {
        let is_known = self.is_known.load(Ordering::Relaxed) || self.unopened.contains(name);
        if is_known || !self.path.join(name).exists() {
            return;
        }
        if let Err(reason) = self.open(name) {
            self.unopened.note(name.to_owned(), reason);
        }
    }

    /// Where a damaged file is moved to. An earlier one may be the better one.
    fn free_name(&self, name: &str) -> io::Result<PathBuf> {
        let first = std::iter::once(format!("{name}{DAMAGED}"));
        let names = first.chain((2..=DAMAGED_MAX).map(|number| format!("{name}.{number}{DAMAGED}")));
        let free = names.map(|name| self.path.join(name)).find(|path| !path.exists());
        free.ok_or_else(|| {
            io::Error::other(format!("there are {DAMAGED_MAX} damaged ones already; remove them"))
        })
    }

    /// The folder, made and locked where it is not yet.
    fn directory(&self) -> Result<Arc<Flock<File>>, FolderError> {
        let mut held = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = &*held {
            return Ok(Arc::clone(directory));
        }
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists && !self.path.is_dir() => {
                return Err(self.fault("making the folder", None, source));
            }
            _ => (),
        }
        let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
        let opened = opened.map_err(|source| self.fault("opening", None, source))?;
        let locked = Flock::lock(opened, FlockArg::LockExclusiveNonblock);
        let locked = Arc::new(locked.map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => FolderError::Taken(self.path.clone()),
            other => self.fault("locking", None, other.into()),
        })?);
        *held = Some(Arc::clone(&locked));
        Ok(locked)
    }

    /// Holds up whoever wants to write, as a disk does that hangs.
    #[cfg(test)]
    pub(super) fn hang(&self) -> impl Sized + '_ {
        self.directory.lock().unwrap()
    }

    fn fault(&self, what: &'static str, name: Option<&str>, source: io::Error) -> FolderError {
        let path = name.map_or_else(|| self.path.clone(), |name| self.path.join(name));
        FolderError::System { what, path, source }
    }
}

/// Whether this is the name of a sealed record: a hash in lower-case hexadecimal.
fn is_name(name: Option<&str>) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.is_some_and(|name| name.len() == 64 && name.bytes().all(is_digit))
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut content = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut content)?;
    Ok(content)
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there",
        io::ErrorKind::ReadOnlyFilesystem => "make it writable, or set daemon.state_dir to a folder that is",
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            "make daemon.state_dir a folder of the daemon's user, mode 0700"
        }
        io::ErrorKind::PermissionDenied => "let the daemon's user read and write daemon.state_dir",
        _ => "look into the disk and daemon.state_dir",
    }
}

#[cfg(test)]
mod tests;

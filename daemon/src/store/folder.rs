//! The folder of sealed records in the state directory: one file per record, replaced atomically. All functions
//! block. A file that cannot be opened with the state key is never overwritten: a write moves it aside. With another
//! state key, records have other file names.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::record::Key;
use super::sealed::Sealer;
use crate::fingerprint::NoRandomness;

const FOLDER: &str = "tokens";

/// The suffix of a file that is being written.
const DRAFT: &str = ".new";

/// How many damaged files of one name are kept.
const DAMAGED_MAX: u32 = 9;

/// The largest file that is read. The largest record has two mebibytes.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// The sealed records of one state key. The folder and the state directory need not exist yet.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    sealer: Sealer,
    /// Open and locked against a second daemon, once the folder exists. Held while a file is written.
    directory: Mutex<Option<Flock<File>>>,
    /// How many files were found damaged and moved aside since the start.
    pub(super) damaged: AtomicUsize,
}

impl Folder {
    pub(super) fn new(state_dir: &Path, sealer: Sealer) -> Self {
        let path = state_dir.join(FOLDER);
        Self { path, sealer, directory: Mutex::default(), damaged: AtomicUsize::new(0) }
    }

    /// Gives each record to `take`, while that returns true, and removes half-written files.
    pub(super) fn read(&self, mut take: impl FnMut(Key, Vec<u8>) -> bool) -> Result<(), String> {
        drop(self.directory()?);
        let fault = |source| fault("reading", &self.path, &source);
        let mut unopened = 0;
        for entry in fs::read_dir(&self.path).map_err(fault)? {
            let Ok(name) = entry.map_err(fault)?.file_name().into_string() else { continue };
            if name.strip_suffix(DRAFT).is_some_and(is_name) {
                // If the disk is full or read-only, the first write says so.
                let _ = fs::remove_file(self.path.join(name));
            } else if is_name(&name) {
                match self.open(&name).map(|record| record.is_none_or(|(key, record)| take(key, record))) {
                    Ok(true) => (),
                    Ok(false) => return Ok(()),
                    Err(_) => unopened += 1,
                }
            }
        }
        if unopened > 0 {
            tracing::warn!(
                "{}: {unopened} file(s) do not open with this state key, or are damaged; they are not used; if the key \
                 was replaced for good, remove them",
                self.path.display()
            );
        }
        Ok(())
    }

    /// Writes a record. After a success it survives a loss of power.
    pub(super) fn write(&self, key: &Key, record: &[u8]) -> Result<(), String> {
        let mut directory = self.directory()?;
        let name = self.sealer.name(key);
        let draft = self.path.join(format!("{name}{DRAFT}"));
        let sealed = self.sealer.seal(&name, key, record).map_err(|_| io::Error::other(NoRandomness));
        let replaced = sealed.and_then(|sealed| self.replace(&name, &draft, &sealed));
        let synced = replaced.and_then(|()| directory.as_ref().map_or(Ok(()), |open| open.sync_all()));
        synced.map_err(|source| {
            let _ = fs::remove_file(&draft);
            if source.kind() == ErrorKind::NotFound {
                // Somebody removed the folder. The next write makes it again.
                *directory = None;
            }
            fault("writing", &self.path.join(name), &source)
        })
    }

    /// Removes a record, if there is one. A file that does not open stays.
    pub(super) fn remove(&self, key: &Key) -> Result<(), String> {
        let _directory = self.directory()?;
        let name = self.sealer.name(key);
        let Ok(Some(_)) = self.open(&name) else { return Ok(()) };
        let path = self.path.join(name);
        fs::remove_file(&path).map_err(|source| fault("removing", &path, &source))
    }

    /// The record in a file, if the file exists.
    fn open(&self, name: &str) -> Result<Option<(Key, Vec<u8>)>, &'static str> {
        match content(&self.path.join(name)) {
            Ok(content) => self.sealer.open(name, &content).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(_) => Err("cannot be read"),
        }
    }

    fn replace(&self, name: &str, draft: &Path, content: &[u8]) -> io::Result<()> {
        let _ = fs::remove_file(draft);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        let path = self.path.join(name);
        if let Err(reason) = self.open(name) {
            // Earlier damaged files are not overwritten, because one of them may be recoverable.
            let mut aside = (1..=DAMAGED_MAX).map(|number| path.with_extension(format!("{number}.damaged")));
            let full = || format!("there are {DAMAGED_MAX} damaged ones already; remove them");
            let aside = aside.find(|path| !path.exists()).ok_or_else(|| io::Error::other(full()))?;
            fs::rename(&path, &aside)?;
            self.damaged.fetch_add(1, Ordering::Relaxed);
            let (path, aside) = (path.display(), aside.display());
            tracing::error!("{path}: {reason}; it is not used, and was moved to {aside}");
        }
        fs::rename(draft, path)
    }

    /// Returns the locked folder, and creates it if necessary.
    fn directory(&self) -> Result<MutexGuard<'_, Option<Flock<File>>>, String> {
        let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        if directory.is_none() {
            let made = DirBuilder::new().mode(0o700).create(&self.path);
            if let Some(error) = made.err().filter(|_| !self.path.is_dir()) {
                return Err(fault("making the folder", &self.path, &error));
            }
            let opened = open(&self.path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)
                .map_err(|source| fault("opening", &self.path, &source))?;
            let locked = Flock::lock(opened, FlockArg::LockExclusiveNonblock);
            *directory = Some(locked.map_err(|(_, errno)| match errno {
                Errno::EWOULDBLOCK => format!(
                    "{}: another process uses this folder; give each daemon a daemon.state_dir of its own",
                    self.path.display()
                ),
                other => fault("locking", &self.path, &other.into()),
            })?);
        }
        Ok(directory)
    }
}

/// Whether this is the name of a sealed record: a hash in lower-case hexadecimal.
fn is_name(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn open(path: &Path, flags: OFlag) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path, OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK)?.take(FILE_MAX).read_to_end(&mut content)?;
    Ok(content)
}

fn fault(what: &str, path: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space there",
        ErrorKind::ReadOnlyFilesystem => "make it writable, or set daemon.state_dir to a folder that is",
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            "make daemon.state_dir a folder of the daemon's user, mode 0700"
        }
        ErrorKind::PermissionDenied => "let the daemon's user read and write daemon.state_dir",
        _ => "check the disk and daemon.state_dir",
    };
    format!("{}: {what}: {error}; {remedy}", path.display())
}

#[cfg(test)]
mod tests;

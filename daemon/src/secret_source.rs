//! Where a secret is kept. It is read at each use, so that rotating it needs no restart, and never kept here
//! past one use.
//!
//! What was read is wiped from memory when it is dropped, and no error repeats any of it: an error names the
//! source and what to do about it.

mod command;
mod stamp;

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::ExitStatus;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::Serialize;
use tokend_protocol::Secret;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

pub use self::stamp::{Stamp, stamps};

/// The largest secret, in bytes. A private key or an assertion has a tenth of it.
pub const SECRET_MAX: usize = 64 * 1024;

/// Files that are read at once. On a file system that hangs each holds a thread of those that read files and
/// look up hosts, of which there are hundreds.
static FILES: Semaphore = Semaphore::const_new(64);

/// Where systemd puts the credentials of a service.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// A place that holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum SecretSource {
    /// `{ credential = "NAME" }`: a systemd credential, in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// `{ file = "/PATH" }`.
    File(PathBuf),
    /// `{ env = "NAME" }`: a variable of the daemon's environment.
    Environment(String),
    /// `{ command = ["PROGRAM", "ARGUMENT"] }`: the standard output of a program run without a shell.
    Command(Vec<String>),
}

/// A secret that could not be read: its source, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct SecretSourceError {
    /// The source, as in `secret file /etc/tokend/psb.secret`.
    pub place: String,
    /// Why, and what to do.
    pub reason: Unreadable,
}

/// Why a secret could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The service has no credentials at all.
    #[error("systemd gave no credentials; add LoadCredential= or LoadCredentialEncrypted= to tokend.service")]
    NoCredentials,
    /// The variable is not set.
    #[error("not set in the daemon's environment; add it to tokend.service, or choose another source")]
    NotSet,
    /// The system refuses.
    #[error("cannot be read: {0}")]
    System(String),
    /// A directory, a device, a pipe or a socket.
    #[error("not a regular file; name one that has nothing but the secret")]
    NotAFile,
    /// Users who have no business with it can read or write the file.
    #[error("{0}")]
    Exposed(Exposure),
    /// The program could not be started.
    #[error("cannot be started: {0}")]
    NotStarted(String),
    /// The program failed.
    #[error("ended with {0}; run it by hand as the daemon's user to see why")]
    Failed(ExitStatus),
    /// The program took too long.
    #[error("gave no answer within {0} seconds and was killed")]
    TimedOut(u64),
    /// There is more than a secret.
    #[error("has more than {SECRET_MAX} bytes, which is no secret")]
    TooLarge,
    /// There is nothing, or nothing but an end of line.
    #[error("empty; put the secret there")]
    Empty,
    /// It is no text.
    #[error("not UTF-8 text; put the secret there as text")]
    NotText,
    /// It has a NUL character.
    #[error("has a NUL character, which no secret can have")]
    HasNul,
}

/// What is wrong with the owner or mode of a file. Its text names the command that puts it right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    path: PathBuf,
    mode: u32,
    fault: ExposureFault,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ExposureFault {
    Mode,
    ForeignOwner(u32),
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, mode) = (self.path.display(), self.mode);
        match self.fault {
            ExposureFault::Mode => write!(f, "mode {mode:04o} is open to other users; chmod 0600 {path}"),
            ExposureFault::ForeignOwner(uid) => {
                write!(f, "owned by user {uid}, neither root nor the daemon's; chown {} {path}", geteuid())
            }
        }
    }
}

impl SecretSource {
    /// Reads the secret as it is now.
    ///
    /// One end of line at the end is not a part of it. Files are read on another thread: they may be on a file
    /// system that hangs, and then no other token must wait.
    pub async fn read(&self) -> Result<Secret, SecretSourceError> {
        self.read_with(&|name| std::env::var_os(name)).await
    }

    /// Reads the secret because a caller asked for something. Callers may ask as often as they like, so of the
    /// programs that may run at once they have only a share, and the renewal of tokens has the rest.
    pub async fn read_for_caller(&self) -> Result<Secret, SecretSourceError> {
        let _share = match self {
            Self::Command(_) => command::callers_share().await,
            Self::Credential(_) | Self::File(_) | Self::Environment(_) => None,
        };
        self.read().await
    }

    async fn read_with(
        &self,
        environment: &(dyn Fn(&str) -> Option<OsString> + Sync),
    ) -> Result<Secret, SecretSourceError> {
        let bytes = match self {
            Self::Credential(name) => match environment(CREDENTIALS_DIRECTORY) {
                Some(directory) => on_another_thread(Path::new(&directory).join(name), open).await,
                None => Err(Unreadable::NoCredentials),
            },
            Self::File(path) if is_credential(path, environment(CREDENTIALS_DIRECTORY)) => {
                on_another_thread(path.clone(), open).await
            }
            Self::File(path) => on_another_thread(path.clone(), open_guarded).await,
            Self::Environment(name) => match environment(name) {
                Some(value) => Ok(Zeroizing::new(value.as_bytes().to_vec())),
                None => Err(Unreadable::NotSet),
            },
            Self::Command(words) => command::output(words, environment).await,
        };
        let secret = bytes.and_then(|bytes| text(&bytes));
        secret.map_err(|reason| SecretSourceError { place: self.to_string(), reason })
    }
}

/// The source as errors name it. Of a command only the program: an argument may be private.
impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(name) => write!(f, "systemd credential {name:?}"),
            Self::File(path) => write!(f, "secret file {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name:?}"),
            Self::Command(words) => {
                write!(f, "secret command {:?}", words.first().map_or("", String::as_str))
            }
        }
    }
}

/// Whether a file is in the directory that systemd made for credentials of this service. It lets nobody else in,
/// by means that a file's mode does not show.
fn is_credential(path: &Path, directory: Option<OsString>) -> bool {
    let directory = directory.map(PathBuf::from).filter(|directory| directory.is_absolute());
    let leads_out = path.components().any(|component| component == Component::ParentDir);
    directory.is_some_and(|directory| path.starts_with(directory)) && !leads_out
}

async fn on_another_thread(
    path: PathBuf,
    open: fn(&Path) -> Result<File, Unreadable>,
) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    let place = FILES.acquire().await.map_err(|error| Unreadable::System(error.to_string()))?;
    let reading = tokio::task::spawn_blocking(move || {
        // Given back when the reading ends, not when nobody waits for it any more.
        let _place = place;
        content(open(&path)?)
    });
    reading.await.unwrap_or_else(|error| Err(Unreadable::System(error.to_string())))
}

/// Opens a regular file without ever waiting for it, as opening a pipe or a device might.
fn open(path: &Path) -> Result<File, Unreadable> {
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(system)?;
    if file.metadata().map_err(system)?.is_file() { Ok(file) } else { Err(Unreadable::NotAFile) }
}

/// Opens a regular file that nobody but root and the daemon's user can read. The daemon's own group is no
/// exception: whoever may connect to the socket may be in it. The open file is looked at, not the path, so that
/// no other file can take its place in between.
fn open_guarded(path: &Path) -> Result<File, Unreadable> {
    let file = open(path)?;
    let metadata = file.metadata().map_err(system)?;
    let mode = metadata.mode() & 0o7777;
    let fault = if mode & 0o077 != 0 {
        ExposureFault::Mode
    } else if metadata.uid() != 0 && metadata.uid() != geteuid().as_raw() {
        ExposureFault::ForeignOwner(metadata.uid())
    } else {
        return Ok(file);
    };
    Err(Unreadable::Exposed(Exposure { path: path.to_owned(), mode, fault }))
}

/// Reads into a buffer that never grows, because growing leaves a copy behind that is not wiped.
fn content(mut file: File) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    let mut buffer = Zeroizing::new(vec![0; SECRET_MAX + 1]);
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(system(error)),
        }
    }
    checked_size(buffer, filled)
}

fn checked_size(mut buffer: Zeroizing<Vec<u8>>, filled: usize) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    if filled > SECRET_MAX {
        return Err(Unreadable::TooLarge);
    }
    buffer.truncate(filled);
    Ok(buffer)
}

fn text(bytes: &[u8]) -> Result<Secret, Unreadable> {
    if bytes.len() > SECRET_MAX {
        return Err(Unreadable::TooLarge);
    }
    let text = str::from_utf8(bytes).map_err(|_| Unreadable::NotText)?;
    let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if text.is_empty() {
        return Err(Unreadable::Empty);
    }
    if text.contains('\0') {
        return Err(Unreadable::HasNul);
    }
    Ok(Secret::from(Zeroizing::new(text.to_owned())))
}

/// The system's words for its error, without what was being done.
#[expect(clippy::needless_pass_by_value, reason = "used as a function of `map_err`")]
fn system(error: io::Error) -> Unreadable {
    Unreadable::System(error.to_string())
}

#[cfg(test)]
mod tests;

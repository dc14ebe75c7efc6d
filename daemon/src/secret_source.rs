//! Reads secrets where they are kept: systemd credentials, files, the environment, the output of commands. A secret is
//! read at each use and not kept here, so a new one needs no reload.
//!
//! No error repeats any of a secret. An error names the source and the remedy.

mod command;
mod stamp;

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::ExitStatus;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::Serialize;
use tokend_protocol::Secret;
use tokio::sync::Semaphore;

pub use self::stamp::{Stamp, stamps};

/// The largest secret, in bytes. A private key or an assertion has a tenth of it.
pub const SECRET_MAX: usize = 64 * 1024;

/// Files that are read at once. On a file system that hangs, each read occupies one of several hundred threads.
static FILES: Semaphore = Semaphore::const_new(64);

/// The variable with the directory that systemd makes for the credentials of a service.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The directory of the credentials of all services.
const ALL_CREDENTIALS: &str = "/run/credentials";

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
    /// Why, and the remedy.
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
    #[error("cannot be read: {1}")]
    System(ErrorKind, String),
    /// A directory, a device, a pipe or a socket.
    #[error("not a regular file; name one with nothing but the secret")]
    NotAFile,
    /// Other users can read or write this file of this mode. The text names the remedy.
    #[error("mode {mode:04o} is open to other users; chmod 0600 {}", .0.display(), mode = .1)]
    Exposed(PathBuf, u32),
    /// This file belongs to this third user, who can read and replace the secret. The text names the remedy.
    #[error("owned by user {owner}, neither root nor the daemon's; chown {} {}", geteuid(), .0.display(), owner = .1)]
    ForeignOwner(PathBuf, u32),
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

/// Drops the description of the attempt, which names no source.
impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::System(error.kind(), error.to_string())
    }
}

impl SecretSource {
    /// Reads the secret as it is now, without one end of line at its end.
    ///
    /// Files are read on another thread: on a file system that hangs, no other token must wait.
    pub async fn read(&self) -> Result<Secret, SecretSourceError> {
        self.read_with(&|name| std::env::var_os(name)).await
    }

    /// Reads the secret because a caller asked for something. Callers may ask as often as they like, so they have only
    /// a share of the commands that may run at once; renewals have the rest.
    pub async fn read_for_caller(&self) -> Result<Secret, SecretSourceError> {
        let _share = if let Self::Command(_) = self { command::callers_share().await } else { None };
        self.read().await
    }

    async fn read_with(
        &self,
        environment: &(dyn Fn(&str) -> Option<OsString> + Sync),
    ) -> Result<Secret, SecretSourceError> {
        let bytes = match self {
            Self::Credential(name) => match environment(CREDENTIALS_DIRECTORY) {
                Some(directory) => read_file(Path::new(&directory).join(name), open).await,
                None => Err(Unreadable::NoCredentials),
            },
            Self::File(path) if is_credential(path, environment(CREDENTIALS_DIRECTORY)) => {
                read_file(path.clone(), open).await
            }
            Self::File(path) => read_file(path.clone(), open_guarded).await,
            Self::Environment(name) => match environment(name) {
                Some(value) => Ok(value.as_bytes().to_vec()),
                None => Err(Unreadable::NotSet),
            },
            Self::Command(words) => command::output(words, environment).await,
        };
        let secret = bytes.and_then(text);
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

/// Whether this process's user could read a secret file. Reads nothing. Credentials of a unit can be seen only inside
/// it, so outside they pass.
pub fn check_file(path: &Path) -> Result<(), Unreadable> {
    let directory = std::env::var_os(CREDENTIALS_DIRECTORY);
    if directory.is_none() && is_credential(path, Some(ALL_CREDENTIALS.into())) {
        return Ok(());
    }
    let open = if is_credential(path, directory) { open } else { open_guarded };
    open(path).map(drop)
}

/// Whether a file is in a directory that systemd made for credentials. systemd lets no other user in, by means that
/// the mode of the file does not show.
fn is_credential(path: &Path, directory: Option<OsString>) -> bool {
    let directory = directory.map(PathBuf::from).filter(|directory| directory.is_absolute());
    let leads_out = path.components().any(|component| component == Component::ParentDir);
    directory.is_some_and(|directory| path.starts_with(directory)) && !leads_out
}

async fn read_file(
    path: PathBuf,
    open: fn(&Path) -> Result<File, Unreadable>,
) -> Result<Vec<u8>, Unreadable> {
    on_another_thread(move || {
        let mut content = Vec::new();
        open(&path)?.take(SECRET_MAX as u64 + 1).read_to_end(&mut content)?;
        Ok(content)
    })
    .await?
}

/// Runs `work` on one of a bounded number of threads.
async fn on_another_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unreadable> {
    let permit = FILES.acquire().await.map_err(io::Error::other)?;
    let working = tokio::task::spawn_blocking(move || {
        // Given back when the work ends, not when its caller stops waiting.
        let _permit = permit;
        work()
    });
    Ok(working.await.map_err(io::Error::other)?)
}

/// Opens a regular file without ever waiting for it, as opening a pipe or a device might.
fn open(path: &Path) -> Result<File, Unreadable> {
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(Unreadable::NotAFile) }
}

/// Opens a regular file that only root and the daemon's user can read. The daemon's own group cannot either: users who
/// may connect to the socket may be in it. The open file is checked, not the path, so that no other file can take its
/// place in between.
fn open_guarded(path: &Path) -> Result<File, Unreadable> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    let (mode, owner, path) = (metadata.mode() & 0o7777, metadata.uid(), path.to_owned());
    if mode & 0o077 != 0 {
        Err(Unreadable::Exposed(path, mode))
    } else if owner != 0 && owner != geteuid().as_raw() {
        Err(Unreadable::ForeignOwner(path, owner))
    } else {
        Ok(file)
    }
}

fn text(bytes: Vec<u8>) -> Result<Secret, Unreadable> {
    if bytes.len() > SECRET_MAX {
        return Err(Unreadable::TooLarge);
    }
    let mut text = String::from_utf8(bytes).map_err(|_| Unreadable::NotText)?;
    if text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    if text.is_empty() {
        return Err(Unreadable::Empty);
    }
    if text.contains('\0') {
        return Err(Unreadable::HasNul);
    }
    Ok(Secret::from(text))
}

#[cfg(test)]
mod tests;

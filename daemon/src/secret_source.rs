//! Reads secrets where they are kept: systemd credentials, files, the environment, the output of commands. A secret is
//! read at each use and not kept here, so a new one needs no reload.
//!
//! No error repeats any of a secret. An error names the source and the remedy.

mod command;

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::Serialize;
use tokend_protocol::Secret;
use tokio::sync::Semaphore;

/// The largest secret, in bytes: some ten times the size of a private key or an assertion.
pub const SECRET_MAX: usize = 64 * 1024;

/// Files that are read at once. On a file system that hangs, each read occupies a thread of tokio's pool. The pool has
/// several hundred, so other work has enough of them.
static FILES: Semaphore = Semaphore::const_new(64);

/// Files that are read at once for callers. They count among [`FILES`] too.
static CALLERS_FILES: Semaphore = Semaphore::const_new(32);

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

/// Identifies the content of a file without reading it: device, inode, size, owner, mode and times, following links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(Option<(u64, u64, u64, u32, u32, [i64; 4])>);

impl Stamp {
    fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|of| {
            let times = [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()];
            (of.dev(), of.ino(), of.size(), of.uid(), of.mode(), times)
        }))
    }
}

/// A secret that could not be read: its source, as in `secret file /etc/tokend/psb.secret`, and why.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct SecretSourceError {
    place: String,
    reason: Unreadable,
}

/// Why a secret could not be read, and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Unreadable {
    /// The kind of the system's error, or `Other` if the system reported none.
    pub kind: ErrorKind,
    reason: String,
}

impl Unreadable {
    fn new(reason: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Other, reason: reason.into() }
    }
}

/// Stores the kind and the text of a system error.
impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self { kind: error.kind(), reason: format!("cannot be read: {error}") }
    }
}

impl SecretSource {
    /// Reads the present secret. One newline at its end is removed.
    ///
    /// Files are read on another thread: on a file system that hangs, no other token must wait.
    pub async fn read(&self) -> Result<Secret, SecretSourceError> {
        self.read_with(&|name| std::env::var_os(name)).await
    }

    /// Reads the secret because a caller asked for something. Callers may ask as often as they like, so they have only
    /// a share of the commands that may run and of the files that may be read at once; renewals have the rest.
    pub async fn read_for_caller(&self) -> Result<Secret, SecretSourceError> {
        match self {
            Self::Environment(_) => self.read().await,
            Self::Command(_) => {
                // Nothing closes the semaphore.
                let _share = command::CALLERS.acquire().await.ok();
                self.read().await
            }
            Self::Credential(_) | Self::File(_) => {
                let share = CALLERS_FILES.acquire().await.ok();
                let source = self.clone();
                // A task of its own has the share until the file is read, even if the caller stops waiting.
                let reading = tokio::spawn(async move {
                    let _share = share;
                    source.read().await
                });
                reading.await.unwrap_or_else(|error| {
                    let reason = io::Error::other(error).into();
                    Err(SecretSourceError { place: self.to_string(), reason })
                })
            }
        }
    }

    /// The file that holds the secret, if a file does.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Credential(name) => {
                std::env::var_os(CREDENTIALS_DIRECTORY).map(|directory| Path::new(&directory).join(name))
            }
            Self::File(path) => Some(path.clone()),
            Self::Environment(_) | Self::Command(_) => None,
        }
    }

    async fn read_with(
        &self,
        environment: &(dyn Fn(&str) -> Option<OsString> + Sync),
    ) -> Result<Secret, SecretSourceError> {
        let bytes = match self {
            Self::Credential(name) => match environment(CREDENTIALS_DIRECTORY) {
                Some(directory) => read_file(Path::new(&directory).join(name), open).await,
                None => Err(Unreadable::new(
                    "systemd gave no credentials; add LoadCredential= or LoadCredentialEncrypted= to tokend.service",
                )),
            },
            Self::File(path) if is_credential(path, environment(CREDENTIALS_DIRECTORY)) => {
                read_file(path.clone(), open).await
            }
            Self::File(path) => read_file(path.clone(), open_guarded).await,
            Self::Environment(name) => match environment(name) {
                Some(value) => Ok(value.as_bytes().to_vec()),
                None => Err(Unreadable::new(
                    "not set in the daemon's environment; add it to tokend.service, or choose another source",
                )),
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

/// The stamps of these files, taken on another thread because their file system may hang.
pub async fn stamps(paths: Vec<PathBuf>) -> Option<Vec<Stamp>> {
    on_another_thread(move || paths.iter().map(|path| Stamp::of(path)).collect()).await.ok()
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
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(Unreadable::new("not a regular file; name one with nothing but the secret"))
    }
}

/// Opens a regular file that only root and the daemon's user can read. Not even the daemon's group can: it may have the
/// users who may connect to the socket. The open file is checked, so that no other file can take its place in between.
fn open_guarded(path: &Path) -> Result<File, Unreadable> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    let (mode, owner, path, user) =
        (metadata.mode() & 0o7777, metadata.uid(), path.display(), geteuid().as_raw());
    if mode & 0o077 != 0 {
        Err(Unreadable::new(format!("mode {mode:04o} is open to other users; chmod 0600 {path}")))
    } else if owner != 0 && owner != user {
        let fault = format!("owned by user {owner}, neither root nor the daemon's; chown {user} {path}");
        Err(Unreadable::new(fault))
    } else {
        Ok(file)
    }
}

fn text(bytes: Vec<u8>) -> Result<Secret, Unreadable> {
    if bytes.len() > SECRET_MAX {
        return Err(Unreadable::new(format!(
            "has more than {SECRET_MAX} bytes, which is too large for a secret"
        )));
    }
    let not_text = |_| Unreadable::new("not UTF-8 text; put the secret there as text");
    let mut text = String::from_utf8(bytes).map_err(not_text)?;
    if text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    if text.is_empty() {
        return Err(Unreadable::new("empty; put the secret there"));
    }
    if text.contains('\0') {
        return Err(Unreadable::new("has a NUL character, which no secret can have"));
    }
    Ok(Secret::from(text))
}

#[cfg(test)]
mod tests;

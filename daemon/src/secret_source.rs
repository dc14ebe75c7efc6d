//! Reads secrets where they are kept: systemd credentials, files, the environment, the output of commands. A secret is
//! read at each use and not kept here, so a new one needs no reload. No error repeats any of a secret. An error names the
//! source and the remedy.

mod command;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::Serialize;
use tokend_protocol::Secret;
use tokio::sync::Semaphore;

/// The largest secret, in bytes: some ten times the size of a private key or an assertion.
const SECRET_MAX: usize = 64 * 1024;

/// Files that are read at once. On a file system that hangs, each read occupies a thread of tokio's pool. The pool has
/// 512, so other work has enough of them. A credential takes at most two.
static FILES: Semaphore = Semaphore::const_new(256);

/// Files that are read at once for callers. They count among [`FILES`] too.
static CALLERS_FILES: Semaphore = Semaphore::const_new(64);

/// Programs that run at once for callers. They count among [`command::COMMANDS`] too.
static CALLERS_COMMANDS: Semaphore = Semaphore::const_new(2);

/// The variable with the directory that systemd makes for the credentials of a service.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// A place that holds a secret. CONFIGURATION.md describes each.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum SecretSource {
    Credential(String),
    File(PathBuf),
    Environment(String),
    /// A program and its arguments.
    Command(Vec<String>),
}

/// Device, inode, size, owner and mode of a file, and the seconds and nanoseconds of its last modification and of its last
/// change, following links. They identify its content without reading it. `None`: there is no such file.
pub type Stamp = Option<(u64, u64, u64, u32, u32, [i64; 4])>;

/// Finds a variable of the environment.
type Variables<'a> = dyn Fn(&str) -> Option<OsString> + Sync + 'a;

/// A user's turns: how many files and programs are read at once for the calls of one user. Further calls of that user
/// wait for a turn, and only then for a place among all callers. So a user has few calls in the queue that all share.
#[derive(Clone, Debug)]
pub struct UserTurns {
    files: Arc<Semaphore>,
    commands: Arc<Semaphore>,
}

impl Default for UserTurns {
    fn default() -> Self {
        let [files, commands] = [4, 1].map(|turns| Arc::new(Semaphore::new(turns)));
        Self { files, commands }
    }
}

/// Why a secret could not be read, and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SecretSourceError {
    /// The kind of the system's error, or `Other` if the system reported none.
    pub kind: ErrorKind,
    message: String,
}

impl SecretSourceError {
    fn new(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Other, message: message.into() }
    }
}

impl From<io::Error> for SecretSourceError {
    fn from(error: io::Error) -> Self {
        Self { kind: error.kind(), message: format!("cannot be read: {error}") }
    }
}

impl SecretSource {
    /// Reads the present secret. One newline at its end is removed.
    /// Files are read on another thread: on a file system that hangs, no other token must wait.
    pub async fn read(&self) -> Result<Secret, SecretSourceError> {
        self.read_with(&|name| std::env::var_os(name), ()).await
    }

    /// Reads the secret with the permit of `turn`, if it is in a file. A read that hangs holds the permit, so all reads
    /// with one `turn` occupy at most as many threads as it has permits.
    pub async fn read_in_turn(&self, turn: &Arc<Semaphore>) -> Result<Secret, SecretSourceError> {
        let turn = if self.path().is_some() { Arc::clone(turn).acquire_owned().await.ok() } else { None };
        self.read_with(&|name| std::env::var_os(name), turn).await
    }

    /// Reads the secret because a caller asked for something. Callers may ask as often as they like, so they have only
    /// a share of the commands that may run and of the files that may be read at once; renewals have the rest. Within
    /// that share, the calls of a user wait for its `turns`.
    pub async fn read_for_caller(&self, turns: &UserTurns) -> Result<Secret, SecretSourceError> {
        let (turns, share) = match self {
            Self::Credential(_) | Self::File(_) => (&turns.files, &CALLERS_FILES),
            Self::Environment(_) => return self.read().await,
            Self::Command(_) => (&turns.commands, &CALLERS_COMMANDS),
        };
        // Nothing closes the semaphores.
        let turn = Arc::clone(turns).acquire_owned().await.ok();
        let permits = (turn, share.acquire().await.ok());
        self.read_with(&|name| std::env::var_os(name), permits).await
    }

    /// The file that holds the secret, if a file does.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Credential(name) => Some(Path::new(&std::env::var_os(CREDENTIALS_DIRECTORY)?).join(name)),
            Self::File(path) => Some(path.clone()),
            Self::Environment(_) | Self::Command(_) => None,
        }
    }

    async fn read_with(
        &self,
        variables: &Variables<'_>,
        share: impl Send + 'static,
    ) -> Result<Secret, SecretSourceError> {
        let credentials = variables(CREDENTIALS_DIRECTORY);
        let bytes = match self {
            Self::Credential(name) => match credentials {
                Some(directory) => read_file(Path::new(&directory).join(name), Some(directory), share).await,
                None => Err(SecretSourceError::new(
                    "systemd gave no credentials; add LoadCredential= or LoadCredentialEncrypted= to tokend.service",
                )),
            },
            Self::File(path) => read_file(path.clone(), credentials, share).await,
            Self::Environment(name) => match variables(name) {
                Some(value) => Ok(value.as_bytes().to_vec()),
                None => Err(SecretSourceError::new(
                    "not set in the daemon's environment; add it to tokend.service, or choose another source",
                )),
            },
            Self::Command(words) => command::output(words, variables, share).await,
        };
        let secret = bytes.and_then(text);
        secret.map_err(|error| SecretSourceError { message: format!("{self}: {error}"), ..error })
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

/// The stamps of these files, taken on another thread because their file system may hang. The thread holds a permit of
/// `turn`.
pub async fn stamps(paths: Vec<PathBuf>, turn: &Arc<Semaphore>) -> Option<Vec<Stamp>> {
    let permits = (Arc::clone(turn).acquire_owned().await.ok(), FILES.acquire().await.ok());
    on_another_thread(permits, move || paths.iter().map(|path| stamp(path)).collect()).await.ok()
}

fn stamp(path: &Path) -> Stamp {
    let of = std::fs::metadata(path).ok()?;
    let times = [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()];
    Some((of.dev(), of.ino(), of.size(), of.uid(), of.mode(), times))
}

/// Whether this process's user could read a secret file. Reads nothing. Credentials of a unit can be seen only inside
/// it, so outside they pass.
pub fn check_file(path: &Path) -> Result<(), SecretSourceError> {
    let credentials = std::env::var_os(CREDENTIALS_DIRECTORY);
    if credentials.is_none() && is_credential(path, Some("/run/credentials".as_ref())) {
        return Ok(());
    }
    open(path, credentials.as_deref()).map(drop)
}

/// Whether a file is in a directory that systemd made for credentials. systemd lets no other user in, by means that
/// the mode of the file does not show.
fn is_credential(path: &Path, directory: Option<&OsStr>) -> bool {
    let directory = directory.map(Path::new).filter(|directory| directory.is_absolute());
    let leads_out = path.components().any(|component| component == Component::ParentDir);
    directory.is_some_and(|directory| path.starts_with(directory)) && !leads_out
}

/// `share` is given back when the file is read, even if the caller stops waiting before that.
async fn read_file(
    path: PathBuf,
    credentials: Option<OsString>,
    share: impl Send + 'static,
) -> Result<Vec<u8>, SecretSourceError> {
    let permits = (share, FILES.acquire().await.ok());
    on_another_thread(permits, move || {
        let mut content = Vec::new();
        open(&path, credentials.as_deref())?.take(SECRET_MAX as u64 + 1).read_to_end(&mut content)?;
        Ok(content)
    })
    .await?
}

/// Runs `work` on another thread, with these permits: a file system that hangs keeps the thread.
pub async fn on_another_thread<T: Send + 'static>(
    permits: impl Send + 'static,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SecretSourceError> {
    let working = tokio::task::spawn_blocking(move || {
        // Given back when the work ends, not when its caller stops waiting.
        let _permits = permits;
        work()
    });
    Ok(working.await.map_err(io::Error::other)?)
}

/// Opens a regular file without ever waiting for it, as opening a pipe or a device might. Except in the directory of
/// credentials, only root and the daemon's user may have permission to read it. The daemon's group may not: callers can
/// be its members. The checks are made on the open file, so it cannot be exchanged in between.
fn open(path: &Path, credentials: Option<&OsStr>) -> Result<File, SecretSourceError> {
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    let (mode, owner, user) = (metadata.mode() & 0o7777, metadata.uid(), geteuid().as_raw());
    let shown = path.display();
    let reason = if !metadata.is_file() {
        "not a regular file; name one with nothing but the secret".to_owned()
    } else if is_credential(path, credentials) {
        return Ok(file);
    } else if mode & 0o077 != 0 {
        format!("mode {mode:04o} is open to other users; chmod 0600 {shown}")
    } else if owner != 0 && owner != user {
        format!("owned by user {owner}, neither root nor the daemon's; chown {user} {shown}")
    } else {
        return Ok(file);
    };
    Err(SecretSourceError::new(reason))
}

fn text(bytes: Vec<u8>) -> Result<Secret, SecretSourceError> {
    if bytes.len() > SECRET_MAX {
        let message = format!("has more than {SECRET_MAX} bytes, which is too large for a secret");
        return Err(SecretSourceError::new(message));
    }
    let not_text = |_| SecretSourceError::new("not UTF-8 text; put the secret there as text");
    let mut text = String::from_utf8(bytes).map_err(not_text)?;
    if text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    if text.is_empty() {
        return Err(SecretSourceError::new("empty; put the secret there"));
    }
    if text.contains('\0') {
        return Err(SecretSourceError::new("has a NUL character, which no secret can have"));
    }
    Ok(Secret::from(text))
}

#[cfg(test)]
mod tests;

//! Runs a program and takes its standard output, within bounds of time and size. No shell is involved, and
//! the program sees little of the daemon's environment.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

use super::{SECRET_MAX, Unreadable, checked_size};

/// Longer than a password manager takes that asks its server; shorter than anyone waits for a token.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Programs that run at once. A host with many tokens starts them one after the other.
const RUNNING_MAX: usize = 4;

/// How many of them callers may cause.
const CALLERS_MAX: usize = 2;

static RUNNING: Semaphore = Semaphore::const_new(RUNNING_MAX);
static CALLERS: Semaphore = Semaphore::const_new(CALLERS_MAX);

/// What a password manager needs to find its data, and nothing that may be a secret of another token.
const PASSED_ON: [&str; 13] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "GNUPGHOME",
    "PASSWORD_STORE_DIR",
    "CREDENTIALS_DIRECTORY",
];

/// Waits for one of the callers' places.
pub(super) async fn callers_share() -> Option<SemaphorePermit<'static>> {
    // An error would mean that the places were closed, which nothing does.
    CALLERS.acquire().await.ok()
}

/// The standard output of `words`, a program and its arguments, if it succeeds.
pub(super) async fn output(
    words: &[String],
    environment: &(dyn Fn(&str) -> Option<OsString> + Sync),
) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    let _place = RUNNING.acquire().await.map_err(|error| Unreadable::NotStarted(error.to_string()))?;
    let mut running = Running::start(words, environment)?;
    // Where this ends early, by time or because nobody waits any more, dropping `running` kills the program.
    match tokio::time::timeout(TIME_MAX, running.finish()).await {
        Ok(output) => output,
        Err(_) => Err(Unreadable::TimedOut(TIME_MAX.as_secs())),
    }
}

/// A program in a process group of its own, which does not outlive this value unless it came to its end.
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Running {
    fn start(words: &[String], environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Unreadable> {
        let (program, arguments) = words.split_first().ok_or(Unreadable::Empty)?;
        let passed_on = PASSED_ON.iter().filter_map(|name| Some((name, environment(name)?)));
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(passed_on)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Unreadable::NotStarted(error.to_string()))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, group })
    }

    async fn finish(&mut self) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
        let output = self.read().await?;
        let status = self.child.wait().await.map_err(super::system)?;
        // The number of a process that has been waited for may be another's by now.
        self.group = None;
        if status.success() { Ok(output) } else { Err(Unreadable::Failed(status)) }
    }

    async fn read(&mut self) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
        let mut buffer = Zeroizing::new(vec![0; SECRET_MAX + 1]);
        let mut filled = 0;
        let Some(stdout) = self.child.stdout.as_mut() else { return checked_size(buffer, filled) };
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match stdout.read(rest).await.map_err(super::system)? {
                0 => break,
                n => filled += n,
            }
        }
        checked_size(buffer, filled)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // An error means that all of the group are gone already.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

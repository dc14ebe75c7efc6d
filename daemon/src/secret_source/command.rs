//! Runs a program without a shell and reads its standard output, within bounds of time and size.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::{SECRET_MAX, Unreadable};

/// The longest that a program may run. A password manager that asks its server takes less, and callers wait longer for a
/// token.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Programs that run at once. Further ones wait.
const RUNNING_MAX: usize = 4;

/// Programs that run at once for callers.
const CALLERS_MAX: usize = 2;

static RUNNING: Semaphore = Semaphore::const_new(RUNNING_MAX);
pub(super) static CALLERS: Semaphore = Semaphore::const_new(CALLERS_MAX);

/// The variables with which a password manager finds its data. None of them holds a secret itself.
const PASSED_ON: &str = "PATH HOME USER LOGNAME LANG LC_ALL TMPDIR XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_DATA_HOME \
                         GNUPGHOME PASSWORD_STORE_DIR CREDENTIALS_DIRECTORY";

/// The standard output of `words`, a program and its arguments, if it succeeds.
pub(super) async fn output(
    words: &[String],
    environment: &(dyn Fn(&str) -> Option<OsString> + Sync),
) -> Result<Vec<u8>, Unreadable> {
    let Some((program, arguments)) = words.split_first() else { return Ok(Vec::new()) };
    // Nothing closes the semaphore.
    let _place = RUNNING.acquire().await.ok();
    let mut running = Running::start(program, arguments, environment)?;
    // If this ends early, by time-out or because its caller stops waiting, dropping `running` kills the program.
    let output = tokio::time::timeout(TIME_MAX, running.finish()).await;
    output.unwrap_or_else(|_| {
        let seconds = TIME_MAX.as_secs();
        Err(Unreadable::new(format!("gave no answer within {seconds} seconds and was killed")))
    })
}

/// A program in a process group of its own. Dropping this kills the group unless the program has ended.
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Running {
    fn start(
        program: &str,
        arguments: &[String],
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Unreadable> {
        let passed_on = PASSED_ON.split(' ').filter_map(|name| Some((name, environment(name)?)));
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
            .map_err(|error| Unreadable::new(format!("cannot be started: {error}")))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, group })
    }

    async fn finish(&mut self) -> Result<Vec<u8>, Unreadable> {
        let mut output = Vec::new();
        if let Some(stdout) = self.child.stdout.as_mut() {
            stdout.take(SECRET_MAX as u64 + 1).read_to_end(&mut output).await?;
        }
        if output.len() > SECRET_MAX {
            // Too large for a secret, however the program ends.
            return Ok(output);
        }
        let status = self.child.wait().await?;
        // The number of a process that has been waited for may be another's by now.
        self.group = None;
        if status.success() {
            Ok(output)
        } else {
            let remedy = "run it by hand as the daemon's user to see why";
            Err(Unreadable::new(format!("ended with {status}; {remedy}")))
        }
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

//! Runs a program without a shell and reads its standard output, within bounds of time and size.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::{SECRET_MAX, SecretSourceError, Variables};

/// The longest that a program may run. A password manager that asks its server takes less, and callers wait longer for a
/// token.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Programs that run at once. Further ones wait.
static RUNNING: Semaphore = Semaphore::const_new(4);

/// Programs that run at once for callers. They count among [`RUNNING`] too.
pub(super) static CALLERS: Semaphore = Semaphore::const_new(2);

/// The variables with which a password manager finds its data. None of them holds a secret itself.
const PASSED_ON: &str = "PATH HOME USER LOGNAME LANG LC_ALL TMPDIR XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_DATA_HOME \
                         GNUPGHOME PASSWORD_STORE_DIR CREDENTIALS_DIRECTORY";

/// A process group. Dropping this kills all of it.
struct ProcessGroup(Option<Pid>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error means that all of the group are gone already.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// The standard output of `words`, a program and its arguments, if it succeeds.
pub(super) async fn output(
    words: &[String],
    variables: &Variables<'_>,
) -> Result<Vec<u8>, SecretSourceError> {
    let Some((program, arguments)) = words.split_first() else { return Ok(Vec::new()) };
    // Nothing closes the semaphore.
    let _place = RUNNING.acquire().await.ok();
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(PASSED_ON.split(' ').filter_map(|name| Some((name, variables(name)?))))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| SecretSourceError::new(format!("cannot be started: {error}")))?;
    // If this ends early, by time-out or because its caller stops waiting, dropping `group` kills the program.
    let mut group = ProcessGroup(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let finish = async {
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.as_mut() {
            stdout.take(SECRET_MAX as u64 + 1).read_to_end(&mut output).await?;
        }
        if output.len() > SECRET_MAX {
            // Too large for a secret, however the program ends.
            return Ok(output);
        }
        let status = child.wait().await?;
        // The number of a process that has been waited for may be another's by now.
        group.0 = None;
        if status.success() {
            return Ok(output);
        }
        let remedy = "run it by hand as the daemon's user to see why";
        Err(SecretSourceError::new(format!("ended with {status}; {remedy}")))
    };
    tokio::time::timeout(TIME_MAX, finish).await.unwrap_or_else(|_| {
        let seconds = TIME_MAX.as_secs();
        Err(SecretSourceError::new(format!("gave no answer within {seconds} seconds and was killed")))
    })
}

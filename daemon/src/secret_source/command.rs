//! Runs a program and takes its output for the secret. A program that is killed does not leave behind what it started.

use std::ops::Range;
use std::process::Stdio;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::{SECRET_MAX, SecretSourceError, Variables};

/// The longest that a program may run. A password manager that asks its server takes less, and callers wait longer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

const COMMANDS_MAX: usize = 4;

/// Programs that run at once. Further ones wait.
pub(super) static COMMANDS: Semaphore = Semaphore::const_new(COMMANDS_MAX);

/// The variables with which a password manager finds its data. None of them holds a secret itself.
const PASSED_ON: &str = "PATH HOME USER LOGNAME LANG LC_ALL TMPDIR XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_DATA_HOME \
                         GNUPGHOME PASSWORD_STORE_DIR CREDENTIALS_DIRECTORY";

/// The variable by which a program and all that it started are found: a name of this daemon and the program's number. They
/// inherit it, even a process that leaves the program's process group and session, and whose parent has ended.
const MARK: &str = "TOKEND_SECRET_COMMAND";

/// The beginning of all marks of this daemon.
static MARKS: LazyLock<String> = LazyLock::new(|| format!("{:016x}-", fastrand::u64(..)));

/// The number of the next program.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Rounds in which marked processes are killed. Each finds those that were started during the one before.
const ROUNDS: usize = 16;

/// A program that runs. Dropping this kills it with all that it started, on another thread, which keeps the permits.
struct Running {
    /// Its process group, until it has ended.
    group: Option<Pid>,
    has_succeeded: bool,
    number: u64,
    permits: Option<Box<dyn Send>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // An error means that all of the group are gone already.
            let _ = killpg(group, Signal::SIGKILL);
        }
        // An agent that a password manager leaves behind serves the other programs that run. It ends with the last one.
        let next = NEXT.load(Ordering::SeqCst);
        let is_last = COMMANDS.available_permits() + 1 >= COMMANDS_MAX;
        let numbers = match (is_last, self.has_succeeded) {
            (true, _) => 0..next,
            (false, false) => self.number..self.number + 1,
            (false, true) => return,
        };
        let permits = self.permits.take();
        let end = move || {
            let _permits = permits;
            kill_marked(&numbers);
        };
        // Reading about all processes takes milliseconds.
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn_blocking(end));
        }
    }
}

/// The standard output of `words`, a program and its arguments, if it succeeds. `share` is given back when nothing of the
/// program is left.
pub(super) async fn output(
    words: &[String],
    variables: &Variables<'_>,
    share: impl Send + 'static,
) -> Result<Vec<u8>, SecretSourceError> {
    let Some((program, arguments)) = words.split_first() else { return Ok(Vec::new()) };
    // Nothing closes the semaphore.
    let place = COMMANDS.acquire().await.ok();
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(PASSED_ON.split(' ').filter_map(|name| Some((name, variables(name)?))))
        .env(MARK, format!("{}{number}", *MARKS))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| SecretSourceError::new(format!("cannot be started: {error}")))?;
    // If this ends early, by time-out or because its caller stops waiting, dropping `running` kills the program.
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut running =
        Running { group, has_succeeded: false, number, permits: Some(Box::new((place, share))) };
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
        running.group = None;
        if status.success() {
            running.has_succeeded = true;
            return Ok(output);
        }
        let remedy = "run it by hand as the daemon's user to see why";
        Err(SecretSourceError::new(format!("ended with {status}; {remedy}")))
    };
    tokio::time::timeout(COMMAND_TIMEOUT, finish).await.unwrap_or_else(|_| {
        let seconds = COMMAND_TIMEOUT.as_secs();
        Err(SecretSourceError::new(format!("gave no answer within {seconds} seconds and was killed")))
    })
}

/// Kills all processes that bear the mark of a program with one of these numbers. Blocks.
fn kill_marked(numbers: &Range<u64>) {
    let start = format!("{MARK}={}", *MARKS);
    let number = |variable: &[u8]| -> Option<u64> {
        std::str::from_utf8(variable.strip_prefix(start.as_bytes())?).ok()?.parse().ok()
    };
    let is_marked = |environment: Vec<u8>| {
        environment.split(|byte| *byte == 0).filter_map(number).any(|number| numbers.contains(&number))
    };
    for _ in 0..ROUNDS {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let marked = processes.filter(|id| std::fs::read(format!("/proc/{id}/environ")).is_ok_and(is_marked));
        let killed: Vec<_> = marked.map(|id| kill(Pid::from_raw(id), Signal::SIGKILL)).collect();
        if killed.is_empty() {
            return;
        }
    }
}

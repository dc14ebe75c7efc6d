//! The real `tokend` as a process, watched from outside.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::{TestDir, Tokenctl, process, program, secrets, wait};

/// How long a daemon may take to stop.
const STOP: Duration = Duration::from_secs(180);

/// A running daemon. It is killed when it is dropped, and what it left behind is searched for secrets.
#[derive(Debug)]
pub struct RealDaemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    stopped: bool,
}

/// How a daemon is started.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    stdin: Option<OwnedFd>,
    socket: PathBuf,
    log: PathBuf,
}

impl Launch {
    /// The daemon of a [`TestDir`], which logs all that it can.
    pub fn new(home: &TestDir) -> Self {
        Self::logging(home, "trace")
    }

    /// The daemon of a [`TestDir`], which logs from this level on.
    pub fn logging(home: &TestDir, level: &str) -> Self {
        Self::of(&program::tokend(), home, level)
    }

    /// Another copy of the program as the daemon of a [`TestDir`].
    pub fn of(program: &Path, home: &TestDir, level: &str) -> Self {
        let mut command = Command::new(program);
        command.arg("--config").arg(home.config()).arg("--socket").arg(home.socket());
        clean(command.args(["--log-level", level]));
        Self { command, stdin: None, socket: home.socket(), log: home.log() }
    }

    /// Starts the daemon through a wrapper, whose command line ends in the daemon's own. The wrapper must `exec`.
    #[must_use]
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        let Some((first, rest)) = wrapper.split_first() else { return self };
        let mut command = Command::new(first);
        clean(command.args(rest).arg(self.command.get_program()).args(self.command.get_args()));
        command.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.command = command;
        self
    }

    /// Passes a listening socket, handed over as a service manager does: as descriptor 3, told by
    /// `LISTEN_FDS`, to the process named by `LISTEN_PID`.
    #[must_use]
    pub fn activated_by(self, path: &Path, listener: &UnixListener) -> Self {
        const HAND_OVER: &str = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
        self.handed_over_by(HAND_OVER, path, listener)
    }

    /// Passes a listening socket as standard input of a shell, whose script hands over what it likes and ends in
    /// `exec "$@"`.
    #[must_use]
    pub fn handed_over_by(self, script: &str, path: &Path, listener: &UnixListener) -> Self {
        let mut launch = self.through(&["sh", "-c", script, "sh"]);
        launch.stdin = Some(OwnedFd::from(listener.try_clone().expect("a socket can be cloned")));
        path.clone_into(&mut launch.socket);
        launch
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.command.arg(argument);
        self
    }

    /// Sets a variable in the daemon's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it, and waits until it takes connections.
    ///
    /// # Panics
    /// When it ends before it does, or does not in time; the message has its log.
    pub fn start(self) -> RealDaemon {
        self.try_start().unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// Starts the daemon like [`Launch::start`], and returns the reason if it does not start.
    pub fn try_start(self) -> Result<RealDaemon, String> {
        let mut daemon = self.spawn();
        let ready = wait::within(wait::PATIENCE, || {
            if daemon.has_ended() {
                return Some(false);
            }
            UnixStream::connect(&daemon.socket).is_ok().then_some(true)
        });
        match ready {
            Some(true) => {
                daemon.assert_command_line_clean();
                Ok(daemon)
            }
            Some(false) => Err(format!("tokend ended before it was ready:\n{}", daemon.log())),
            None => Err(format!("tokend takes no connections:\n{}", daemon.log())),
        }
    }

    /// Starts the daemon without waiting for it.
    pub fn spawn(mut self) -> RealDaemon {
        let log = File::options().create(true).append(true).open(&self.log).expect("the log can be written");
        let child = self
            .command
            .stdin(self.stdin.take().map_or_else(Stdio::null, Stdio::from))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("tokend can be started");
        RealDaemon { child, socket: self.socket, log: self.log, stopped: false }
    }
}

/// Removes variables that the machine's own service manager may have set.
fn clean(command: &mut Command) -> &mut Command {
    [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "FDSTORE",
        "JOURNAL_STREAM",
        "RUST_LOG",
        "TOKEND_EGRESS_DIR",
    ]
    .into_iter()
    .fold(command, |command, name| command.env_remove(name))
}

impl RealDaemon {
    /// Starts the daemon of a [`TestDir`].
    pub fn start(home: &TestDir) -> Self {
        Launch::new(home).start()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `tokenctl` for its socket.
    pub fn tokenctl(&self) -> Tokenctl {
        Tokenctl::new(&self.socket)
    }

    /// The connections to its socket, those that it has not accepted yet included (`/proc/net/unix`, proc(5)).
    ///
    /// # Panics
    /// When the kernel does not tell.
    pub fn connections(&self) -> usize {
        let path = self.socket.to_str().expect("the path of a test's socket is text");
        let sockets = fs::read_to_string("/proc/net/unix").expect("the kernel lists its sockets");
        // The sixth field is 01 for the listener, 02 for a connection in its queue, and 03 for one that is accepted.
        let columns = sockets.lines().map(|line| line.split_whitespace().skip(5).collect::<Vec<_>>());
        columns.filter(|columns| matches!(columns[..], ["02" | "03", _, of] if of == path)).count()
    }

    /// All that it wrote to standard output and standard error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log has all these words in one line: the first such line.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_for_log(&self, words: &[&str]) -> String {
        wait::until(&format!("a line with {words:?} in the daemon's log"), || {
            let log = self.log();
            log.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().expect("a process id is small"));
        signal::kill(pid, signal).expect("our own child can be signalled");
    }

    /// Kills it, as a crash does, and waits for its end.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.wait_for_exit(), 128 + 9);
    }

    /// Waits for its end: its exit code, or 128 and the signal's number.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait_for_exit(&mut self) -> i32 {
        let code = process::exit_code_within(&mut self.child, STOP);
        self.stopped = code.is_some();
        code.unwrap_or_else(|| panic!("tokend did not end:\n{}", self.log()))
    }

    /// Tells it to stop, and waits: its exit code.
    pub fn stop(&mut self) -> i32 {
        self.assert_command_line_clean();
        self.signal(Signal::SIGTERM);
        self.wait_for_exit()
    }

    fn has_ended(&mut self) -> bool {
        self.stopped = self.stopped || self.child.try_wait().is_ok_and(|status| status.is_some());
        self.stopped
    }

    fn assert_command_line_clean(&self) {
        let path = format!("/proc/{}/cmdline", self.pid());
        let Ok(bytes) = fs::read(&path) else { return };
        secrets::assert_absent(&path, &String::from_utf8_lossy(&bytes));
    }
}

impl Drop for RealDaemon {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            show(&format!("--- the daemon's log\n{}---", self.log()));
            return;
        }
        secrets::assert_absent("the daemon's log", &self.log());
    }
}

#[expect(clippy::print_stderr, reason = "a failed test shows what the daemon said")]
fn show(text: &str) {
    eprintln!("{text}");
}

//! The real `tokend-egress` as a process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::{TestDir, program, secrets, wait};

/// A running helper. It is killed when it is dropped.
#[derive(Debug)]
pub struct RealEgress {
    child: Child,
    log: PathBuf,
}

impl RealEgress {
    /// Starts the one of a [`TestDir`], which logs all that it can, and waits until it serves.
    ///
    /// # Panics
    /// When it does not in time; the message has its log.
    pub fn start(home: &TestDir) -> Self {
        let log = home.path().join("egress.log");
        let written = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let served_before = serving(&log);
        let mut command = Command::new(program::tokend_egress());
        command.arg("--socket").arg(home.egress_socket()).args(["--log-level", "trace"]);
        for of_this_service in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "JOURNAL_STREAM"] {
            command.env_remove(of_this_service);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(written).spawn();
        let helper = Self { child: child.expect("tokend-egress can be started"), log };
        wait::until("that tokend-egress serves", || (serving(&helper.log) > served_before).then_some(()));
        helper
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id is small"));
        signal::kill(pid, signal).expect("our own child can be signalled");
    }

    /// All that it and those before it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// How many have begun to serve.
fn serving(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().matches("serving").count()
}

impl Drop for RealEgress {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            secrets::assert_absent("the log of tokend-egress", &self.log());
        }
    }
}

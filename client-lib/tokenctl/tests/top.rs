//! `tokenctl top` on a terminal, against a daemon that answers what each test tells it to.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "../../tests/fake/mod.rs"]
mod fake;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fake::{FakeDaemon, daemon_status, token_status};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokend_client::{ErrorClass, LastError, State, Timestamp, TokenStatus};
use tokend_protocol::{Reply, StatusReply};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(180);

/// The control sequences at the start, and at the end.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn socket(dir: &TempDir) -> PathBuf {
    dir.path().join("tokend.sock")
}

fn daemon(dir: &TempDir, tokens: Vec<TokenStatus>) -> FakeDaemon {
    FakeDaemon::answering(&socket(dir), move |_| {
        Reply::Status(StatusReply { daemon: daemon_status(), tokens: tokens.clone(), more: false })
    })
}

/// A token in a state, without one that is held.
fn in_state(name: &str, state: State) -> TokenStatus {
    TokenStatus { state, held: None, next_attempt: None, ..token_status(name) }
}

/// The running program on a terminal of its own. It is killed when dropped.
struct OnTerminal {
    child: Child,
    terminal: OwnedFd,
    keys: File,
    written: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(dir: &TempDir, height: u16, width: u16) -> Self {
        Self::through(&[], dir, height, width)
    }

    /// Starts it with the command of a shell.
    fn through(shell: &[&str], dir: &TempDir, height: u16, width: u16) -> Self {
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        // The terminal controls the program, so that Ctrl-C is a signal.
        let mut command = Command::new("setsid");
        command.arg("--ctty").args(shell).arg(env!("CARGO_BIN_EXE_tokenctl"));
        command.arg("--socket").arg(socket(dir)).arg("top");
        command.env("TERM", "xterm").env("NO_COLOR", "1").stdin(slave()).stdout(slave()).stderr(slave());
        let child = command.spawn().unwrap();
        let (keys, mut screen) = (File::from(pty.master.try_clone().unwrap()), File::from(pty.master));
        let written = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&written);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read) = screen.read(&mut bytes) {
                shared.lock().unwrap().extend(bytes.iter().take(read));
            }
        });
        Self { child, terminal: pty.slave, keys, written }
    }

    fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// The last picture, in lines.
    fn picture(&self) -> Vec<String> {
        let written = self.written();
        let last = written.rsplit("\x1b[H").find(|picture| picture.contains("\x1b[J")).unwrap_or_default();
        let last = last.split("\x1b[J").next().unwrap_or_default();
        last.split("\r\n").map(|line| line.replace("\x1b[K", "")).collect()
    }

    /// Waits for a line of the picture.
    fn wait_for(&self, start: &str) {
        eventually(start, || self.picture().iter().any(|line| line.starts_with(start)));
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    fn is_a_screen(&self) -> bool {
        let settings = tcgetattr(&self.terminal).unwrap();
        !settings.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    /// Waits for the end of the program, which leaves the terminal as it was.
    #[track_caller]
    fn ends(mut self) {
        let mut status = None;
        eventually("the program ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(0), "{}", self.written());
        let local = tcgetattr(&self.terminal).unwrap().local_flags;
        assert!(local.contains(LocalFlags::ICANON | LocalFlags::ECHO), "{local:?}");
        eventually("the screen is left", || self.written().ends_with(LEAVE));
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_worst_tokens_come_first_and_a_key_ends_it() {
    let dir = TempDir::new().unwrap();
    let message = "no answer within 10s".to_owned();
    let failed = LastError { class: ErrorClass::Timeout, message, at: Timestamp(0) };
    let _daemon = daemon(
        &dir,
        vec![
            in_state("a", State::Fresh),
            in_state("b", State::Degraded),
            TokenStatus { last_error: Some(failed), failures: 7, ..in_state("c", State::Unavailable) },
            TokenStatus { failures: 8, ..in_state("d", State::Unavailable) },
            in_state("e", State::NeedsOperator),
        ],
    );
    let mut top = OnTerminal::start(&dir, 24, 120);
    top.wait_for("5 tokens: 1 needs-operator, 2 unavailable, 1 degraded, 1 fresh; q ends");
    assert!(top.is_a_screen() && top.written().starts_with(ENTER), "{:?}", top.written());
    let picture = top.picture();
    let [daemon, _, head, tokens @ ..] = &picture[..] else { panic!("{picture:?}") };
    assert!(daemon.starts_with("tokend 9.8.7, pid 4711, up "), "{daemon}");
    assert_eq!(head, "NAME  STATE           EXPIRES-IN  AGE  RENEWS-IN  HAND-OUTS  FAILURES  LAST-ERROR");
    let names: String = tokens.iter().map(|line| line.get(..1).unwrap()).collect();
    assert_eq!(names, "edcba");
    let c = tokens.get(2).unwrap();
    assert!(
        c.starts_with("c     unavailable     -           -    -          40         7         timeout "),
        "{c}"
    );
    assert!(c.chars().count() <= 120 && c.contains(" ago: no"), "{c}");
    top.keys.write_all(b"xq").unwrap();
    top.ends();
}

#[test]
fn it_fits_the_terminal() {
    let dir = TempDir::new().unwrap();
    let tokens = (0..40).map(|number| in_state(&format!("token-{number:02}"), State::Fresh)).collect();
    let _daemon = daemon(&dir, tokens);
    let mut top = OnTerminal::start(&dir, 10, 30);
    top.wait_for("34 more");
    let picture = top.picture();
    assert_eq!(picture.len(), 10, "{picture:?}");
    assert!(picture.iter().all(|line| line.chars().count() <= 30), "{picture:?}");
    assert_eq!(picture.get(3).map(String::as_str), Some("token-00  fresh  -           -"));
    // Ctrl-C, as the terminal makes it a signal.
    top.keys.write_all(b"\x03").unwrap();
    top.ends();
}

#[test]
fn it_fits_the_terminal_before_the_first_answer() {
    let dir = TempDir::new().unwrap();
    let mut top = OnTerminal::start(&dir, 1, 80);
    top.wait_for("no daemon at ");
    assert_eq!(top.picture().len(), 1, "{:?}", top.picture());
    top.keys.write_all(b"q").unwrap();
    top.ends();
}

#[test]
fn it_outlives_the_daemon() {
    let dir = TempDir::new().unwrap();
    let first = daemon(&dir, vec![in_state("psb", State::Fresh)]);
    let mut top = OnTerminal::start(&dir, 24, 80);
    top.wait_for("psb   fresh");
    drop(first);
    top.wait_for("no daemon at ");
    top.wait_for("psb   fresh");
    let _second = daemon(&dir, vec![in_state("psb", State::Degraded)]);
    top.wait_for("psb   degraded");
    top.wait_for("tokend 9.8.7");
    top.keys.write_all(b"q").unwrap();
    top.ends();
}

#[test]
fn each_signal_restores_the_terminal() {
    let dir = TempDir::new().unwrap();
    let _daemon = daemon(&dir, vec![in_state("psb", State::Fresh)]);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let top = OnTerminal::start(&dir, 24, 80);
        top.wait_for("psb");
        kill(top.pid(), signal).unwrap();
        top.ends();
    }
}

#[test]
fn a_suspended_program_gives_the_terminal_back_until_it_goes_on() {
    let dir = TempDir::new().unwrap();
    let _daemon = daemon(&dir, vec![in_state("psb", State::Fresh)]);
    // A shell with job control, which goes on when its job stops.
    let shell = ["sh", "-mc", r#""$@"; echo it has stopped; read line; fg"#, "sh"];
    let mut top = OnTerminal::through(&shell, &dir, 24, 80);
    top.wait_for("psb");
    // Ctrl-Z.
    top.keys.write_all(b"\x1a").unwrap();
    eventually("the program stops", || top.written().contains("it has stopped"));
    assert!(!top.is_a_screen());
    assert_eq!(top.written().matches(LEAVE).count(), 1);
    top.keys.write_all(b"\n").unwrap();
    eventually("the screen is back", || top.written().matches(ENTER).count() == 2 && top.is_a_screen());
    top.keys.write_all(b"q").unwrap();
    top.ends();
}

#[test]
fn a_program_that_no_shell_can_continue_is_not_suspended() {
    let dir = TempDir::new().unwrap();
    let _daemon = daemon(&dir, vec![in_state("psb", State::Fresh)]);
    let mut top = OnTerminal::start(&dir, 24, 80);
    top.wait_for("psb");
    for screens in 2..4 {
        top.keys.write_all(b"\x1a").unwrap();
        eventually("it goes on", || top.written().matches(ENTER).count() == screens && top.is_a_screen());
    }
    top.keys.write_all(b"q").unwrap();
    top.ends();
}

#[test]
fn without_a_terminal_it_names_what_to_use() {
    let run = |args: &[&str]| -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tokenctl"));
        command.args(args).stdin(Stdio::null()).output().unwrap()
    };
    let message = "top needs a terminal; a program can use `tokenctl status --json`";
    let ran = run(&["top"]);
    assert_eq!((ran.status.code(), ran.stdout), (Some(2), Vec::new()));
    assert_eq!(String::from_utf8(ran.stderr).unwrap(), format!("tokenctl: {message}\n"));
    let json = run(&["top", "--json"]);
    assert_eq!(json.status.code(), Some(2));
    assert!(String::from_utf8(json.stdout).unwrap().contains(message));
}

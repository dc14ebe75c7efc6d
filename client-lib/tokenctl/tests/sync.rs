//! `tokenctl sync` against a daemon that sends what each test needs.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "../../tests/fake/mod.rs"]
mod fake;

use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fake::{FakeDaemon, error, name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokend_client::{
    BootInstant, ErrorClass, EventReply, Fingerprint, HeldToken, Secret, State, TokenInfo, TokenReply,
};
use tokend_protocol::{ErrorCode, Reply};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(180);

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A directory with the socket, the file and what the program writes to standard error.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A daemon that sends the same token to each watch, but as a restarted one, with another fingerprint.
    fn daemon(&self, text: &'static str) -> FakeDaemon {
        FakeDaemon::answering(&self.path("socket"), move |_| brings(text, PATIENCE))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tokenctl"));
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::options().create(true).append(true).open(self.path("stderr")).unwrap());
        command.arg("--socket").arg(self.path("socket")).args(["sync", "psb", "--file"]);
        command.arg(self.path("token")).args(args);
        command
    }

    fn start(&self, args: &[&str]) -> Running {
        Running(self.command(args).spawn().unwrap())
    }

    fn exit_code(&self, args: &[&str]) -> Option<i32> {
        self.command(args).status().unwrap().code()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn wait_for(&self, name: &str, content: &str) {
        eventually(content, || self.read(name) == content);
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The running program. It is killed when dropped.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The event that brings this token, each time with another fingerprint.
fn brings(text: &str, lasts: Duration) -> Reply {
    let now = tokend_client::now();
    let expires_at = BootInstant(now.0 + u64::try_from(lasts.as_millis()).unwrap());
    let fingerprint = Fingerprint(now.0.to_be_bytes());
    let info = TokenInfo { issued_at: now, expires_at, fingerprint, ..fake::info() };
    let TokenInfo { issued_at, expires_at_wall, .. } = info;
    let token = Secret::from(text.to_owned());
    Reply::Event(EventReply {
        held: Some(HeldToken { issued_at, expires_at, expires_at_wall, fingerprint }),
        token: Some(TokenReply { info, token, token_type: "Bearer".to_owned(), scope: None }),
        ..event(State::Fresh)
    })
}

fn event(state: State) -> EventReply {
    let (index, name) = (0, name("psb"));
    EventReply { index, name, state, held: None, last_error: None, next_attempt: None, token: None }
}

#[test]
fn each_token_replaces_the_whole_file_and_a_command_runs_after_each() {
    let bench = Bench::new();
    let daemon = bench.daemon("first");
    let copies = bench.path("copies");
    let script = format!("cat {0}/token >>{0}/copies; echo >>{0}/copies", bench.0.path().display());
    let _sync = bench.start(&["--mode", "0640", "--then", "sh", "-c", &script, "--json"]);
    bench.wait_for("token", "first");
    bench.wait_for("copies", "first\n");
    let before = fs::metadata(bench.path("token")).unwrap();
    assert_eq!(before.permissions().mode() & 0o7777, 0o640);
    let mut open = File::open(bench.path("token")).unwrap();
    daemon.push(1, brings("second", PATIENCE));
    bench.wait_for("token", "second");
    bench.wait_for("copies", "first\nsecond\n");
    assert_ne!(fs::metadata(bench.path("token")).unwrap().ino(), before.ino(), "it is another file");
    assert_eq!(std::io::read_to_string(&mut open).unwrap(), "first", "a reader keeps what it opened");
    assert_eq!(bench.names(), ["copies", "socket", "stderr", "token"]);
    assert_eq!((bench.read("stderr"), copies.exists()), (String::new(), true));
}

#[test]
fn a_file_is_for_its_owner_unless_the_mode_says_otherwise() {
    let bench = Bench::new();
    let _daemon = bench.daemon("first");
    // As a program that was killed during a write leaves it.
    fs::write(bench.path(".token.tmp"), "half of a tok").unwrap();
    let _sync = bench.start(&[]);
    bench.wait_for("token", "first");
    assert_eq!(fs::metadata(bench.path("token")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!bench.path(".token.tmp").exists());
    for mode in ["0644", "0604", "0700", "4600", "0040", "9", ""] {
        assert_eq!(bench.exit_code(&["--mode", mode]), Some(2), "{mode}");
    }
}

#[test]
fn the_file_has_the_format_that_its_reader_needs() {
    for (format, content) in
        [("token", "first"), ("header", "Authorization: Bearer first\n"), ("env", "TOKEN=first\n")]
    {
        let bench = Bench::new();
        let _daemon = bench.daemon("first");
        let _sync = bench.start(&["--format", format]);
        bench.wait_for("token", content);
    }
    let bench = Bench::new();
    let _daemon = bench.daemon("first");
    let _sync = bench.start(&["--format", "json"]);
    eventually("an object", || bench.read("token").ends_with('\n'));
    let object: serde_json::Value = serde_json::from_str(&bench.read("token")).unwrap();
    assert_eq!(
        ["name", "token", "token_type"].map(|key| object[key].as_str()),
        ["psb", "first", "Bearer"].map(Some)
    );
}

#[test]
fn a_token_that_an_environment_file_cannot_have_is_refused() {
    let bench = Bench::new();
    let _daemon = bench.daemon("$(id) 'first");
    assert_eq!(bench.exit_code(&["--format", "env"]), Some(1));
    assert!(bench.read("stderr").contains("characters that an environment file cannot have"));
    assert!(!bench.read("stderr").contains("first") && !bench.path("token").exists());
}

#[test]
fn a_restart_of_the_daemon_is_survived_and_the_same_token_is_written_once() {
    let bench = Bench::new();
    let runs = format!("echo >>{}", bench.path("runs").display());
    let _sync = bench.start(&["--then", "sh", "-c", &runs]);
    eventually("a message", || bench.read("stderr").contains("waiting for the first token"));
    let daemon = bench.daemon("first");
    bench.wait_for("token", "first");
    bench.wait_for("runs", "\n");
    let written = fs::metadata(bench.path("token")).unwrap().ino();
    drop(daemon);
    let daemon = bench.daemon("first");
    eventually("another watch", || !daemon.requests().is_empty());
    daemon.push(1, brings("second", PATIENCE));
    bench.wait_for("token", "second");
    bench.wait_for("runs", "\n\n");
    assert_ne!(fs::metadata(bench.path("token")).unwrap().ino(), written);
    assert_eq!(bench.read("stderr").lines().count(), 1, "{}", bench.read("stderr"));
}

#[test]
fn the_last_token_stays_in_the_file_and_standard_error_says_why() {
    let bench = Bench::new();
    let daemon = FakeDaemon::answering(&bench.path("socket"), |_| brings("first", Duration::from_secs(1)));
    let _sync = bench.start(&[]);
    let said = |words: &str| eventually(words, || bench.read("stderr").contains(words));
    bench.wait_for("token", "first");
    said("no valid token of psb yet");
    let failed = EventReply { last_error: Some(ErrorClass::Timeout), ..event(State::Unavailable) };
    daemon.push(1, Reply::Event(failed.clone()));
    said("class timeout");
    // Each reason is reported once.
    daemon.push(1, Reply::Event(event(State::Pending)));
    daemon.push(1, Reply::Event(failed));
    daemon.push(1, brings("second", PATIENCE));
    bench.wait_for("token", "second");
    daemon.push(1, Reply::Error(error(ErrorCode::NotAllowed)));
    said("the daemon's words");
    assert_eq!(bench.read("token"), "second");
    let lines = bench.read("stderr");
    let kept = format!("; {} keeps the last token", bench.path("token").display());
    assert!(lines.lines().count() == 3 && lines.lines().all(|line| line.ends_with(&kept)), "{lines}");
}

#[test]
fn a_command_that_fails_or_hangs_stops_no_write() {
    let bench = Bench::new();
    let daemon = bench.daemon("first");
    let script =
        format!("cd {}; cat token >>seen; test -e go && exit 3; sleep 600", bench.0.path().display());
    let sync = bench.start(&["--then", "sh", "-c", &script]);
    bench.wait_for("seen", "first");
    for token in ["second", "third", "fourth"] {
        daemon.push(1, brings(token, PATIENCE));
        bench.wait_for("token", token);
    }
    assert_eq!(bench.read("seen"), "first", "the command still runs");
    fs::write(bench.path("go"), "").unwrap();
    let children = format!("/proc/{0}/task", sync.0.id());
    for task in fs::read_dir(children).unwrap() {
        let children = fs::read_to_string(task.unwrap().path().join("children")).unwrap();
        for child in children.split_whitespace() {
            kill(Pid::from_raw(child.parse().unwrap()), Signal::SIGKILL).unwrap();
        }
    }
    bench.wait_for("seen", "firstfourth");
    let failed = |how: &str| format!("tokenctl: the command sh failed: {how}\n");
    bench.wait_for("stderr", &(failed("signal: 9 (SIGKILL)") + &failed("exit status: 3")));
    daemon.push(1, brings("fifth", PATIENCE));
    bench.wait_for("seen", "firstfourthfifth");
}

#[test]
fn the_service_manager_is_told_once_there_is_a_file() {
    let bench = Bench::new();
    let named = format!("tokenctl-sync-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&named).unwrap();
    let manager = bench.path("notify");
    for (address, socket) in [
        (manager.display().to_string(), UnixDatagram::bind(&manager).unwrap()),
        (format!("@{named}"), UnixDatagram::bind_addr(&abstract_name).unwrap()),
    ] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let next = || {
            let mut datagram = [0; 4096];
            let length = socket.recv(&mut datagram).unwrap();
            String::from_utf8(datagram[..length].to_vec()).unwrap()
        };
        let _ = fs::remove_file(bench.path("token"));
        let script = format!("echo ${{NOTIFY_SOCKET-none}} >{}", bench.path("env").display());
        let mut command = bench.command(&["--then", "sh", "-c", &script]);
        let _sync = Running(command.env("NOTIFY_SOCKET", address).spawn().unwrap());
        assert!(next().starts_with("STATUS=psb: the daemon cannot be reached"));
        assert!(!bench.path("token").exists());
        let _daemon = bench.daemon("first");
        assert_eq!(next(), "READY=1\nSTATUS=psb: the token in the file expires at 2033-05-18T03:33:20Z");
        assert_eq!(bench.read("token"), "first");
        bench.wait_for("env", "none\n");
    }
}

#[test]
fn a_signal_ends_it_cleanly_whatever_it_waits_for() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let bench = Bench::new();
        let mut waiting = bench.start(&[]);
        eventually("a message", || bench.read("stderr").contains("waiting for the first token"));
        waiting.signal(signal);
        assert_eq!(waiting.0.wait().unwrap().code(), Some(0));
        let _daemon = bench.daemon("first");
        let mut synced = bench.start(&[]);
        bench.wait_for("token", "first");
        synced.signal(signal);
        assert_eq!(synced.0.wait().unwrap().code(), Some(0));
        assert_eq!(bench.names(), ["socket", "stderr", "token"]);
    }
}

#[test]
fn a_failure_that_does_not_pass_ends_it_before_the_first_token() {
    let bench = Bench::new();
    let daemon = FakeDaemon::answering(&bench.path("socket"), |_| Reply::Error(error(ErrorCode::NotAllowed)));
    assert_eq!(bench.exit_code(&[]), Some(4));
    drop(daemon);
    let _daemon = bench.daemon("first");
    fs::create_dir(bench.path("token")).unwrap();
    assert_eq!(bench.exit_code(&[]), Some(1));
    let message = format!("tokenctl: cannot write {}: ", bench.path("token").display());
    assert!(bench.read("stderr").contains(&message), "{}", bench.read("stderr"));
    assert!(!bench.path(".token.tmp").exists());
    assert_eq!(bench.exit_code(&["--then"]), Some(2));
}

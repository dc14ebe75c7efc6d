//! The real program: how it gets its socket, what it says, how it ends, and what it survives.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokend_egress::channel::Channel;
use tokend_egress::wire::{Reply, Request, decode, encode};
use tokend_egress::{ConnectError, Helper};

/// Hands standard input over as a service manager hands over a socket.
const HAND_OVER: &str = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";

/// The program as a process. It is killed when it is dropped.
struct Program {
    child: Child,
    path: PathBuf,
    _directory: TempDir,
}

impl Program {
    /// On a socket of its own, with these arguments, by a shell that does something first.
    fn start(script: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("egress.sock");
        let mut command = command(&format!("{script} exec \"$@\""));
        let child = command.arg("--socket").arg(&path).args(arguments).spawn().unwrap();
        Self { child, path, _directory: directory }.that_serves()
    }

    /// On a socket that is passed to it.
    fn start_with(listening: impl FnOnce(&Path) -> OwnedFd) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("egress.sock");
        let child = command(HAND_OVER).stdin(Stdio::from(listening(&path))).spawn().unwrap();
        Self { child, path, _directory: directory }
    }

    fn that_serves(self) -> Self {
        wait_until(|| knock(&self.path));
        self
    }

    fn helper(&self) -> Helper {
        Helper::new(&self.path)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its exit code, once it has ended by itself.
    fn end(&mut self) -> Option<i32> {
        wait_until(|| self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap().code()
    }

    /// What it said, once it has ended.
    fn said(&mut self) -> String {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell that runs a script, whose arguments begin with the program.
fn command(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_tokend-egress")]);
    for of_this_service in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "JOURNAL_STREAM"] {
        command.env_remove(of_this_service);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if condition() {
            return;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "another process is waited for, and nothing else runs here"
        )]
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("not in time");
}

fn seqpacket() -> OwnedFd {
    socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap()
}

fn knock(path: &Path) -> bool {
    rustix::net::connect(seqpacket(), &SocketAddrUnix::new(path).unwrap()).is_ok()
}

fn listening(path: &Path) -> OwnedFd {
    let listening = seqpacket();
    bind(&listening, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&listening, 16).unwrap();
    listening
}

fn provider() -> (TcpListener, u16) {
    let provider = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = provider.local_addr().unwrap().port();
    (provider, port)
}

/// A port at which nobody listens. It is kept, so that nobody else comes to.
fn closed() -> (OwnedFd, u16) {
    let closed = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&closed, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = TcpListener::from(closed.try_clone().unwrap()).local_addr().unwrap().port();
    (closed, port)
}

/// A port that answers nobody: its queue is full.
fn silent() -> (impl Sized, u16) {
    let full = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&full, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    listen(&full, 0).unwrap();
    let full = TcpListener::from(full);
    let address = full.local_addr().unwrap();
    let first = TcpStream::connect(address).unwrap();
    ((full, first), address.port())
}

#[tokio::test]
async fn a_socket_that_is_passed_is_served_and_the_service_manager_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let path = directory.path().join("egress.sock");
    let mut command = command(HAND_OVER);
    command.env("NOTIFY_SOCKET", directory.path().join("notify")).stdin(listening(&path));
    let mut program = Program { child: command.spawn().unwrap(), path, _directory: directory };
    let mut said = [0; 1024];
    let length = manager.recv(&mut said).unwrap();
    let said = String::from_utf8_lossy(said.get(..length).unwrap());
    assert!(said.contains("READY=1") && said.contains("STATUS="), "{said}");
    let (_provider, port) = provider();
    program.helper().connect("127.0.0.1", port).await.unwrap();
    program.signal(Signal::TERM);
    assert_eq!(program.end(), Some(0));
}

#[test]
fn a_socket_of_another_kind_is_refused() {
    const EXPECTED: &str = "SOCK_SEQPACKET";
    let not_listening = |_: &Path| seqpacket();
    let stream = |path: &Path| UnixListener::bind(path).unwrap().into();
    let tcp = |_: &Path| provider().0.into();
    let file = |path: &Path| fs::File::create(path).unwrap().into();
    let kinds: [&dyn Fn(&Path) -> OwnedFd; 4] = [&not_listening, &stream, &tcp, &file];
    for (number, kind) in kinds.into_iter().enumerate() {
        let mut program = Program::start_with(kind);
        assert_eq!(program.end(), Some(1), "{number}");
        let said = program.said();
        assert!(said.contains(EXPECTED) && said.lines().count() == 1, "{number}: {said}");
    }
}

#[test]
fn without_a_socket_it_says_what_is_missing() {
    let output = command("exec \"$@\"").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--socket"), "{output:?}");
    let output =
        command("exec 4</dev/null; exec 3<&4; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\"").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("2 sockets"), "{output:?}");
}

#[tokio::test]
async fn it_ends_at_once_whatever_it_is_doing() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut program = Program::start("", &[]);
        let watching = Channel::connect(&program.path).unwrap();
        watching.send(&encode(&Request::WatchNetwork).unwrap(), None).await.unwrap();
        let reply = watching.receive().await.unwrap().unwrap();
        assert_eq!(decode::<Reply>(&reply.bytes).unwrap(), Reply::Watching);
        let (_silent, port) = silent();
        let connecting = Channel::connect(&program.path).unwrap();
        let nowhere = Request::Connect { host: "127.0.0.1".to_owned(), port };
        connecting.send(&encode(&nowhere).unwrap(), None).await.unwrap();
        program.signal(signal);
        assert_eq!(program.end(), Some(0));
        assert!(watching.receive().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn each_connection_is_logged_for_whoever_wants_to_know() {
    let (_provider, port) = provider();
    for (level, is_logged) in [("info", false), ("debug", true)] {
        let mut program = Program::start("", &["--log-level", level]);
        program.helper().connect("localhost", port).await.unwrap();
        program.signal(Signal::TERM);
        program.end();
        let said = program.said();
        assert_eq!(said.contains("localhost") && said.contains(&port.to_string()), is_logged, "{said}");
    }
    let mut program = command("exec \"$@\"");
    let refused = program.args(["--socket", "/nonexistent/s", "--log-level", "loud=very"]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("\"loud=very\""), "{refused:?}");
}

#[tokio::test]
async fn a_journal_is_given_priorities_and_no_time_of_day() {
    let mut program =
        Program::start("JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr); export JOURNAL_STREAM;", &[]);
    // Whoever is answered is answered by one that has said that it serves.
    let (_provider, port) = provider();
    program.helper().connect("localhost", port).await.unwrap();
    program.signal(Signal::TERM);
    program.end();
    let said = program.said();
    assert!(said.starts_with("<5>serving"), "{said}");
}

#[tokio::test]
async fn it_survives_that_no_descriptor_is_left() {
    let mut program = Program::start("ulimit -n 24;", &[]);
    let (_provider, port) = provider();
    let mut held = Vec::new();
    let refusal = loop {
        assert!(held.len() < 100, "it has not run out of descriptors");
        held.push(Channel::connect(&program.path).unwrap());
        if let Err(error) = program.helper().connect("127.0.0.1", port).await {
            break error;
        }
    };
    assert!(matches!(refusal, ConnectError::Failed(_) | ConnectError::Helper { .. }), "{refusal}");
    // More than it can accept, all of which it has to try to.
    held.extend((0..20).map(|_| Channel::connect(&program.path).unwrap()));
    drop(held);
    program.helper().connect("127.0.0.1", port).await.unwrap();
    program.signal(Signal::TERM);
    program.end();
    let said = program.said();
    assert!(said.contains("could not be accepted"), "{said}");
}

/// In one test, because it counts the descriptors of a whole process: the program's.
#[tokio::test]
async fn no_descriptor_is_left_over() {
    let program = Program::start("", &[]);
    let (provider, port) = provider();
    let (_closed, closed_port) = closed();
    program.helper().connect("127.0.0.1", port).await.unwrap();
    wait_until(|| provider.accept().is_ok());
    let before = settled(|| program.descriptors());
    for _ in 0..50 {
        program.helper().connect("127.0.0.1", port).await.unwrap();
        program.helper().connect("127.0.0.1", closed_port).await.unwrap_err();
        provider.accept().unwrap();
        garbage(&program.path).await.unwrap();
        // Cut off at every step.
        drop(Channel::connect(&program.path).unwrap());
        for request in [Request::WatchNetwork, Request::Connect { host: "127.0.0.1".to_owned(), port }] {
            let channel = Channel::connect(&program.path).unwrap();
            channel.send(&encode(&request).unwrap(), None).await.unwrap();
        }
    }
    wait_until(|| program.descriptors() <= before);
}

/// The number once it no longer changes.
fn settled(count: impl Fn() -> usize) -> usize {
    let mut last = count();
    wait_until(|| std::mem::replace(&mut last, count()) == last);
    last
}

async fn garbage(path: &Path) -> io::Result<()> {
    let channel = Channel::connect(path)?;
    let (_end, passed) = io::pipe()?;
    channel.send(b"garbage", Some(std::os::fd::AsFd::as_fd(&passed))).await?;
    assert!(channel.receive().await?.is_none());
    Ok(())
}

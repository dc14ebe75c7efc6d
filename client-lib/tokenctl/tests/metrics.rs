//! `tokenctl metrics`, printed and served.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "../../tests/fake/mod.rs"]
mod fake;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fake::{FakeDaemon, daemon_status, token_status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokend_protocol::{Reply, StatusReply};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(180);

fn command(place: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tokenctl"));
    command.arg("--socket").arg(place.path().join("socket")).arg("metrics").args(args);
    command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    command
}

fn daemon(place: &TempDir) -> FakeDaemon {
    FakeDaemon::answering(&place.path().join("socket"), |_| {
        let tokens = vec![token_status("psb")];
        Reply::Status(StatusReply { daemon: daemon_status(), tokens, more: false })
    })
}

/// The program, which serves at an address. It is killed when dropped.
struct Exporter {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    address: SocketAddr,
}

impl Exporter {
    fn start(place: &TempDir) -> Self {
        let mut child = command(place, &["--listen", "127.0.0.1:0"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("tokenctl: serving http://").unwrap();
        let address = address.strip_suffix("/metrics").unwrap().parse().unwrap();
        Self { child, stderr, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The answer to a request, up to the end of the connection.
    fn ask(&self, request: &str) -> String {
        let (mut stream, mut answer) = (self.connect(), String::new());
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_string(&mut answer);
        answer
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_metrics_are_printed_or_there_is_an_exit_status() {
    let place = TempDir::new().unwrap();
    let away = command(&place, &[]).output().unwrap();
    assert_eq!((away.status.code(), away.stdout.as_slice()), (Some(3), &b""[..]));
    let _daemon = daemon(&place);
    let printed = command(&place, &[]).output().unwrap();
    let text = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(printed.status.code(), Some(0));
    assert!(text.contains("\ntokend_token_hand_outs_total{token=\"psb\",provider=\"bnp\"} 40\n"), "{text}");
}

#[test]
fn the_metrics_are_served_also_while_the_daemon_is_away() {
    let place = TempDir::new().unwrap();
    let mut exporter = Exporter::start(&place);
    let scrape = || exporter.ask("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for _ in 0..2 {
        let (head, body) =
            scrape().split_once("\r\n\r\n").map(|(h, b)| (h.to_owned(), b.to_owned())).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4;"), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
        assert!(body.contains("\ntokend_up 0\n") && !body.contains("tokend_tokens"), "{body}");
    }
    let running = daemon(&place);
    assert!(scrape().contains("\ntokend_tokens{provider=\"bnp\",state=\"fresh\"} 1\n"));
    drop(running);
    assert!(scrape().contains("\ntokend_up 0\n"));
    kill(Pid::from_raw(i32::try_from(exporter.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(exporter.child.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    exporter.stderr.read_to_string(&mut rest).unwrap();
    let reasons = rest.matches("tokenctl: the daemon cannot be reached").count();
    assert_eq!((reasons, rest.lines().count()), (2, 2), "once for each time that it is away: {rest}");
}

#[test]
fn a_client_that_is_slow_or_sends_too_much_is_disconnected() {
    let place = TempDir::new().unwrap();
    let _daemon = daemon(&place);
    let exporter = Exporter::start(&place);
    let mut slow = exporter.connect();
    slow.write_all(b"GET /met").unwrap();
    assert!(exporter.ask("GET /metrics HTTP/1.1\r\n\r\n").contains("\ntokend_up 1\n"));
    assert_eq!(slow.read(&mut [0; 16]).unwrap_or_default(), 0);
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000));
    assert_eq!(exporter.ask(&long), "");
    assert!(exporter.ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(exporter.ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
}

#[test]
fn only_a_free_loopback_address_is_listened_at() {
    let place = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    for (address, code) in [
        ("0.0.0.0:9464", 2),
        ("192.0.2.1:9464", 2),
        ("[::]:9464", 2),
        ("localhost:9464", 2),
        ("127.0.0.1", 2),
        (&taken.local_addr().unwrap().to_string(), 1),
    ] {
        let ran = command(&place, &["--listen", address]).output().unwrap();
        assert_eq!(ran.status.code(), Some(code), "{address}");
    }
}

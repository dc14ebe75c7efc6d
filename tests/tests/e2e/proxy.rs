//! `tokend-proxy` between a caller and a bank's API, with the real daemon.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokend_tests::standin::{Kind, StandIn};
use tokend_tests::{RealDaemon, TestDir, program, secrets, wait};

/// The whole answer to a request, which has no token.
fn get(socket: &Path, path: &str) -> String {
    let mut connection = UnixStream::connect(socket).unwrap();
    connection.write_all(format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    secrets::assert_absent("an answer through the proxy", &answer);
    answer
}

/// Sends `SIGTERM`, and waits for the end: its status.
fn end(mut child: Child) -> Option<i32> {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    child.wait().unwrap().code()
}

#[test]
fn calls_without_a_token_are_accepted_through_rotations_and_a_restart() {
    let (home, bank) = (TestDir::new(), StandIn::start(Kind::BnpParibasCib));
    bank.set_lifetime(Duration::from_secs(5));
    home.configure("", &bank.configuration(&home, "allow = [\"any\"]"));
    let mut daemon = RealDaemon::start(&home);
    let api = bank.api();
    let (upstream, path) = api.rsplit_once('/').map(|(host, last)| (host, format!("/{last}"))).unwrap();
    let socket = home.path().join("proxy.sock");
    let mut command = Command::new(program::proxy());
    command.args(["bnp", "--upstream", upstream, "--listen"]).arg(&socket);
    command.env("TOKEND_SOCKET", daemon.socket()).stdin(Stdio::null());
    let proxy = command.spawn().unwrap();
    wait::until("the proxy", || UnixStream::connect(&socket).ok());
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Until there have been some tokens, one after the other.
    let mut calls = 0;
    while bank.issued() < 4 {
        let answer = get(&socket, &path);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("accepted"), "{answer}");
        calls += 1;
    }
    assert_eq!(bank.api_calls(), calls, "{:?}", bank.refusals());
    daemon.stop();
    let _daemon = RealDaemon::start(&home);
    let before = bank.issued();
    wait::until("a token after the restart", || {
        let answer = get(&socket, &path);
        assert!(!answer.starts_with("HTTP/1.1 401 "), "{answer}");
        (answer.starts_with("HTTP/1.1 200 ") && bank.issued() > before).then_some(())
    });
    assert_eq!(end(proxy), Some(0));
    assert!(!socket.exists());
}

//! The start of a daemon with many tokens, against reading its configuration.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokend_tests::{RawPeer, program};

use crate::Plan;
use crate::table::{Bar, Report, Row};
use crate::tokend::Tokens;

/// Starts of each kind, at most.
const ROUNDS_MAX: usize = 3;

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(1);

const LIMIT: Duration = Duration::from_secs(60);

/// How many times as long as `tokend check` the start may take.
const MOST: f64 = 10.0;

pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let tokens = Tokens::configure(plan.tokens, plan.tokens.div_ceil(2500), "");
    let (mut starts, mut checks) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds.min(ROUNDS_MAX) {
        checks.push(check(&tokens));
        starts.push(start(&tokens));
    }
    report.rows.push(Row {
        what: format!("start with {} tokens until the socket answers", plan.tokens),
        unit: "ms",
        tokend: starts,
        baseline: Some(("tokend check".to_owned(), checks)),
        bar: Some(Bar::AtMost(MOST)),
    });
}

/// How long `tokend check` takes, in milliseconds.
fn check(tokens: &Tokens) -> f64 {
    let began = Instant::now();
    let mut command = Command::new(program::tokend());
    command.arg("check").arg("--config").arg(tokens.home.config()).stdout(Stdio::null());
    assert!(command.status().unwrap().success(), "tokend check finds a fault");
    began.elapsed().as_secs_f64() * 1e3
}

/// How long it takes from the start of a daemon to its first answer, in milliseconds.
fn start(tokens: &Tokens) -> f64 {
    let began = Instant::now();
    let daemon = tokens.launch().spawn();
    let stream = loop {
        match UnixStream::connect(daemon.socket()) {
            Ok(stream) => break stream,
            Err(error) => assert!(began.elapsed() < LIMIT, "the daemon takes no connections: {error}"),
        }
        thread::sleep(PAUSE);
    };
    RawPeer::over(stream).unwrap().assert_alive();
    began.elapsed().as_secs_f64() * 1e3
}

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

/// How long a provider takes for an answer, so that the start has a queue.
const ANSWER: Duration = Duration::from_millis(50);

/// As many requests as may be under way at once.
const AHEAD_MAX: f64 = 4.0;

/// How many times as long as `tokend check` the start may take.
const MOST: f64 = 10.0;

pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let tokens = Tokens::configure(plan.tokens, plan.tokens.div_ceil(2500), "");
    tokens.answer_slowly(ANSWER);
    let (mut starts, mut checks, mut ahead) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds.min(ROUNDS_MAX) {
        checks.push(check(&tokens));
        let (time, others) = start(&tokens);
        starts.push(time);
        ahead.push(others as f64);
    }
    report.rows.push(Row {
        what: format!("start with {} tokens until the socket answers", plan.tokens),
        unit: "ms",
        tokend: starts,
        baseline: Some(("tokend check".to_owned(), checks)),
        bar: Some(Bar::AtMost(MOST)),
    });
    let what = "requests of the start that go before the one for a token that a caller asks for";
    report.add(what, "requests", ahead, Some(Bar::AtMost(AHEAD_MAX)));
}

/// How long `tokend check` takes, in milliseconds.
fn check(tokens: &Tokens) -> f64 {
    let began = Instant::now();
    let mut command = Command::new(program::tokend());
    command.arg("check").arg("--config").arg(tokens.home.config()).stdout(Stdio::null());
    assert!(command.status().unwrap().success(), "tokend check finds a fault");
    began.elapsed().as_secs_f64() * 1e3
}

/// How long it takes from the start of a daemon to its first answer, in milliseconds. Then a caller asks for the last token:
/// how many other requests the provider gets between the call and the request for this token.
fn start(tokens: &Tokens) -> (f64, usize) {
    let began = Instant::now();
    let daemon = tokens.launch().spawn();
    let stream = loop {
        match UnixStream::connect(daemon.socket()) {
            Ok(stream) => break stream,
            Err(error) => assert!(began.elapsed() < LIMIT, "the daemon takes no connections: {error}"),
        }
        thread::sleep(PAUSE);
    };
    let mut peer = RawPeer::over(stream).unwrap();
    peer.assert_alive();
    let time = began.elapsed().as_secs_f64() * 1e3;
    drop(peer);
    (time, tokens.requests_before_the_last(daemon.socket()))
}

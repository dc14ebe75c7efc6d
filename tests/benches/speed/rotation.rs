//! The slowest calls for cached tokens while many tokens rotate at once.
//!
//! The daemon and the caller are in a real-time class. So the caller waits for the daemon only, and not for the provider, which
//! works at the same time on the same processors. These are kept busy at idle priority, so that they are as awake without a
//! rotation. The operator who has the tokens rotated is another user than the caller.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::unistd::Uid;
use tokend_protocol::{RefreshRequest, Reply, Request, Variant, read_frame};
use tokend_tests::bench::{Connection, Measurement};
use tokend_tests::raw_peer;

use crate::load::connect;
use crate::server::Ended;
use crate::table::{Bar, Report, Row};
use crate::tokend::Tokens;
use crate::{Plan, cpu};

const TOKENS: usize = 1000;
const PROVIDERS: usize = 8;

const SOCKET_GROUP: &str = "61000";
const CALLER: &str = "61002";

/// With all threads.
const REAL_TIME: [&str; 3] = ["chrt", "--rr", "1"];

/// How many times as long as without a rotation the slowest call in a thousand may take.
const MOST: f64 = 2.0;

/// The caller in a round.
const CALLS: Measurement<'_> = Measurement {
    connection: Connection::Kept,
    verb: "get",
    token: "t0",
    calls: 5000,
    within: Duration::from_secs(10),
    pause: Duration::from_micros(200),
};

pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    if !Uid::effective().is_root() {
        report.left_out.push("calls during a rotation: run it as root".to_owned());
        return;
    }
    let tokens = Tokens::configure(TOKENS, PROVIDERS, &format!("socket_group = \"{SOCKET_GROUP}\""));
    let daemon = tokens.launch().through(&REAL_TIME).start();
    tokens.wait_until_asked(daemon.socket());
    let _busy: Vec<Ended> = cpu::allowed().into_iter().map(|_| keep_busy()).collect();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        alone.push(slowest(daemon.socket()));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| rotate(daemon.socket(), &stop));
            beside.push(slowest(daemon.socket()));
            stop.store(true, Ordering::Relaxed);
        });
    }
    report.rows.push(Row {
        what: format!("get while {TOKENS} tokens rotate at once: 999 of 1,000 take at most"),
        unit: "ms",
        tokend: beside,
        baseline: Some(("without a rotation".to_owned(), alone)),
        bar: Some(Bar::AtMost(MOST)),
    });
}

/// Computes on a processor that nobody else uses.
fn keep_busy() -> Ended {
    let words = ["--idle", "0", "setpriv", "--pdeathsig", "KILL", "sh", "-c", "while :; do :; done"];
    Ended(Command::new("chrt").args(words).spawn().unwrap())
}

/// The latency that 999 of 1,000 calls do not exceed, in milliseconds.
fn slowest(socket: &Path) -> f64 {
    let [user, group, groups] =
        [format!("--reuid={CALLER}"), format!("--regid={CALLER}"), format!("--groups={SOCKET_GROUP}")];
    let setpriv = ["setpriv", &user, &group, &groups, "--"];
    let calls = CALLS.start(&[&REAL_TIME[..], &setpriv].concat(), socket);
    assert_eq!(calls.failed, 0, "calls for a cached token failed");
    let mut latencies = calls.latencies;
    latencies.sort_unstable();
    latencies[latencies.len() * 999 / 1000].as_secs_f64() * 1e3
}

/// Has all tokens rotated at once, again and again until it is to stop.
fn rotate(socket: &Path, stop: &AtomicBool) {
    let refresh = |number| {
        let name = format!("t{number}").parse().unwrap();
        let request = RefreshRequest { name, deadline_ms: 15_000, variant: Variant::default() };
        raw_peer::wire(1, Request::Refresh(request))
    };
    let all: Vec<u8> = (0..TOKENS).flat_map(refresh).collect();
    let mut stream = connect(socket);
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&all).unwrap();
        for _ in 0..TOKENS {
            let reply = read_frame::<Reply>(&mut stream).unwrap().unwrap().unwrap().message;
            assert!(matches!(reply, Reply::Refreshed(_)), "a token was not rotated: {reply:?}");
        }
    }
}

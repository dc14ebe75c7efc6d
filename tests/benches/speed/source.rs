//! Reading a token that is kept in this process, against the least that such a read can do.

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::time::{ClockId, clock_gettime};
use tokend_client::blocking::Client;
use tokend_client::{Options, TokenName};
use tokend_tests::wait;

use crate::Plan;
use crate::server::{Server, TOKEN_LENGTH};
use crate::table::{Bar, Report, Row};

/// Reads of each kind in a row.
const READS: u32 = 100_000;

/// How many times as long as reading the clock and cloning an `Arc` a read may take.
const MOST: f64 = 1.5;

pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let tokend = Server::tokend(5);
    let client = Client::new(Options::new(tokend.socket.clone()));
    let name: TokenName = "t0".parse().unwrap();
    let source = client.source(&name);
    wait::until("a token in the source", || source.try_token().ok());

    let shared = Arc::new("v".repeat(TOKEN_LENGTH));
    let locked = Mutex::new("v".repeat(TOKEN_LENGTH));
    let [mut least, mut copy, mut token, mut header] = [const { Vec::new() }; 4];
    for _ in 0..plan.rounds {
        least.push(time(|| (clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap(), Arc::clone(&shared))));
        token.push(time(|| source.token().unwrap()));
        header.push(time(|| source.header_value().unwrap()));
        copy.push(time(|| locked.lock().unwrap().clone()));
    }
    let rows = [
        ("TokenSource::token()", &token, "the clock and an Arc clone", &least, Some(MOST)),
        ("TokenSource::token()", &token, "a copy from a Mutex<String>", &copy, None),
        ("TokenSource::header_value()", &header, "the clock and an Arc clone", &least, None),
    ];
    for (what, own, name, other, most) in rows {
        report.rows.push(Row {
            what: what.to_owned(),
            unit: "ns",
            tokend: own.clone(),
            baseline: Some((name.to_owned(), other.clone())),
            bar: most.map(Bar::AtMost),
        });
    }
}

/// How long one read takes, in nanoseconds. The end of what it returns counts too.
fn time<T>(read: impl Fn() -> T) -> f64 {
    let began = Instant::now();
    for _ in 0..READS {
        black_box(read());
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(READS)
}

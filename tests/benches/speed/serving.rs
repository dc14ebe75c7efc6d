//! How many cached tokens a second the daemon hands out, how late the slowest are, and how much work that is.

use std::collections::HashMap;

use crate::Plan;
use crate::load::{Load, Served};
use crate::server::{Kind, Server};
use crate::table::{Bar, Report, Row};

/// A load, and the least rates as multiples of the baselines' rates.
struct Case {
    name: &'static str,
    load: Load,
    of_floor: f64,
    of_others: Option<f64>,
    /// The longest 99th percentile, as a multiple of the floor's.
    p99: Option<f64>,
}

const fn case(name: &'static str, connections: usize, in_flight: usize, of_floor: f64) -> Case {
    let load = Load { connections, in_flight, is_pinned: false };
    Case { name, load, of_floor, of_others: Some(1.0), p99: None }
}

const CASES: [Case; 7] = [
    Case {
        load: Load { connections: 1, in_flight: 1, is_pinned: true },
        ..case("get, 1 connection, pinned", 1, 1, 0.80)
    },
    case("get, 64 connections", 64, 1, 0.90),
    Case { p99: Some(2.0), ..case("get, 1,000 connections", 1000, 1, 0.90) },
    case("get, 1 connection, 16 in flight", 1, 16, 0.60),
    case("get, 1 connection, 64 in flight", 1, 64, 0.50),
    case("get, 8 connections, 16 in flight", 8, 16, 0.70),
    Case { of_others: None, ..case("connect, get, close", 0, 1, 0.80) },
];

pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let tokend = Server::tokend(5);
    let floor = Server::floor(&tokend);
    let mut servers = vec![tokend, floor];
    for kind in [Kind::Redis, Kind::Memcached] {
        match Server::installed(kind) {
            Some(server) => servers.push(server),
            None => report.left_out.push(format!("{}: it is not installed", kind.name())),
        }
    }
    let http = servers.len();
    servers.push(Server::http(&servers[0]));
    // By case and server.
    let mut served: HashMap<(usize, usize), Vec<Served>> = HashMap::new();
    for round in 0..plan.rounds {
        for (number, case) in CASES.iter().enumerate() {
            for turn in 0..servers.len() {
                // None is always the first.
                let next = (turn + round) % servers.len();
                served.entry((number, next)).or_default().push(case.load.run(&servers[next]));
            }
        }
    }
    for (number, case) in CASES.iter().enumerate() {
        let tokend = &served[&(number, 0)];
        for (other, Server { kind, .. }) in servers.iter().enumerate().take(http).skip(1) {
            add_rows(report, case, *kind, tokend, &served[&(number, other)]);
        }
    }
    for (number, case) in CASES.iter().enumerate() {
        let rates = |server| served[&(number, server)].iter().map(|served| served.rate / 1e3).collect();
        report.rows.push(Row {
            what: format!("{}, over HTTP", case.name),
            unit: "k/s",
            tokend: rates(http),
            baseline: Some(("the other socket".to_owned(), rates(0))),
            bar: None,
        });
    }
}

fn add_rows(report: &mut Report, case: &Case, kind: Kind, tokend: &[Served], other: &[Served]) {
    let is_floor = kind == Kind::Floor;
    let mut add = |what: &str, unit, figure: fn(&Served) -> f64, bar| {
        let figures = |served: &[Served]| served.iter().map(figure).collect::<Vec<_>>();
        report.rows.push(Row {
            what: format!("{}{what}", case.name),
            unit,
            tokend: figures(tokend),
            baseline: Some((kind.name().to_owned(), figures(other))),
            bar,
        });
    };
    let least = if is_floor { Some(case.of_floor) } else { case.of_others };
    add("", "k/s", |served| served.rate / 1e3, least.map(Bar::AtLeast));
    if is_floor {
        add(": processor time of the server", "µs", |served| served.work.as_secs_f64() * 1e6, None);
        if case.p99.is_some() {
            let bar = case.p99.map(Bar::AtMost);
            add(": 99 of 100 take at most", "ms", |served| served.p99.as_secs_f64() * 1e3, bar);
        }
    }
}

//! The memory of an idle daemon, of its connections and of its tokens, and how often it wakes up.

use std::fs;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use crate::load::connect;
use crate::server::{Kind, Server};
use crate::table::{Bar, Report, Row};
use crate::{Plan, cpu};

/// A server starts each round anew, so there are few.
const ROUNDS_MAX: usize = 3;

/// From here on, there is one round with all tokens.
const MANY_TOKENS: usize = 20_000;

/// Tokens of a daemon at rest.
const FEW_TOKENS: usize = 5;

const CONNECTIONS_MAX: usize = 10_000;

/// Until a server is at rest again.
const REST: Duration = Duration::from_secs(2);

/// How long the wake-ups of idle servers are counted.
const QUIET: Duration = Duration::from_secs(5);

/// The bars, in megabytes, and in kilobytes of 1,000 bytes.
const RESIDENT_MAX: f64 = 8.0;
const WAKE_UPS_MAX: f64 = 1.0;
const PER_CONNECTION_MAX: f64 = 3.0;
const GIVEN_BACK_MIN: f64 = 90.0;
const PER_TOKEN_MAX: f64 = 3.0;
const STORED_PER_TOKEN_MAX: f64 = 2.7;

/// The measurements of one server, by round.
#[derive(Default)]
struct Figures {
    resident: Vec<f64>,
    wake_ups: Vec<f64>,
    per_connection: Vec<f64>,
    /// Percent.
    given_back: Vec<f64>,
    per_token: Vec<f64>,
    stored_per_token: Vec<f64>,
}

type Figure = fn(&Figures) -> &Vec<f64>;

pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let connections = connections();
    let mut all = vec![(Kind::Tokend, Figures::default())];
    for kind in [Kind::Redis, Kind::Memcached] {
        match Server::installed(kind) {
            Some(_) => all.push((kind, Figures::default())),
            None => report.left_out.push(format!("memory of {}: it is not installed", kind.name())),
        }
    }
    for round in 0..plan.rounds.min(ROUNDS_MAX) {
        let servers: Vec<Server> = all.iter().map(|(kind, _)| start(*kind)).collect();
        thread::sleep(REST);
        let before: Vec<u64> = servers.iter().map(|server| cpu::sleeps(server.pid)).collect();
        thread::sleep(QUIET);
        for ((server, before), (_, figures)) in servers.iter().zip(before).zip(&mut all) {
            let wake_ups = cpu::sleeps(server.pid) - before;
            figures.wake_ups.push(wake_ups as f64 / QUIET.as_secs_f64());
            figures.resident.push(resident(server.pid, "VmRSS:") / 1e3);
            let rest = resident(server.pid, "RssAnon:");
            figures.measure_connections(server, connections);
            if round == 0 || plan.tokens < MANY_TOKENS {
                figures.measure_tokens(server, plan.tokens, rest);
            }
        }
    }
    add_rows(report, &all, connections, plan.tokens);
}

/// A server with few tokens, or with one value.
fn start(kind: Kind) -> Server {
    if kind == Kind::Tokend { Server::tokend(FEW_TOKENS) } else { Server::installed(kind).unwrap() }
}

impl Figures {
    /// Opens connections, asks once on each, and closes them.
    fn measure_connections(&mut self, server: &Server, number: usize) {
        let before = resident(server.pid, "RssAnon:");
        let connections: Vec<UnixStream> = (0..number)
            .map(|_| {
                let mut stream = connect(&server.socket);
                server.kind.call(&mut stream, "t0");
                stream
            })
            .collect();
        thread::sleep(REST);
        let taken = resident(server.pid, "RssAnon:") - before;
        drop(connections);
        // The daemon looks every five seconds whether many have closed.
        thread::sleep(3 * REST);
        let kept = resident(server.pid, "RssAnon:") - before;
        self.per_connection.push(taken / number as f64);
        self.given_back.push(100.0 * (1.0 - kept / taken));
    }

    /// Compares a server that holds many tokens with one that holds few.
    fn measure_tokens(&mut self, few: &Server, tokens: usize, rest: f64) {
        let added = (tokens - FEW_TOKENS) as f64;
        let many = if few.kind == Kind::Tokend { Server::tokend(tokens) } else { start(few.kind) };
        if few.kind != Kind::Tokend {
            many.put(tokens);
        }
        // The daemon looks every five seconds whether many requests have ended.
        thread::sleep(3 * REST);
        self.per_token.push((resident(many.pid, "RssAnon:") - rest) / added);
        if few.kind == Kind::Tokend {
            self.stored_per_token.push((stored(many.pid) - stored(few.pid)) / added);
        }
    }
}

fn add_rows(report: &mut Report, all: &[(Kind, Figures)], connections: usize, tokens: usize) {
    let per_connection = format!("memory per idle connection, {connections} of them");
    let given_back = "the part of it that is given back once they are closed";
    let per_token = format!("memory per token, {tokens} of them");
    let rows: [(&str, _, Figure, _); 5] = [
        ("memory at rest, 5 tokens", "MB", |figures| &figures.resident, Bar::AtMost(RESIDENT_MAX)),
        ("wake-ups at rest", "/s", |figures| &figures.wake_ups, Bar::AtMost(WAKE_UPS_MAX)),
        (&per_connection, "KB", |figures| &figures.per_connection, Bar::AtMost(PER_CONNECTION_MAX)),
        (given_back, "%", |figures| &figures.given_back, Bar::AtLeast(GIVEN_BACK_MIN)),
        (&per_token, "KB", |figures| &figures.per_token, Bar::AtMost(PER_TOKEN_MAX)),
    ];
    let (_, own) = &all[0];
    for (what, unit, figures, bar) in rows {
        report.add(what, unit, figures(own).clone(), Some(bar));
        for (kind, other) in all.iter().skip(1).filter(|_| unit != "%") {
            report.rows.push(Row {
                what: what.to_owned(),
                unit,
                tokend: figures(own).clone(),
                baseline: Some((kind.name().to_owned(), figures(other).clone())),
                bar: None,
            });
        }
    }
    let what = format!("memory per token that the service manager keeps, {tokens} of them");
    report.add(what, "KB", own.stored_per_token.clone(), Some(Bar::AtMost(STORED_PER_TOKEN_MAX)));
}

/// As many connections as the limit of descriptors allows. The daemon takes two for each, and one user has at most eight
/// connections for each that is free.
fn connections() -> usize {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let most = limit.saturating_sub(256) / 2;
    CONNECTIONS_MAX.min(usize::try_from(most * 8 / 9).unwrap())
}

/// A line of `/proc/PID/status`, in kilobytes. `RssAnon` leaves out the pages of the program's file.
fn resident(pid: u32, line: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|known| known.strip_prefix(line)).unwrap();
    let kib: f64 = value.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    kib * 1.024
}

/// The size of the memory file that the service manager keeps, in kilobytes.
fn stored(pid: u32) -> f64 {
    use std::os::unix::fs::MetadataExt;

    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let mut stores = descriptors.filter(|path| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains("memfd:tokend-store"))
    });
    stores.next().unwrap().metadata().unwrap().blocks() as f64 * 512.0 / 1e3
}

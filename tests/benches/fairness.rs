//! How much one caller at full speed costs another: the median latency of a caller alone and beside a flood, in one run.
//!
//! `cargo bench -p tokend-tests --bench fairness`, as root, because both callers are users of their own. A name
//! after `--` picks one flood. The daemon, the flood and the caller are processes of their own and share the
//! machine, so that its noise is in the figures; alone and beside the flood take turns for that reason.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program that measures, and stops at the first fault"
)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokend_protocol::Request;
use tokend_tests::bench::{
    self, Connection, Measurement, again_and_again, list, sending, share, slow_reading, wait_until_ready,
    watch,
};
use tokend_tests::test_support::token_table;
use tokend_tests::{Provider, Scene, raw_peer, requirement};
use tokio::task::JoinHandle;

const SOCKET_GROUP: u32 = 61_000;
const FLOOD: u32 = 61_001;
const CALLER: u32 = 61_002;

/// Rounds of each, alone and beside the flood.
const ROUNDS: usize = 5;

/// The caller in a round.
const CALLS: Measurement<'_> = Measurement {
    connection: Connection::Kept,
    verb: "get",
    token: "t1",
    calls: 2000,
    within: Duration::from_secs(60),
    pause: Duration::from_micros(200),
};

/// How a flood is made.
struct Flood {
    name: &'static str,
    connections: usize,
    stream: fn(PathBuf) -> JoinHandle<()>,
}

const FLOODS: [Flood; 10] = [
    Flood { name: "one connection, pipelining", connections: 1, stream: pipelining },
    Flood { name: "64 connections, pipelining", connections: 64, stream: pipelining },
    Flood { name: "1000 connections, pipelining", connections: 1000, stream: pipelining },
    Flood { name: "1000 connections, one by one", connections: 1000, stream: one_by_one },
    Flood { name: "64 connections, refused", connections: 64, stream: refused },
    Flood { name: "64 connections, listing", connections: 64, stream: listing },
    Flood { name: "64 connections, watches", connections: 64, stream: watches },
    Flood { name: "1000 half-sent frames", connections: 1000, stream: half_sent },
    Flood { name: "64 slow readers", connections: 64, stream: slow_reading },
    Flood { name: "connecting without end", connections: 64, stream: connecting },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["flood", number, socket] => flood(number.parse().unwrap(), Path::new(socket)),
        ["caller", words @ .., socket] => bench::measure(words, Path::new(socket)),
        picked if requirement::root() => compare(picked),
        _ => (),
    }
    ExitCode::SUCCESS
}

fn compare(picked: &[&str]) {
    println!(
        "{:<32} {:>10} {:>10} {:>7} {:>10}",
        "median of a caller", "alone", "beside", "ratio", "99 of 100"
    );
    for (number, flood) in FLOODS.iter().enumerate() {
        if !picked.is_empty() && !picked.iter().any(|word| flood.name.contains(word)) {
            continue;
        }
        let allow = format!("allow = [\"user:{FLOOD}\", \"user:{CALLER}\"]");
        let tokens: String = (0..200).map(|n| token_table(&format!("t{n}"), &allow)).collect();
        let group = format!("socket_group = {:?}", SOCKET_GROUP.to_string());
        let scene = Scene::quiet(Provider::start(), &group, &tokens);
        scene.tokenctl().get("t0");
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            alone.extend(latencies(scene.socket()));
            let number = number.to_string();
            let mut flood = bench::start(&words(&user(FLOOD)), scene.socket(), &["flood", &number]);
            wait_until_ready(&mut flood);
            beside.extend(latencies(scene.socket()));
            flood.kill().unwrap();
            flood.wait().unwrap();
        }
        let (one, other) = (share(&alone, 50), share(&beside, 50));
        let ratio = other.as_secs_f64() / one.as_secs_f64();
        let worst = share(&beside, 99);
        println!("{:<32} {one:>10.1?} {other:>10.1?} {ratio:>7.2} {worst:>10.1?}", flood.name);
    }
}

/// The words that run a program as a user.
fn user(uid: u32) -> [String; 5] {
    let ids = [format!("--reuid={uid}"), format!("--regid={uid}"), format!("--groups={SOCKET_GROUP}")];
    let [user, group, groups] = ids;
    ["setpriv".to_owned(), user, group, groups, "--".to_owned()]
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn latencies(socket: &Path) -> Vec<Duration> {
    let calls = CALLS.start(&words(&user(CALLER)), socket);
    assert_eq!(calls.failed, 0);
    calls.latencies
}

/// Floods until it is killed.
fn flood(number: usize, socket: &Path) {
    let flood = &FLOODS[number];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let streams: Vec<_> = (0..flood.connections).map(|_| (flood.stream)(socket.to_owned())).collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        println!("ready");
        for stream in streams {
            stream.await.unwrap();
        }
    });
}

fn pipelining(socket: PathBuf) -> JoinHandle<()> {
    asking(socket, 64, &raw_peer::get("t0"))
}

fn one_by_one(socket: PathBuf) -> JoinHandle<()> {
    asking(socket, 1, &raw_peer::get("t0"))
}

fn refused(socket: PathBuf) -> JoinHandle<()> {
    asking(socket, 64, &raw_peer::get("made-up"))
}

fn listing(socket: PathBuf) -> JoinHandle<()> {
    asking(socket, 16, &list())
}

fn asking(socket: PathBuf, at_once: u32, request: &Request) -> JoinHandle<()> {
    let piece = (0..at_once).flat_map(|id| raw_peer::wire(id, request.clone())).collect();
    sending(socket, piece, usize::try_from(at_once).unwrap())
}

fn watches(socket: PathBuf) -> JoinHandle<()> {
    let watch = raw_peer::wire(1, watch((0..60).map(|n| format!("t{n}"))));
    again_and_again(socket, watch.repeat(16), Duration::from_millis(20))
}

fn half_sent(socket: PathBuf) -> JoinHandle<()> {
    let wire = raw_peer::wire(1, raw_peer::get("t0"));
    again_and_again(socket, wire[..wire.len() / 2].to_vec(), Duration::from_millis(100))
}

fn connecting(socket: PathBuf) -> JoinHandle<()> {
    again_and_again(socket, Vec::new(), Duration::ZERO)
}

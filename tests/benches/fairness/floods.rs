//! The floods, and a caller alone and beside one of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokend_protocol::Request;
use tokend_tests::bench::{
    self, Connection, Measurement, again_and_again, list, sending, slow_reading, wait_until_ready, watch,
};
use tokend_tests::test_support::token_table;
use tokend_tests::{Provider, Scene, raw_peer};
use tokio::task::JoinHandle;

const SOCKET_GROUP: u32 = 61_000;
const FLOOD: u32 = 61_001;
const CALLER: u32 = 61_002;

/// How a flood is made.
pub(crate) struct Flood {
    pub(crate) name: &'static str,
    connections: usize,
    stream: fn(PathBuf) -> JoinHandle<()>,
}

pub(crate) const FLOODS: [Flood; 10] = [
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

/// How long the caller's calls took in a round.
pub(crate) struct Round {
    pub(crate) alone: Vec<Duration>,
    pub(crate) beside: Vec<Duration>,
}

/// Measures a caller alone and beside the flood, in turns.
pub(crate) fn measure(number: usize, rounds: usize, calls: usize) -> Vec<Round> {
    let allow = format!("allow = [\"user:{FLOOD}\", \"user:{CALLER}\"]");
    let tokens: String = (0..200).map(|n| token_table(&format!("t{n}"), &allow)).collect();
    let group = format!("socket_group = {:?}", SOCKET_GROUP.to_string());
    let scene = Scene::quiet(Provider::start(), &group, &tokens);
    scene.tokenctl().get("t0");
    let round = |_| {
        let alone = latencies(scene.socket(), calls);
        let mut flood = bench::start(&words(&user(FLOOD)), scene.socket(), &["flood", &number.to_string()]);
        wait_until_ready(&mut flood);
        let beside = latencies(scene.socket(), calls);
        flood.kill().unwrap();
        flood.wait().unwrap();
        Round { alone, beside }
    };
    (0..rounds).map(round).collect()
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

fn latencies(socket: &Path, calls: usize) -> Vec<Duration> {
    let measurement = Measurement {
        connection: Connection::Kept,
        verb: "get",
        token: "t1",
        calls,
        within: Duration::from_secs(60),
        pause: Duration::from_micros(200),
    };
    let calls = measurement.start(&words(&user(CALLER)), socket);
    assert_eq!(calls.failed, 0);
    calls.latencies
}

/// Floods until it is killed.
pub(crate) fn flood(number: usize, socket: &Path) {
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

//! The floods, and a caller alone and beside one of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
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

/// Where the daemon, the caller and the flood run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// On any processor, as the kernel decides.
    Free,
    /// The daemon on a processor of its own, and the other two together on another one.
    Apart,
}

/// Measures a caller alone and beside the flood, in turns.
pub(crate) fn measure(number: usize, rounds: usize, calls: usize, placement: Placement) -> Vec<Round> {
    let allow = format!("allow = [\"user:{FLOOD}\", \"user:{CALLER}\"]");
    let tokens: String = (0..200).map(|n| token_table(&format!("t{n}"), &allow)).collect();
    let group = format!("socket_group = {:?}", SOCKET_GROUP.to_string());
    let scene = Scene::quiet(Provider::start(), &group, &tokens);
    scene.tokenctl().get("t0");
    let (first, last) = processors();
    if placement == Placement::Apart {
        let (last, pid) = (last.to_string(), scene.daemon.pid().to_string());
        let mut pin = Command::new("taskset");
        pin.args(["--all-tasks", "--pid", "--cpu-list", &last, &pid]).stdout(Stdio::null());
        assert!(pin.status().unwrap().success());
    }
    let user = |uid| user(uid, (placement == Placement::Apart).then_some(first));
    let round = |_| {
        let alone = latencies(&user(CALLER), scene.socket(), calls);
        let mut flood = bench::start(&words(&user(FLOOD)), scene.socket(), &["flood", &number.to_string()]);
        wait_until_ready(&mut flood);
        let beside = latencies(&user(CALLER), scene.socket(), calls);
        flood.kill().unwrap();
        flood.wait().unwrap();
        Round { alone, beside }
    };
    (0..rounds).map(round).collect()
}

/// The numbers of the first and the last processor that this process may use.
fn processors() -> (usize, usize) {
    let set = sched_getaffinity(Pid::this()).unwrap();
    let mut allowed = (0..CpuSet::count()).filter(|number| set.is_set(*number).unwrap());
    let first = allowed.next().unwrap();
    (first, allowed.next_back().unwrap_or(first))
}

/// The words that run a program as a user, on one processor if one is given.
fn user(uid: u32, processor: Option<usize>) -> Vec<String> {
    let pinned = processor.map(|number| format!("taskset --cpu-list {number} ")).unwrap_or_default();
    let words = format!("{pinned}setpriv --reuid={uid} --regid={uid} --groups={SOCKET_GROUP} --");
    words.split(' ').map(str::to_owned).collect()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn latencies(user: &[String], socket: &Path, calls: usize) -> Vec<Duration> {
    let measurement = Measurement {
        connection: Connection::Kept,
        verb: "get",
        token: "t1",
        calls,
        within: Duration::from_secs(60),
        pause: Duration::from_micros(200),
    };
    let calls = measurement.start(&words(user), socket);
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

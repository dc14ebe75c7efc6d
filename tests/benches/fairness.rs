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

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use tokend_protocol::{Reply, Request, TERMS_MAX, TokenName, Variant, WATCH_NAMES_MAX, WatchRequest};
use tokend_tests::provider::Door;
use tokend_tests::test_support::token_table;
use tokend_tests::{Provider, RawPeer, Scene, program, raw_peer, requirement};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const SOCKET_GROUP: u32 = 61_000;
const FLOOD: u32 = 61_001;
const CALLER: u32 = 61_002;

/// Rounds of each, alone and beside the flood.
const ROUNDS: usize = 5;

/// Requests of the caller in a round.
const REQUESTS: usize = 2000;

/// Between two of them, so that the caller is not a flood itself.
const PAUSE: Duration = Duration::from_micros(200);

/// How a flood is made.
struct Flood {
    name: &'static str,
    connections: usize,
    stream: fn(PathBuf) -> tokio::task::JoinHandle<()>,
}

const FLOODS: [Flood; 14] = [
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
    Flood { name: "64 connections, all scopes", connections: 64, stream: scopes },
    Flood { name: "64 connections, 8000 scopes", connections: 64, stream: repeated_scopes },
    Flood { name: "64 connections, all watch names", connections: 64, stream: watch_names },
    Flood { name: "64 connections, 5000 watch names", connections: 64, stream: repeated_watch_names },
];

/// As many scopes as a request may have.
const SCOPES: usize = TERMS_MAX;

/// As many tokens as a watch may have.
const TOKENS: usize = WATCH_NAMES_MAX;

/// Users at their limits, whose memory is measured.
const HOARDERS: usize = 16;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["flood", number, socket] => flood(number.parse().unwrap(), Path::new(socket)),
        ["caller", socket] => caller(Path::new(socket)),
        ["hoarder", socket] => hoarder(Path::new(socket)),
        picked if requirement::root() => {
            compare(picked);
            if picked.is_empty() || picked.contains(&"memory") {
                memory();
            }
        }
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
        let permitted: Vec<String> = (0..SCOPES).map(scope).collect();
        let allow = format!(
            "allow = [\"user:{FLOOD}\", \"user:{CALLER}\"]\nscope = {permitted:?}\nvariants.scope = {permitted:?}"
        );
        let tokens: String = (0..TOKENS).map(|n| token_table(&format!("t{n}"), &allow)).collect();
        let group = format!("socket_group = {:?}", SOCKET_GROUP.to_string());
        let scene = Scene::quiet(Provider::start(), &group, &tokens);
        scene.tokenctl().get("t0");
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            alone.extend(latencies(scene.socket()));
            let mut flood = start(FLOOD, scene.socket(), &["flood", &number.to_string()]);
            wait_until_ready(&mut flood);
            beside.extend(latencies(scene.socket()));
            flood.kill().unwrap();
            flood.wait().unwrap();
        }
        let (one, other) = (share(&mut alone, 50), share(&mut beside, 50));
        let ratio = other.as_secs_f64() / one.as_secs_f64();
        let worst = share(&mut beside, 99);
        println!("{:<32} {one:>10.1?} {other:>10.1?} {ratio:>7.2} {worst:>10.1?}", flood.name);
    }
}

/// Prints how much memory the daemon takes while several users use up their quotas of requests, bytes and watches.
fn memory() {
    let terms: Vec<String> = (0..SCOPES).map(short_term).collect();
    let variants = format!(
        "allow = [\"any\"]\nscope = \"s\"\nvariants = {{ scope = {terms:?}, resource = {terms:?}, audience = {terms:?} }}"
    );
    let tokens: String = (0..TOKENS).map(|n| token_table(&format!("t{n}"), &variants)).collect();
    let group = format!("socket_group = {:?}", SOCKET_GROUP.to_string());
    let scene = Scene::quiet(Provider::start(), &group, &tokens);
    scene.tokenctl().get("t0");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", scene.daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
    };
    let before = resident();
    scene.provider.set_door(Door::Silent);
    let mut hoarders = Vec::new();
    for uid in (FLOOD..).take(HOARDERS) {
        let mut hoarder = start(uid, scene.socket(), &["hoarder"]);
        wait_until_ready(&mut hoarder);
        hoarders.push(hoarder);
    }
    println!(
        "memory of the daemon: {before} MiB, and {} MiB with {HOARDERS} users at their limits",
        resident()
    );
    for mut hoarder in hoarders {
        hoarder.kill().unwrap();
        hoarder.wait().unwrap();
    }
}

/// A term of which [`SCOPES`] of each kind, in as many requests as may be in flight, have as many bytes as these may have.
fn short_term(number: usize) -> String {
    format!("{number:0>4}")
}

/// Uses up the quotas of a user: watches, and calls that wait for a provider. Keeps them until it is killed.
fn hoarder(socket: &Path) {
    let mut peers = Vec::new();
    let names: Vec<TokenName> = (0..TOKENS).map(|n| format!("t{n}").parse().unwrap()).collect();
    for _ in 0..16_384 / TOKENS {
        let mut peer = RawPeer::connect(socket).unwrap();
        peer.send(1, Request::Watch(WatchRequest { names: names.clone() })).unwrap();
        for _ in 0..TOKENS {
            assert!(matches!(peer.expect_reply(1), Reply::Event(_)));
        }
        peers.push(peer);
    }
    let terms: Vec<String> = (0..SCOPES).map(short_term).collect();
    let Request::Get(mut request) = raw_peer::get("t0") else { unreachable!() };
    request.options.deadline_ms = u32::MAX;
    request.variant = Variant { scope: terms.clone(), resource: terms.clone(), audience: terms };
    for _ in 0..64 {
        let mut peer = RawPeer::connect(socket).unwrap();
        for id in 1..=16 {
            peer.send(id, Request::Get(request.clone())).unwrap();
        }
        peers.push(peer);
    }
    println!("ready");
    thread::sleep(Duration::from_secs(3600));
    drop(peers);
}

/// The latency that so many of a hundred do not exceed.
fn share(latencies: &mut [Duration], of_hundred: usize) -> Duration {
    latencies.sort_unstable();
    latencies[latencies.len() * of_hundred / 100]
}

/// Starts this program in another role, as a user.
fn start(uid: u32, socket: &Path, role: &[&str]) -> Child {
    let copy = socket.with_file_name("fairness");
    if !copy.exists() {
        program::copy(&env::current_exe().unwrap(), &copy);
    }
    let ids = [format!("--reuid={uid}"), format!("--regid={uid}"), format!("--groups={SOCKET_GROUP}")];
    let mut command = Command::new("setpriv");
    command.args(ids).arg("--").arg(copy).args(role).arg(socket);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn wait_until_ready(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
}

fn latencies(socket: &Path) -> Vec<Duration> {
    let mut child = start(CALLER, socket, &["caller"]);
    let mut text = String::new();
    child.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    text.lines().map(|line| Duration::from_nanos(line.parse().unwrap())).collect()
}

/// Asks for a token again and again, and prints how long each took, in nanoseconds.
fn caller(socket: &Path) {
    let mut peer = RawPeer::connect(socket).unwrap();
    let mut latencies = Vec::with_capacity(REQUESTS);
    for id in 0..u32::try_from(REQUESTS).unwrap() {
        let begun = Instant::now();
        let reply = peer.ask(id, raw_peer::get("t1"));
        latencies.push(begun.elapsed());
        assert!(matches!(reply, Reply::Token(_)));
        thread::sleep(PAUSE);
    }
    for latency in latencies {
        println!("{}", latency.as_nanos());
    }
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

fn pipelining(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    asking(socket, 64, &raw_peer::get("t0"))
}

fn one_by_one(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    asking(socket, 1, &raw_peer::get("t0"))
}

fn refused(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    asking(socket, 64, &raw_peer::get("made-up"))
}

fn listing(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    asking(socket, 16, &Request::List(tokend_protocol::PageRequest { after: None }))
}

fn scopes(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    let Request::Get(mut request) = raw_peer::get("t0") else { unreachable!() };
    request.variant.scope = (0..SCOPES).map(scope).collect();
    asking(socket, 16, &Request::Get(request))
}

/// The name of a scope, about as long as a frame with all of them allows.
fn scope(number: usize) -> String {
    format!("https://api.example.com/auth/{number:0>200}")
}

/// More scopes than a request may have, which are all the same.
fn repeated_scopes(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    let get = [&[0, 2][..], b"t0", &[0, 0]].concat();
    let scopes = [&[0xfb][..], &8000_u16.to_le_bytes(), &b"\x01a".repeat(8000)].concat();
    sending(socket, frame(&[&get[..], &scopes, &[0, 0, 0]].concat()).repeat(4), 4)
}

fn watch_names(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    let names = (0..TOKENS).map(|n| format!("t{n}").parse().unwrap()).collect();
    let watch = raw_peer::wire(1, Request::Watch(WatchRequest { names }));
    again_and_again(socket, watch.repeat(16), Duration::from_millis(20))
}

/// More names than a watch may have, which are all the same.
fn repeated_watch_names(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    let names = [&[6, 0xfb][..], &5000_u16.to_le_bytes(), &b"\x02t0".repeat(5000), &[0]].concat();
    sending(socket, frame(&names).repeat(4), 4)
}

/// A frame with this message, which need not be valid.
fn frame(message: &[u8]) -> Vec<u8> {
    let body = [&[1, 0, 0, 0, 1], message].concat();
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

/// Sends requests in pieces of so many without end, and reads whatever comes. A piece of one waits for its answer.
fn asking(socket: PathBuf, at_once: u32, request: &Request) -> tokio::task::JoinHandle<()> {
    let piece: Vec<u8> = (0..at_once).flat_map(|id| raw_peer::wire(id, request.clone())).collect();
    sending(socket, piece, usize::try_from(at_once).unwrap())
}
fn sending(socket: PathBuf, piece: Vec<u8>, at_once: usize) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let (mut reading, mut writing) = UnixStream::connect(socket).await.unwrap().into_split();
        let mut scrap = vec![0; 64 * 1024];
        if at_once == 1 {
            loop {
                writing.write_all(&piece).await.unwrap();
                assert!(reading.read(&mut scrap).await.unwrap() > 0);
            }
        }
        tokio::spawn(async move { while writing.write_all(&piece).await.is_ok() {} });
        while reading.read(&mut scrap).await.is_ok_and(|size| size > 0) {}
    })
}

fn watches(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    let names = (0..60).map(|n| format!("t{n}").parse().unwrap()).collect();
    let watch = raw_peer::wire(1, Request::Watch(WatchRequest { names }));
    again_and_again(socket, watch.repeat(16), Duration::from_millis(20))
}

fn half_sent(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    let wire = raw_peer::wire(1, raw_peer::get("t0"));
    again_and_again(socket, wire[..wire.len() / 2].to_vec(), Duration::from_millis(100))
}

fn connecting(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    again_and_again(socket, Vec::new(), Duration::ZERO)
}

/// Connects, writes, waits and leaves, without end.
fn again_and_again(socket: PathBuf, wire: Vec<u8>, stay: Duration) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let Ok(mut stream) = UnixStream::connect(&socket).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let _ = stream.write_all(&wire).await;
            tokio::time::sleep(stay).await;
        }
    })
}

/// Asks for as much as the connection takes and reads none of it.
fn slow_reading(socket: PathBuf) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let wire = raw_peer::wire(1, Request::List(tokend_protocol::PageRequest { after: None }));
        loop {
            let Ok(mut stream) = UnixStream::connect(&socket).await else { continue };
            while stream.write_all(&wire).await.is_ok() {}
        }
    })
}

//! Parts of several benchmarks: their roles as processes of their own, streams of requests, and a caller whose latency is
//! measured.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokend_protocol::{
    CallOptions, HeadersRequest, PageRequest, Reply, Request, TokenName, Variant, WatchRequest, decode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::{program, raw_peer};

/// A call that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// After a failed attempt to connect.
const RECONNECT: Duration = Duration::from_millis(1);

/// Which latency a caller measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Of calls on one connection.
    Kept,
    /// Of calls that begin with connecting.
    New,
}

/// The calls of a caller that measures their latency.
#[derive(Clone, Copy, Debug)]
pub struct Measurement<'a> {
    /// Which latency.
    pub connection: Connection,
    /// `get` or `headers`.
    pub verb: &'a str,
    /// The name of the token.
    pub token: &'a str,
    /// How many calls.
    pub calls: usize,
    /// No call begins later than this.
    pub within: Duration,
    /// Between two calls, so that the caller is not a flood itself.
    pub pause: Duration,
}

/// The calls of a caller.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// Of those that brought a token.
    pub latencies: Vec<Duration>,
    /// How many did not.
    pub failed: usize,
}

/// Starts this program in another role, through a wrapper that executes it. The last argument is the socket. The program
/// is copied beside the socket, where every user can run it.
///
/// # Panics
/// When it cannot be started.
pub fn start(wrapper: &[&str], socket: &Path, role: &[&str]) -> Child {
    let copy = socket.with_file_name("bench");
    if !copy.exists() {
        program::copy(&env::current_exe().unwrap(), &copy);
    }
    let copy = copy.to_str().unwrap();
    let words: Vec<&str> = wrapper.iter().chain(&[copy]).chain(role).copied().collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Ends this process when the one that started it has ended, or waits for its end.
pub fn end_with_input() {
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        let _ = kill(Pid::this(), Signal::SIGKILL);
    });
}

/// Waits for the line `ready`.
///
/// # Panics
/// When the process ends without it.
pub fn wait_until_ready(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
}

/// The latency that so many of a hundred do not exceed.
pub fn share(latencies: &[Duration], of_hundred: usize) -> Duration {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() * of_hundred / 100).copied().unwrap_or(Duration::MAX)
}

impl Measurement<'_> {
    /// Measures in a process of its own, which must hand the words of its role to [`measure`].
    ///
    /// # Panics
    /// When the process cannot be started or fails.
    pub fn start(&self, wrapper: &[&str], socket: &Path) -> Calls {
        let connection = if self.connection == Connection::Kept { "kept" } else { "new" };
        let numbers = [self.calls, millis(self.within), micros(self.pause)].map(|number| number.to_string());
        let [calls, within, pause] = numbers.each_ref().map(String::as_str);
        let mut child =
            start(wrapper, socket, &["caller", connection, self.verb, self.token, calls, within, pause]);
        let mut text = String::new();
        child.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success());
        let latencies = text.lines().filter_map(|line| line.parse().ok()).map(Duration::from_nanos).collect();
        Calls { latencies, failed: text.lines().filter(|line| *line == "failed").count() }
    }
}

fn millis(duration: Duration) -> usize {
    duration.as_millis().try_into().unwrap()
}

fn micros(duration: Duration) -> usize {
    duration.as_micros().try_into().unwrap()
}

/// The role `caller`: prints how long each call took, in nanoseconds, or `failed`.
///
/// # Panics
/// When the words are not those that [`Measurement::start`] wrote.
#[expect(clippy::print_stdout, reason = "the process that started this one reads it")]
pub fn measure(words: &[&str], socket: &Path) {
    let [connection, verb, token, calls, within, pause] = words else { panic!("{words:?}") };
    let request = if *verb == "headers" { headers(token) } else { raw_peer::get(token) };
    let wire = raw_peer::wire(1, request);
    let (within, pause) = (within.parse().unwrap(), pause.parse().unwrap());
    let (within, pause) = (Duration::from_millis(within), Duration::from_micros(pause));
    let mut kept = if *connection == "kept" { connect(socket) } else { None };
    let began = Instant::now();
    for _ in 0..calls.parse().unwrap() {
        if began.elapsed() > within {
            return;
        }
        let call_began = Instant::now();
        if *connection == "new" {
            kept = connect(socket);
        }
        let reply = kept.as_mut().and_then(|stream| call(stream, &wire));
        let latency = call_began.elapsed();
        let reply = reply.map(|body| decode::<Reply>(&body).unwrap().message);
        if matches!(reply, Some(Reply::Token(_) | Reply::Headers(_))) {
            println!("{}", latency.as_nanos());
        } else {
            println!("failed");
            kept = connect(socket);
        }
        thread::sleep(pause);
    }
}

fn connect(socket: &Path) -> Option<BlockingStream> {
    let stream = BlockingStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    Some(stream)
}

/// Writes a request, and returns the body of the reply.
fn call(stream: &mut BlockingStream, wire: &[u8]) -> Option<Vec<u8>> {
    stream.write_all(wire).ok()?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).ok()?];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

/// A request for the headers of a call.
pub fn headers(name: &str) -> Request {
    Request::Headers(HeadersRequest {
        name: name.parse().expect("a bench asks by a name that can exist"),
        options: CallOptions { deadline_ms: 60_000, min_ttl_ms: 0 },
        supplied: Vec::new(),
        omitted: Vec::new(),
        variant: Variant::default(),
    })
}

/// A watch of tokens by their names.
pub fn watch(names: impl IntoIterator<Item = String>) -> Request {
    let tokens = names.into_iter().map(|name| name.parse::<TokenName>().unwrap().into()).collect();
    Request::Watch(WatchRequest { tokens, with_tokens: false })
}

/// A request for the list of all tokens.
pub fn list() -> Request {
    Request::List(PageRequest { after: None })
}

/// Sends pieces of so many requests without end, and reads whatever comes. A piece of one waits for its answer.
pub fn sending(socket: PathBuf, piece: Vec<u8>, at_once: usize) -> JoinHandle<()> {
    tokio::spawn(async move {
        let (mut reading, mut writing) = connected(&socket).await.into_split();
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

/// A connection, as soon as the daemon has room for one more.
async fn connected(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(RECONNECT).await,
        }
    }
}

/// Connects, writes, waits and leaves, without end.
pub fn again_and_again(socket: PathBuf, wire: Vec<u8>, stay: Duration) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let mut stream = connected(&socket).await;
            let _ = stream.write_all(&wire).await;
            tokio::time::sleep(stay).await;
        }
    })
}

/// Asks for as much as the connection takes and reads none of it.
pub fn slow_reading(socket: PathBuf) -> JoinHandle<()> {
    tokio::spawn(async move {
        let wire = raw_peer::wire(1, list());
        loop {
            let mut stream = connected(&socket).await;
            while stream.write_all(&wire).await.is_ok() {}
        }
    })
}

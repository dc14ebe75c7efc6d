//! The load generator, which is the same for every server: bytes that are made beforehand go out, and replies of a known size
//! come in. One thread, in a process of its own.

use std::env;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokend_tests::bench::share;

use crate::cpu;
use crate::server::{Kind, Server};

/// Nothing that is measured takes longer than this.
const LIMIT: Duration = Duration::from_secs(30);

/// Before the measurement, with the same load.
const WARM_UP: Duration = Duration::from_millis(100);

/// How long one load lasts.
const TIME: Duration = Duration::from_millis(400);

/// Bytes at the beginning of a reply that all replies of a server share.
const HEAD: usize = 5;

const READ_MAX: usize = 64 * 1024;

/// Calls on some connections, each of which has so many requests in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// With 0, each call has a connection of its own.
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    /// Whether the server and the load share one processor.
    pub(crate) is_pinned: bool,
}

/// How a server served a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    /// Replies in a second.
    pub(crate) rate: f64,
    /// Of 100 rounds of requests, 99 took no longer. Rounds with several requests in flight end with the first reply.
    pub(crate) p99: Duration,
    /// The processor time of the server for each reply.
    pub(crate) work: Duration,
}

/// One request and its reply.
struct Exchange {
    requests: Vec<u8>,
    request_size: usize,
    head: [u8; HEAD],
    reply_size: usize,
}

struct Caller {
    stream: UnixStream,
    /// Bytes of the reply that is on its way.
    received: usize,
    asked: Instant,
}

impl Load {
    /// Loads a server from another process.
    pub(crate) fn run(self, server: &Server) -> Served {
        if self.is_pinned {
            cpu::pin(server.pid);
        }
        let [connections, in_flight] = [self.connections, self.in_flight].map(|number| number.to_string());
        let pid = server.pid.to_string();
        let pinned = if self.is_pinned { "pinned" } else { "free" };
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["load", server.kind.name(), &pid, &connections, &in_flight, pinned])
            .arg(&server.socket);
        let done = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
        assert!(done.status.success(), "the load on {} failed", server.kind.name());
        if self.is_pinned {
            cpu::free(server.pid);
        }
        let text = String::from_utf8(done.stdout).unwrap();
        let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let [replies, nanos, p99, work] = numbers[..] else { panic!("{text}") };
        let rate = replies as f64 * 1e9 / nanos as f64;
        Served { rate, p99: Duration::from_nanos(p99), work: Duration::from_nanos(work / replies) }
    }
}

/// The role `load`: prints the number of replies and, in nanoseconds, the time that they took, the 99th percentile of the
/// latencies, and the processor time of the server.
pub(crate) fn main(words: &[&str], socket: &str) {
    let [kind, pid, connections, in_flight, pinned] = words else { panic!("{words:?}") };
    if *pinned == "pinned" {
        cpu::pin(std::process::id());
    }
    let (pid, connections, in_flight) =
        (pid.parse().unwrap(), connections.parse().unwrap(), in_flight.parse().unwrap());
    let socket = Path::new(socket);
    let exchange = Exchange::new(Kind::named(kind), in_flight, socket);
    let mut callers = Callers::connect(&exchange, connections, socket);
    let mut measure = |time| {
        if connections == 0 { connect_and_call(&exchange, socket, time) } else { callers.call(time) }
    };
    measure(WARM_UP);
    let (began, used) = (Instant::now(), cpu::used(pid));
    let (replies, latencies) = measure(TIME);
    let (time, work) = (began.elapsed(), cpu::used(pid).saturating_sub(used));
    println!("{replies} {} {} {}", time.as_nanos(), share(&latencies, 99).as_nanos(), work.as_nanos());
}

impl Exchange {
    fn new(kind: Kind, in_flight: usize, socket: &Path) -> Self {
        let request = kind.get("t0");
        let reply = kind.call(&mut connect(socket), "t0");
        let (requests, request_size) = (request.repeat(in_flight), request.len());
        Self { requests, request_size, head: *reply.first_chunk().unwrap(), reply_size: reply.len() }
    }
}

struct Callers<'a> {
    exchange: &'a Exchange,
    all: Vec<Caller>,
    epoll: Epoll,
}

impl<'a> Callers<'a> {
    /// Connects, and sends the first requests.
    fn connect(exchange: &'a Exchange, number: usize, socket: &Path) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let mut all = Vec::new();
        for number in 0..number {
            let mut caller = Caller { stream: connect(socket), received: 0, asked: Instant::now() };
            let event = EpollEvent::new(EpollFlags::EPOLLIN, number.try_into().unwrap());
            epoll.add(&caller.stream, event).unwrap();
            caller.stream.write_all(&exchange.requests).unwrap();
            all.push(caller);
        }
        Self { exchange, all, epoll }
    }

    /// Sends a request for each reply that comes, for some time. Returns the number of replies, and latencies.
    fn call(&mut self, time: Duration) -> (usize, Vec<Duration>) {
        let (mut room, mut latencies, mut replies) = (vec![0; READ_MAX], Vec::new(), 0);
        let mut events = vec![EpollEvent::empty(); self.all.len()];
        let end = Instant::now() + time;
        let mut now = Instant::now();
        while now < end {
            // A single caller waits in its read. The empty event stands for it.
            let ready = if self.all.len() == 1 { 1 } else { self.wait(&mut events) };
            for event in &events[..ready] {
                let caller = &mut self.all[usize::try_from(event.data()).unwrap()];
                let came = caller.receive(self.exchange, &mut room);
                now = Instant::now();
                if came > 0 {
                    latencies.push(now - caller.asked);
                    caller.asked = now;
                    let requests = &self.exchange.requests[..came * self.exchange.request_size];
                    caller.stream.write_all(requests).unwrap();
                    replies += came;
                }
            }
        }
        (replies, latencies)
    }

    fn wait(&self, events: &mut [EpollEvent]) -> usize {
        let ready = self.epoll.wait(events, EpollTimeout::try_from(LIMIT).unwrap()).unwrap();
        assert!(ready > 0, "no reply within {LIMIT:?}");
        ready
    }
}

impl Caller {
    /// Reads once, and returns how many replies are complete now.
    fn receive(&mut self, exchange: &Exchange, room: &mut [u8]) -> usize {
        let size = self.stream.read(room).unwrap();
        assert!(size > 0, "the server closed a connection");
        let begins = (exchange.reply_size - self.received) % exchange.reply_size;
        for begin in (begins..size).step_by(exchange.reply_size) {
            if let Some(head) = room[begin..size].first_chunk() {
                assert_eq!(*head, exchange.head, "a reply of another kind or size");
            }
        }
        let received = self.received + size;
        self.received = received % exchange.reply_size;
        received / exchange.reply_size
    }
}

/// Connects for each call, for some time.
fn connect_and_call(exchange: &Exchange, socket: &Path, time: Duration) -> (usize, Vec<Duration>) {
    let (mut room, mut latencies) = (vec![0; READ_MAX], Vec::new());
    let end = Instant::now() + time;
    let mut now = Instant::now();
    while now < end {
        let mut caller = Caller { stream: connect(socket), received: 0, asked: now };
        caller.stream.write_all(&exchange.requests).unwrap();
        while caller.receive(exchange, &mut room) == 0 {}
        drop(caller.stream);
        latencies.push(caller.asked.elapsed());
        now = Instant::now();
    }
    (latencies.len(), latencies)
}

/// Connects to a server that answers in time or not at all.
pub(crate) fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

//! The attacks, each by one user or by many.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use tokend_protocol::{CallOptions, GetRequest, Request, Variant};
use tokend_tests::bench::{self, again_and_again, sending, slow_reading, watch};
use tokend_tests::raw_peer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::varying;

pub(crate) const SOCKET_GROUP: u32 = 61_000;

/// The first of the attacking users.
const FIRST: u32 = 61_100;

/// The most supplementary groups that a process can have.
const GROUPS_MAX: u32 = 65_536;

/// Until an attack is in full swing.
const WARM_UP: Duration = Duration::from_millis(500);

/// After a failed attempt to connect.
const RECONNECT: Duration = Duration::from_millis(1);

/// Calls that one user keeps waiting, on so many connections: all that a user may have.
const WAITING: u32 = 64;
const WAITING_CONNECTIONS: usize = 16;

/// Scopes or names for which a frame has room, if each is one letter.
const MANY: usize = 8000;

/// A token for nobody.
pub(crate) const DENIED: &str = "0";

/// Scopes of a variant.
pub(crate) const LETTERS: [char; 26] = [
    'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r', 's', 't', 'u',
    'v', 'w', 'x', 'y', 'z',
];

/// An attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) users: u32,
    /// The request of the quiet user: `get` or `headers`.
    pub(crate) verb: &'static str,
    /// Whether the attackers count the tokens that they get. They stay root, and start callers that do not.
    pub(crate) is_counted: bool,
    groups: u32,
    work: fn(&Attacker),
}

/// One attacking user.
pub(crate) struct Attacker {
    pub(crate) socket: PathBuf,
    pub(crate) uid: u32,
    pub(crate) users: u32,
    round: usize,
}

const fn attack(name: &'static str, users: u32, work: fn(&Attacker)) -> Attack {
    Attack { name, users, verb: "get", is_counted: false, groups: 1, work }
}

pub(crate) const ATTACKS: [Attack; 17] = [
    Attack { groups: GROUPS_MAX, ..attack("65,536 groups, 1 user", 1, holding_connections) },
    Attack { groups: GROUPS_MAX, ..attack("65,536 groups, 16 users", 16, holding_connections) },
    attack("8,000 scopes that wait, 1 user", 1, waiting_with_many_scopes),
    attack("8,000 scopes that wait, 16 users", 16, waiting_with_many_scopes),
    attack("64 long scopes that wait, 1 user", 1, waiting_with_long_scopes),
    attack("64 long scopes that wait, 16 users", 16, waiting_with_long_scopes),
    attack("flood of 8,000 scopes, 1 user", 1, many_scopes),
    attack("flood of 64 long scopes, 1 user", 1, different_scopes),
    attack("watches of 8,000 names, 1 user", 1, many_names),
    attack("watches of 256 names, 1 user", 1, watches),
    attack("connect and close, 1 user", 1, connecting),
    attack("connect and close, 16 users", 16, connecting),
    Attack { is_counted: true, ..attack("varying facts, 1 user", 1, varying::run) },
    Attack { is_counted: true, ..attack("varying facts, 16 users", 16, varying::run) },
    Attack { verb: "headers", ..attack("999 slow secrets, 1 user", 1, slow_secrets) },
    attack("every limit, 1 user", 1, everything),
    Attack { groups: GROUPS_MAX, ..attack("every limit, 16 users", 16, everything) },
];

/// Attacks until the process is killed, or, where the tokens are counted, until its input ends.
pub(crate) fn run(attack: &str, user: u32, users: u32, round: usize, socket: &str) {
    let attack = ATTACKS.iter().find(|known| known.name == attack).unwrap();
    let attacker = Attacker { socket: socket.into(), uid: FIRST + user, users, round };
    if !attack.is_counted {
        bench::end_with_input();
        become_user(attacker.uid, attack.groups);
    }
    (attack.work)(&attacker);
}

/// Becomes a user with so many groups, of which one may connect.
pub(crate) fn become_user(uid: u32, groups: u32) {
    let groups: Vec<Gid> = (0..groups).map(|n| Gid::from_raw(SOCKET_GROUP + n)).collect();
    setgroups(&groups).unwrap();
    setgid(Gid::from_raw(uid)).unwrap();
    setuid(Uid::from_raw(uid)).unwrap();
}

impl Attacker {
    /// Threads of this user, so that an attack is made by a few more than there are processors.
    pub(crate) fn threads(&self) -> u32 {
        if self.users == 1 { 4 } else { 1 }
    }

    /// A token whose provider never answers. Each round has its own, because providers that do not answer are asked less often.
    fn waiting_token(&self) -> String {
        format!("waits{}", self.round)
    }

    /// Runs this on some threads without end.
    fn on_threads(&self, work: impl Fn() + Clone + Send + 'static) {
        let threads: Vec<_> = (0..self.threads()).map(|_| thread::spawn(work.clone())).collect();
        thread::sleep(WARM_UP);
        println!("ready");
        for thread in threads {
            thread.join().unwrap();
        }
    }

    /// Runs these streams without end.
    fn stream(&self, start: impl FnOnce() -> Vec<JoinHandle<()>>) {
        let workers = if self.users == 1 { 2 } else { 1 };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap();
        runtime.block_on(async {
            let streams = start();
            tokio::time::sleep(WARM_UP).await;
            println!("ready");
            for stream in streams {
                let _ = stream.await;
            }
            std::future::pending::<()>().await;
        });
    }
}

/// Connects as fast as it can, and holds the last few connections.
fn holding_connections(attacker: &Attacker) {
    let held = usize::try_from(if attacker.users == 1 { 900 } else { 200 } / attacker.threads()).unwrap();
    let socket = attacker.socket.clone();
    attacker.on_threads(move || {
        let mut connections = VecDeque::new();
        loop {
            let Ok(stream) = BlockingStream::connect(&socket) else {
                thread::sleep(RECONNECT);
                continue;
            };
            connections.push_back(stream);
            if connections.len() > held {
                connections.pop_front();
            }
        }
    });
}

fn connecting(attacker: &Attacker) {
    let socket = attacker.socket.clone();
    attacker.on_threads(move || {
        loop {
            if BlockingStream::connect(&socket).is_err() {
                thread::sleep(RECONNECT);
            }
        }
    });
}

fn waiting_with_many_scopes(attacker: &Attacker) {
    waiting(attacker, &raw_peer::wire(1, get(&attacker.waiting_token(), one_scope())));
}

fn waiting_with_long_scopes(attacker: &Attacker) {
    waiting(attacker, &raw_peer::wire(1, get(&attacker.waiting_token(), long_scopes())));
}

fn waiting(attacker: &Attacker, call: &[u8]) {
    attacker.stream(|| {
        (0..WAITING_CONNECTIONS).map(|_| keeping_unanswered(attacker.socket.clone(), WAITING, call)).collect()
    });
}

fn many_scopes(attacker: &Attacker) {
    flood(attacker, &raw_peer::wire(1, get("varied", one_scope())));
}

fn different_scopes(attacker: &Attacker) {
    flood(attacker, &raw_peer::wire(1, get("varied", long_scopes())));
}

fn many_names(attacker: &Attacker) {
    flood(attacker, &raw_peer::wire(1, watch(vec![DENIED.to_owned(); MANY])));
}

fn flood(attacker: &Attacker, call: &[u8]) {
    attacker.stream(|| (0..16).map(|_| sending(attacker.socket.clone(), call.repeat(4), 4)).collect());
}

fn watches(attacker: &Attacker) {
    let wire = raw_peer::wire(1, watch(watched())).repeat(4);
    let stay = Duration::from_millis(20);
    attacker
        .stream(|| (0..16).map(|_| again_and_again(attacker.socket.clone(), wire.clone(), stay)).collect());
}

fn slow_secrets(attacker: &Attacker) {
    let headers = raw_peer::wire(1, bench::headers("slow"));
    attacker.stream(|| (0..9).map(|_| keeping_unanswered(attacker.socket.clone(), 111, &headers)).collect());
}

/// All that a user may have at a time: connections, with half a frame each, calls that wait, watches, and unread answers.
fn everything(attacker: &Attacker) {
    let get = raw_peer::wire(1, get(&attacker.waiting_token(), long_scopes()));
    let half = get[..get.len() - 1].to_vec();
    let watches: Vec<u8> = (0..64).flat_map(|id| raw_peer::wire(id, watch(watched().take(16)))).collect();
    let halves = if attacker.users == 1 { 900 } else { 180 };
    let socket = || attacker.socket.clone();
    attacker.stream(|| {
        let waiting = (0..WAITING_CONNECTIONS).map(|_| keeping_unanswered(socket(), WAITING, &get));
        let watching = (0..16).map(|_| again_and_again(socket(), watches.clone(), Duration::from_secs(60)));
        let unread = (0..8).map(|_| slow_reading(socket()));
        let half_sent = (0..halves).map(|_| again_and_again(socket(), half.clone(), Duration::from_secs(4)));
        waiting.chain(watching).chain(unread).chain(half_sent).collect()
    });
}

/// Keeps so many calls unanswered on a connection: after each answer it makes the same call again.
fn keeping_unanswered(socket: PathBuf, calls: u32, call: &[u8]) -> JoinHandle<()> {
    let call = call.to_vec();
    tokio::spawn(async move {
        loop {
            let Ok(stream) = UnixStream::connect(&socket).await else {
                tokio::time::sleep(RECONNECT).await;
                continue;
            };
            let (reading, mut writing) = stream.into_split();
            let mut reading = BufReader::new(reading);
            let mut unanswered = 0;
            while writing.write_all(&call).await.is_ok() {
                unanswered += 1;
                if unanswered < calls {
                    continue;
                }
                let Ok(length) = reading.read_u32().await else { break };
                let mut body = vec![0; usize::try_from(length).unwrap()];
                if reading.read_exact(&mut body).await.is_err() {
                    break;
                }
                unanswered -= 1;
            }
        }
    })
}

pub(crate) fn get(name: &str, scope: Vec<String>) -> Request {
    let options = CallOptions { deadline_ms: 60_000, min_ttl_ms: 0 };
    let variant = Variant { scope, ..Variant::default() };
    Request::Get(GetRequest { name: name.parse().unwrap(), options, variant })
}

/// One scope, as often as a frame has room for it.
fn one_scope() -> Vec<String> {
    vec!["a".to_owned(); MANY]
}

/// Fewer scopes that fill a frame.
pub(crate) fn long_scopes() -> Vec<String> {
    (0..64).map(|n| format!("{n:0>240}")).collect()
}

/// The names of as many tokens as a watch may have.
pub(crate) fn watched() -> impl Iterator<Item = String> {
    (0..256).map(|n| format!("t{n:0>40}"))
}

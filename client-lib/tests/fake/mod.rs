//! A daemon that answers what a test tells it to: the other end of the wire, without any of tokend.

#![allow(dead_code, unreachable_pub, reason = "every suite uses a part of it")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a failed step fails the test")]

use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};

use tokend_protocol::{
    BootInstant, DaemonStatus, ErrorCode, ErrorReply, ExplainedCondition, ExplainedList, ExplainedReply,
    ExplainedRule, Fingerprint, Frame, HeldToken, Reply, Request, Secret, State, SubjectFacts, Timestamp,
    TokenInfo, TokenName, TokenReply, TokenStatus, encode, read_frame, write_frame,
};

/// The access token that the samples hold.
pub const TOKEN: &str = "eyJ-sample-token";

/// What is sent upon a request, in order.
pub enum Answer {
    /// A reply to this very request.
    Reply(Reply),
    /// A reply under another id.
    Under(u32, Reply),
    /// Bytes as they are.
    Raw(Vec<u8>),
    /// The end of the connection.
    HangUp,
}

type Script = dyn Fn(Frame<Request>) -> Vec<Answer> + Send + Sync;

/// A running fake daemon. It stops when dropped, and takes its socket and all connections with it.
pub struct FakeDaemon {
    socket: PathBuf,
    seen: Arc<Seen>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    stopping: AtomicBool,
    connections: Mutex<Vec<UnixStream>>,
    open: AtomicUsize,
    requests: Mutex<Vec<Request>>,
}

impl FakeDaemon {
    /// Starts at a socket. The script runs on a thread of its own for each request, so it may wait.
    pub fn start(
        socket: &Path,
        script: impl Fn(Frame<Request>) -> Vec<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let seen = Arc::new(Seen::default());
        let script: Arc<Script> = Arc::new(script);
        let shared = Arc::clone(&seen);
        let acceptor = thread::spawn(move || accept(&listener, &shared, &script));
        Self { socket: socket.to_owned(), seen, acceptor: Some(acceptor) }
    }

    /// As [`Self::start`], with one reply to each request.
    pub fn answering(socket: &Path, reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(socket, move |frame| vec![Answer::Reply(reply(&frame.message))])
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.requests.lock().unwrap().clone()
    }

    /// The newest connection.
    pub fn newest(&self) -> UnixStream {
        self.seen.connections.lock().unwrap().last().unwrap().try_clone().unwrap()
    }

    /// Sends a reply over the newest connection.
    pub fn push(&self, id: u32, message: Reply) {
        Self::push_to(&self.newest(), id, message);
    }

    /// Sends a reply over a connection.
    pub fn push_to(mut connection: &UnixStream, id: u32, message: Reply) {
        write_frame(&mut connection, &Frame { id, message }).unwrap();
    }

    /// Ends the newest connection after these bytes.
    pub fn end_newest(&self, bytes: &[u8]) {
        use std::io::Write;
        let mut newest = self.newest();
        newest.write_all(bytes).unwrap();
        newest.shutdown(Shutdown::Both).unwrap();
    }

    /// How many connections the clients have open.
    pub fn open_connections(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.seen.connections.lock().unwrap().len()
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.seen.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then sees that it has to stop.
        let _ = UnixStream::connect(&self.socket);
        let _ = self.acceptor.take().unwrap().join();
        std::fs::remove_file(&self.socket).unwrap();
        for connection in self.seen.connections.lock().unwrap().iter() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &UnixListener, seen: &Arc<Seen>, script: &Arc<Script>) {
    for stream in listener.incoming() {
        if seen.stopping.load(Ordering::SeqCst) {
            return;
        }
        let stream = stream.unwrap();
        seen.connections.lock().unwrap().push(stream.try_clone().unwrap());
        let (seen, script) = (Arc::clone(seen), Arc::clone(script));
        thread::spawn(move || serve(&stream, &seen, &script));
    }
}

fn serve(mut stream: &UnixStream, seen: &Seen, script: &Arc<Script>) {
    let writer = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    seen.open.fetch_add(1, Ordering::SeqCst);
    while let Ok(Some(Ok(frame))) = read_frame::<Request>(&mut stream) {
        seen.requests.lock().unwrap().push(frame.message.clone());
        let (writer, script) = (Arc::clone(&writer), Arc::clone(script));
        thread::spawn(move || {
            let id = frame.id;
            let answers = script(frame);
            send(&mut writer.lock().unwrap(), id, answers);
        });
    }
    seen.open.fetch_sub(1, Ordering::SeqCst);
}

/// Sends to a client that may have gone.
fn send(stream: &mut UnixStream, id: u32, answers: Vec<Answer>) {
    use std::io::Write;
    for answer in answers {
        let _ = match answer {
            Answer::Reply(message) => write_frame(stream, &Frame { id, message }),
            Answer::Under(id, message) => write_frame(stream, &Frame { id, message }),
            Answer::Raw(bytes) => stream.write_all(&bytes),
            Answer::HangUp => stream.shutdown(Shutdown::Both),
        };
    }
}

/// The bytes of a reply's frame.
pub fn frame(id: u32, message: Reply) -> Vec<u8> {
    let mut wire = Vec::new();
    encode(&Frame { id, message }, &mut wire).unwrap();
    wire
}

pub fn name(text: &str) -> TokenName {
    text.parse().unwrap()
}

pub fn fingerprint() -> Fingerprint {
    "00f1e2d3c4b5a697".parse().unwrap()
}

/// A fresh token that expires in 50 hours and a half, so that its lifetime is "2d 2h" throughout a test.
pub fn info() -> TokenInfo {
    static NOW: OnceLock<BootInstant> = OnceLock::new();
    let now = *NOW.get_or_init(tokend_client::now);
    TokenInfo {
        issued_at: BootInstant(now.0.saturating_sub(48_000)),
        expires_at: BootInstant(now.0 + 181_800_000),
        expires_at_wall: Timestamp(2_000_000_000_000),
        state: State::Fresh,
        last_error: None,
        next_attempt: None,
        fingerprint: fingerprint(),
    }
}

pub fn token() -> Reply {
    Reply::Token(TokenReply {
        info: info(),
        token: Secret::from(TOKEN.to_owned()),
        token_type: "Bearer".to_owned(),
        scope: Some("aisp pisp".to_owned()),
    })
}

pub fn error(code: ErrorCode) -> ErrorReply {
    ErrorReply {
        code,
        message: "the daemon's words".to_owned(),
        class: None,
        next_attempt: None,
        best_ttl_ms: None,
    }
}

pub fn daemon_status() -> DaemonStatus {
    DaemonStatus {
        version: "9.8.7".to_owned(),
        pid: 4711,
        started_at: Timestamp(1_700_000_000_000),
        connections: 2,
        reload_failed_at: None,
        attributes: Vec::new(),
        counts: Vec::new(),
    }
}

pub fn held() -> HeldToken {
    let TokenInfo { issued_at, expires_at, expires_at_wall, fingerprint, .. } = info();
    HeldToken { issued_at, expires_at, expires_at_wall, fingerprint }
}

pub fn token_status(text: &str) -> TokenStatus {
    TokenStatus {
        name: name(text),
        provider: "bnp".to_owned(),
        state: State::Fresh,
        held: Some(held()),
        last_error: None,
        failures: 0,
        next_attempt: None,
        requests: 3,
        hand_outs: 40,
        deviations: Vec::new(),
        attributes: Vec::new(),
        counts: Vec::new(),
        variants_held: 0,
        variants: Vec::new(),
    }
}

/// What an operator is told about a process that may have the token.
pub fn explained() -> ExplainedReply {
    let condition = |condition: &str, holds, fact: &str| ExplainedCondition {
        condition: condition.to_owned(),
        holds,
        fact: fact.to_owned(),
    };
    let both = vec![
        condition("user:billing", true, "the user is 1001"),
        condition("unit:billing.service", false, "the unit is pay@eu.service"),
    ];
    let one = vec![condition("unit:pay@*.service", true, "the unit is pay@eu.service")];
    let rule = |rule: &str, matches, conditions| ExplainedRule { rule: rule.to_owned(), matches, conditions };
    ExplainedReply {
        allowed: true,
        reason: "unit:pay@*.service".to_owned(),
        facts: SubjectFacts {
            uid: Some(1001),
            gid: Some(1001),
            groups: vec![27, 1001],
            pid: Some(4711),
            unit: Some("pay@eu.service".to_owned()),
            user_unit: None,
            invocation_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
            exe: None,
        },
        operator: None,
        lists: vec![ExplainedList {
            of: "token".to_owned(),
            rules: vec![
                rule("user:billing and unit:billing.service", false, both),
                rule("unit:pay@*.service", true, one),
            ],
        }],
        omitted: 0,
    }
}

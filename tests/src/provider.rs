//! A scripted authorization server on loopback. It records every request, and it answers as it is told:
//! well, badly, late or never.
//!
//! It runs on a thread of its own, so that a test needs no runtime to use it.

mod answer;
mod connection;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::wait;

pub use answer::{Answer, Fault, Gate};

const ANY_PORT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// The server. It stops when it is dropped.
pub struct Provider {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The method.
    pub method: String,
    /// The path, with the query if there was one.
    pub path: String,
    /// The header fields in order, names as they were written.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
    /// When it had arrived.
    pub at: Instant,
}

/// The treatment of new connections, before any request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Door {
    /// They are served.
    #[default]
    Open,
    /// They are reset.
    Resets,
    /// They are accepted, and no byte is ever sent.
    Silent,
}

struct Shared {
    script: Mutex<Script>,
    connections: AtomicUsize,
    sent: AtomicU64,
}

type Usual = dyn FnMut(&Recorded) -> Answer + Send;

struct Script {
    door: Door,
    queued: VecDeque<Answer>,
    usual: Box<Usual>,
    requests: Vec<Recorded>,
}

impl Recorded {
    /// The value of a header field, if it came exactly once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let (_, value) = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// The body as form fields, in order.
    pub fn form(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(self.body.as_bytes()).into_owned().collect()
    }

    /// The value of a form field, if it came exactly once.
    pub fn field(&self, name: &str) -> Option<String> {
        let mut values = self.form().into_iter().filter(|(known, _)| known == name);
        let (_, value) = values.next()?;
        values.next().is_none().then_some(value)
    }
}

impl Provider {
    /// Starts one that speaks plain HTTP and gives a token of an hour to every request.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start() -> Self {
        Self::start_with(any_port(), None)
    }

    /// Starts one that speaks TLS.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_tls(config: Arc<ServerConfig>) -> Self {
        Self::start_with(any_port(), Some(config))
    }

    /// Starts one on a socket of the caller's own, which listens already.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_on(listener: std::net::TcpListener) -> Self {
        Self::start_with(listener, None)
    }

    /// Starts one at an address of the caller's choice.
    pub fn start_at(
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        usual: impl FnMut(&Recorded) -> Answer + Send + 'static,
    ) -> io::Result<Self> {
        let provider = Self::start_with(std::net::TcpListener::bind(address)?, tls);
        provider.answer_with(usual);
        Ok(provider)
    }

    /// Starts one that answers as the function says.
    pub fn start_answering(usual: impl FnMut(&Recorded) -> Answer + Send + 'static) -> Self {
        let provider = Self::start();
        provider.answer_with(usual);
        provider
    }

    fn start_with(listener: std::net::TcpListener, tls: Option<Arc<ServerConfig>>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared::new());
        listener.set_nonblocking(true).expect("a socket can be told not to block");
        let address = listener.local_addr().expect("a socket that listens has an address");
        let (stop, stopped) = oneshot::channel();
        let inner = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = connection::accept(listener, tls, inner) => (),
                    _ = stopped => (),
                }
            });
        });
        Self { address, scheme, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL of this server, by address. The path begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// The same by the name `localhost`.
    pub fn url_by_name(&self, path: &str) -> String {
        format!("{}://localhost:{}{path}", self.scheme, self.address.port())
    }

    /// The URL at which the suites ask for tokens.
    pub fn token_endpoint(&self) -> String {
        self.url("/token")
    }

    /// Changes what is answered where nothing is queued.
    pub fn answer_with(&self, usual: impl FnMut(&Recorded) -> Answer + Send + 'static) {
        self.shared.lock().usual = Box::new(usual);
    }

    /// The same with one answer for every request.
    pub fn always(&self, answer: Answer) {
        self.answer_with(move |_| answer.clone());
    }

    /// Queues an answer: the next request not yet spoken for gets it.
    pub fn then(&self, answer: Answer) -> &Self {
        self.shared.lock().queued.push_back(answer);
        self
    }

    /// Changes the treatment of new connections.
    pub fn set_door(&self, door: Door) {
        self.shared.lock().door = door;
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.lock().requests.clone()
    }

    /// How many requests there were so far.
    pub fn count(&self) -> usize {
        self.shared.lock().requests.len()
    }

    /// How many requests there were so far for a path.
    pub fn count_at(&self, path: &str) -> usize {
        self.shared.lock().requests.iter().filter(|request| request.path == path).count()
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many bytes of answers were taken from this server so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Waits until there were this many requests.
    ///
    /// # Panics
    /// When they do not come.
    pub fn wait_for_requests(&self, count: usize) -> Vec<Recorded> {
        wait::until(&format!("{count} requests at the provider"), || {
            let requests = self.requests();
            (requests.len() >= count).then_some(requests)
        })
    }

    /// Waits until there were this many connections.
    ///
    /// # Panics
    /// When they do not come.
    pub fn wait_for_connections(&self, count: usize) {
        wait::until(&format!("{count} connections at the provider"), || {
            (self.connections() >= count).then_some(())
        });
    }
}

fn any_port() -> std::net::TcpListener {
    std::net::TcpListener::bind(ANY_PORT).expect("a loopback port is free")
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("url", &self.url("/"))
            .field("requests", &self.count())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn new() -> Self {
        let script = Script {
            door: Door::Open,
            queued: VecDeque::new(),
            usual: Box::new(|_| Answer::token(3600)),
            requests: Vec::new(),
        };
        Self { script: Mutex::new(script), connections: AtomicUsize::new(0), sent: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_request(&self, request: Recorded) -> Answer {
        let mut script = self.lock();
        let answer = match script.queued.pop_front() {
            Some(answer) => answer,
            None => (script.usual)(&request),
        };
        script.requests.push(request);
        answer
    }
}

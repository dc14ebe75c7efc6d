//! A provider that gets into trouble and out of it again.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};
use serde_json::json;
use tokend_tests::provider::Door;
use tokend_tests::{Answer, Authority, Flaw, Provider, Shown};

/// What a provider gets into.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// It answers every request so.
    Answers(Answer),
    /// It meets every connection so.
    Door(Door),
    /// The same where it speaks TLS.
    TlsDoor(Door),
    /// It shows a certificate with a flaw.
    Certificate(Flaw),
    /// It shows a good certificate of an authority that is not trusted.
    Stranger,
    /// Nobody listens at its port.
    Gone,
    /// So many connections wait at its port that the kernel answers no further one.
    Deaf,
}

/// Who signs certificates.
#[derive(Debug, Default)]
pub(super) struct Authorities {
    pub(super) trusted: Authority,
    stranger: Authority,
}

/// One such provider.
pub(super) struct Server {
    /// The provider, while it listens.
    provider: Option<Provider>,
    /// How many requests there were before it was started again.
    earlier: usize,
    endpoint: String,
    trouble: Trouble,
    authorities: Arc<Authorities>,
    /// The certificate, where it speaks TLS.
    shown: Option<Shown>,
    /// Its port, where that is what gets into trouble. It stays its own whether it listens or not.
    port: Option<TcpListener>,
    /// The connections that wait at the port.
    waiting: Vec<TcpStream>,
}

impl Server {
    /// Starts one that is well.
    pub(super) fn start(trouble: &Trouble, authorities: &Arc<Authorities>) -> Self {
        let shown = trouble.needs_tls().then(|| Shown::new(&authorities.trusted, Flaw::None));
        let port = matches!(trouble, Trouble::Gone | Trouble::Deaf).then(own_port);
        let provider = match (&shown, &port) {
            (Some(shown), _) => Provider::start_tls(shown.server()),
            (None, Some(port)) => Provider::start_on(port.try_clone().unwrap()),
            (None, None) => Provider::start(),
        };
        provider.answer_with(|_| good_answer());
        Self {
            endpoint: provider.token_endpoint(),
            provider: Some(provider),
            earlier: 0,
            trouble: trouble.clone(),
            authorities: Arc::clone(authorities),
            shown,
            port,
            waiting: Vec::new(),
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// How many requests it has taken.
    pub(super) fn count(&self) -> usize {
        self.earlier + self.provider.as_ref().map_or(0, Provider::count)
    }

    /// Gets into its trouble.
    pub(super) fn begin(&mut self) {
        match &self.trouble {
            Trouble::Answers(answer) => self.provider().always(answer.clone()),
            Trouble::Door(door) | Trouble::TlsDoor(door) => self.provider().set_door(*door),
            Trouble::Certificate(flaw) => self.show(&self.authorities.trusted, *flaw),
            Trouble::Stranger => self.show(&self.authorities.stranger, Flaw::None),
            Trouble::Gone => self.close(),
            Trouble::Deaf => {
                self.close();
                self.waiting = fill(self.port());
            }
        }
    }

    /// Gets out of it.
    pub(super) fn end(&mut self) {
        match &self.trouble {
            Trouble::Answers(_) => self.provider().answer_with(|_| good_answer()),
            Trouble::Door(_) | Trouble::TlsDoor(_) => self.provider().set_door(Door::Open),
            Trouble::Certificate(_) | Trouble::Stranger => self.show(&self.authorities.trusted, Flaw::None),
            Trouble::Gone | Trouble::Deaf => self.open(),
        }
    }

    fn show(&self, authority: &Authority, flaw: Flaw) {
        self.shown.as_ref().unwrap().replace(authority, flaw);
    }

    /// Stops listening and keeps the port.
    fn close(&mut self) {
        self.earlier = self.count();
        self.provider = None;
        shutdown(self.port().as_raw_fd(), Shutdown::Read).unwrap();
    }

    fn open(&mut self) {
        self.waiting.clear();
        listen(self.port(), Backlog::new(64).unwrap()).unwrap();
        let provider = Provider::start_on(self.port().try_clone().unwrap());
        provider.answer_with(|_| good_answer());
        self.provider = Some(provider);
    }

    fn provider(&self) -> &Provider {
        self.provider.as_ref().unwrap()
    }

    fn port(&self) -> &TcpListener {
        self.port.as_ref().unwrap()
    }
}

impl Trouble {
    pub(super) fn needs_tls(&self) -> bool {
        matches!(self, Self::TlsDoor(_) | Self::Certificate(_) | Self::Stranger)
    }
}

/// A new token of an hour. The connection is closed after it, so that the next request needs another one.
///
/// It is not registered as a secret: nothing is written here that could be searched, and some hundred of them
/// would be searched for in what all other tests write.
pub(super) fn good_answer() -> Answer {
    Answer::json(200, &good_reply()).with_header("Connection", "close")
}

/// The reply with a new token of an hour.
pub(super) fn good_reply() -> serde_json::Value {
    let token = format!("{:032x}", fastrand::u128(..));
    json!({ "access_token": token, "token_type": "Bearer", "expires_in": 3600 })
}

/// A socket whose port was chosen rather than given, which the kernel lets a socket keep that does not listen.
fn own_port() -> TcpListener {
    let attempt = |_| {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        TcpListener::bind(free).ok()
    };
    (0..100).find_map(attempt).expect("a loopback port stays free for a moment")
}

/// Listens with the shortest of queues, and fills it.
fn fill(port: &TcpListener) -> Vec<TcpStream> {
    listen(port, Backlog::new(0).unwrap()).unwrap();
    let address = port.local_addr().unwrap();
    let attempt = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
    let waiting: Vec<TcpStream> = (0..64).map_while(|_| attempt().ok()).collect();
    assert!(waiting.len() < 64, "the queue does not fill");
    waiting
}

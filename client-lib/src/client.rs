//! The client for programs on tokio.

mod connection;
mod incoming;
mod watch;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{
    ExplainedReply, Fingerprint, HeadersReply, ListEntry, RefreshedReply, RejectedReply, Reply, Request,
    Subject, TokenName, TokenReply, Variant, VersionReply,
};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time;

use crate::Error;
use crate::deadline::Deadline;
use crate::failure::{Failure, RETURN_WAITS, may_return, not_reachable, silent};
use crate::options::{Options, Terms};
use crate::reply::{self, Pages, Status};
use crate::request::{self, CallerHeaders};
use connection::Connection;
pub use watch::Watch;

/// How soon a full queue of new connections is tried again.
const QUEUE_WAIT: Duration = Duration::from_millis(20);

/// An async client.
///
/// All calls share one connection, on which many are in flight together; none waits for another. Cloning is
/// cheap, and clones share the connection. Nothing is opened before the first call. A call that is dropped
/// before its end leaves nothing behind. The calls need a tokio runtime with I/O and time enabled; where a
/// client outlives the runtime, its next call opens a new connection on the next one.
///
/// ```no_run
/// use tokend_client::{Client, Options, TokenName};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::new(Options::from_env());
/// let (psb, bnp): (TokenName, TokenName) = ("psb".parse()?, "bnp-aisp".parse()?);
/// let (psb, bnp) = tokio::join!(client.get(&psb), client.get(&bnp));
/// # let _ = (psb?, bnp?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    terms: Terms,
}

/// What clones of a client have in common.
struct Shared {
    socket: PathBuf,
    /// Locked while connecting, so that calls that begin together make one connection.
    slot: Mutex<Slot>,
}

/// The place of the one connection.
enum Slot {
    /// None was made, or the last attempt failed.
    Empty,
    /// There is one; whether it still lives is seen when it is used.
    Open(Arc<Connection>),
    /// An established one died, so the daemon may be back in a moment.
    Lost,
}

impl Client {
    /// A client for the daemon that the options name.
    pub fn new(options: Options) -> Self {
        let Options { socket, terms } = options;
        Self { shared: Arc::new(Shared { socket, slot: Mutex::new(Slot::Empty) }), terms }
    }

    /// The same client with another deadline (see [`Options::deadline`]).
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), terms: Terms { deadline, ..self.terms.clone() } }
    }

    /// The same client with another minimal lifetime (see [`Options::min_ttl`]).
    #[must_use]
    pub fn with_min_ttl(&self, min_ttl: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), terms: Terms { min_ttl, ..self.terms.clone() } }
    }

    /// The same client for tokens in another form (see [`Options::variant`]).
    #[must_use]
    pub fn with_variant(&self, variant: Variant) -> Self {
        Self { shared: Arc::clone(&self.shared), terms: Terms { variant, ..self.terms.clone() } }
    }

    /// The socket at which the daemon is looked for.
    pub fn socket(&self) -> &Path {
        &self.shared.socket
    }

    /// A valid access token.
    pub async fn get(&self, name: &TokenName) -> Result<TokenReply, Error> {
        self.call(request::token(name, &self.terms)).await.and_then(reply::token)
    }

    /// All headers of an API call, `Authorization` first.
    pub async fn headers(&self, name: &TokenName, caller: &CallerHeaders) -> Result<HeadersReply, Error> {
        self.call(request::headers(name, &self.terms, caller)).await.and_then(reply::headers)
    }

    /// The tokens that the caller may have.
    pub async fn list(&self) -> Result<Vec<ListEntry>, Error> {
        let deadline = Deadline::after(self.terms.deadline);
        let mut pages = Pages::new();
        while pages.more() {
            let page = self.call_until(deadline, request::list(pages.after())).await.and_then(reply::list)?;
            pages.add(page.tokens, page.more)?;
        }
        Ok(pages.into_items())
    }

    /// The condition of the daemon and of the tokens that the caller may see.
    pub async fn status(&self) -> Result<Status, Error> {
        let deadline = Deadline::after(self.terms.deadline);
        let mut pages = Pages::new();
        loop {
            let page =
                self.call_until(deadline, request::status(pages.after())).await.and_then(reply::status)?;
            pages.add(page.tokens, page.more)?;
            if !pages.more() {
                return Ok(Status { daemon: page.daemon, tokens: pages.into_items() });
            }
        }
    }

    /// Makes the daemon ask the provider now, whatever its schedule says. For operators.
    pub async fn refresh(&self, name: &TokenName) -> Result<RefreshedReply, Error> {
        self.call(request::refresh(name, &self.terms)).await.and_then(reply::refresh)
    }

    /// Reports that an API refused the token with this fingerprint.
    pub async fn reject(&self, name: &TokenName, fingerprint: Fingerprint) -> Result<RejectedReply, Error> {
        self.call(request::reject(name, &self.terms, fingerprint)).await.and_then(reply::reject)
    }

    /// The conditions of these tokens, now and at every change, over a connection of their own.
    ///
    /// The deadline is that of subscribing; after it, [`Watch::next`] waits for changes as long as it takes.
    pub async fn watch(&self, names: &[TokenName]) -> Result<Watch, Error> {
        Watch::subscribe(self.shared.socket.clone(), names, self.terms.deadline).await
    }

    /// Why somebody may have the token, or may not, in the form that the client asks for. A caller that may have it
    /// can ask about itself, an operator about everybody.
    pub async fn explain(&self, name: &TokenName, subject: &Subject) -> Result<ExplainedReply, Error> {
        self.call(request::explain(name, &self.terms, subject)).await.and_then(reply::explain)
    }

    /// Which daemon this is.
    pub async fn version(&self) -> Result<VersionReply, Error> {
        self.call(request::version).await.and_then(reply::version)
    }

    async fn call(&self, ask: impl Fn(u32) -> Request) -> Result<Reply, Error> {
        self.call_until(Deadline::after(self.terms.deadline), ask).await
    }

    async fn call_until(&self, deadline: Deadline, ask: impl Fn(u32) -> Request) -> Result<Reply, Error> {
        let left = deadline.left().ok_or_else(silent)?;
        time::timeout(left, self.shared.ask(deadline, ask)).await.unwrap_or_else(|_| Err(silent()))
    }
}

impl Shared {
    /// Asks, and asks the daemon's successor once more where the daemon has gone away.
    async fn ask(&self, deadline: Deadline, ask: impl Fn(u32) -> Request) -> Result<Reply, Error> {
        let first = self.connection().await?;
        match first.exchange(ask(deadline.for_daemon())).await {
            Err(Failure::Gone(_)) => self.lose(&first).await,
            answered => return answered.map_err(Failure::into_error),
        }
        let second = self.connection().await?;
        second.exchange(ask(deadline.for_daemon())).await.map_err(Failure::into_error)
    }

    /// The open connection, or a new one.
    async fn connection(&self) -> Result<Arc<Connection>, Error> {
        let mut slot = self.slot.lock().await;
        let waits: &[Duration] = match &*slot {
            Slot::Open(connection) if connection.is_usable() => return Ok(Arc::clone(connection)),
            Slot::Empty => &[],
            Slot::Open(_) | Slot::Lost => &RETURN_WAITS,
        };
        // Where the call ends while it connects, the next one is as patient as this was.
        let connected = connect(&self.socket, waits).await;
        *slot = Slot::Empty;
        let connection = Arc::new(Connection::new(connected?, self.socket.clone()));
        *slot = Slot::Open(Arc::clone(&connection));
        Ok(connection)
    }

    /// Forgets a connection that proved dead, unless another call has done so already.
    async fn lose(&self, dead: &Arc<Connection>) {
        let mut slot = self.slot.lock().await;
        if matches!(&*slot, Slot::Open(held) if Arc::ptr_eq(held, dead)) {
            *slot = Slot::Lost;
        }
    }
}

/// Connects. After each of the waits, where there is no daemon, it is looked for again. A full queue of new
/// connections is tried until the caller gives up.
async fn connect(socket: &Path, waits: &[Duration]) -> Result<UnixStream, Error> {
    let mut waits = waits.iter();
    loop {
        let error = match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let wait = match error.kind() {
            io::ErrorKind::WouldBlock => Some(&QUEUE_WAIT),
            _ if may_return(&error) => waits.next(),
            _ => None,
        };
        let Some(wait) = wait else { return Err(not_reachable(socket, error)) };
        time::sleep(*wait).await;
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("socket", &self.socket())
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

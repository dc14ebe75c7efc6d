//! The client for programs on tokio.

#[cfg(feature = "reqwest")]
mod api_client;
mod connection;
mod incoming;
#[cfg(feature = "tower")]
mod layer;
mod source;
mod watch;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokend_protocol::{
    ExplainedReply, Fingerprint, HeadersReply, ListEntry, RefreshedReply, RejectedReply, Reply, Request,
    Subject, TokenName, TokenReply, TokenStatus, Variant, VersionReply,
};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time;

use crate::Error;
use crate::deadline::Deadline;
use crate::failure::{Failure, RETURN_WAITS, may_return, not_reachable, silent};
use crate::options::Options;
use crate::reply::{self, Pages, Status};
use crate::request::{self, CallerHeaders, TokenCall};
use crate::source::SourceToken;
#[cfg(feature = "reqwest")]
pub use api_client::{ApiClient, ApiError};
use connection::Connection;
#[cfg(feature = "tower")]
pub use layer::{TokenLayer, WithToken};
pub use source::TokenSource;
pub use watch::Watch;

/// The wait before another attempt if the socket's queue is full.
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
    deadline: Duration,
    min_ttl: Duration,
}

/// The part that all clones of a client share.
struct Shared {
    socket: PathBuf,
    /// Locked while connecting, so that calls that begin together make one connection.
    slot: Mutex<Slot>,
    sources: source::Sources,
}

/// The place of the one connection.
enum Slot {
    /// None was made, or the last attempt failed.
    Empty,
    /// There is one; whether it still lives is seen when it is used.
    Open(Arc<Connection>),
    /// An established one broke, so the daemon may be restarting.
    Lost,
}

impl Client {
    /// A client for the daemon that the options name.
    pub fn new(options: Options) -> Self {
        let Options { socket, deadline, min_ttl } = options;
        let (slot, sources) = (Mutex::new(Slot::Empty), source::Sources::default());
        Self { shared: Arc::new(Shared { socket, slot, sources }), deadline, min_ttl }
    }

    /// The client of [`Options::from_env`].
    pub fn from_env() -> Self {
        Self::new(Options::from_env())
    }

    /// A token by its name, for calls about it.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if no token can have this name.
    pub fn token(&self, name: &str) -> Result<Token, Error> {
        Ok(self.variant(&name.parse()?, Variant::default()))
    }

    /// The same client with another deadline (see [`Options::deadline`]).
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The same client with another minimal lifetime (see [`Options::min_ttl`]).
    #[must_use]
    pub fn with_min_ttl(&self, min_ttl: Duration) -> Self {
        Self { min_ttl, ..self.clone() }
    }

    /// Calls about another variant of a token than the configured one: fewer scopes, certain resources or audiences,
    /// within what the daemon's configuration permits.
    ///
    /// A list and a status have no variant, and [`Client::watch`] names none.
    pub fn variant(&self, name: &TokenName, variant: Variant) -> Token {
        Token { client: self.clone(), name: name.clone(), variant }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.shared.socket
    }

    /// Returns a valid access token.
    pub async fn get(&self, name: &TokenName) -> Result<TokenReply, Error> {
        self.variant(name, Variant::default()).get().await
    }

    /// Returns all headers of an API call, `Authorization` first.
    pub async fn headers(&self, name: &TokenName, caller: &CallerHeaders) -> Result<HeadersReply, Error> {
        self.variant(name, Variant::default()).headers(caller).await
    }

    /// Makes the daemon ask the provider now, whatever the schedule says. For operators.
    pub async fn refresh(&self, name: &TokenName) -> Result<RefreshedReply, Error> {
        self.variant(name, Variant::default()).refresh().await
    }

    /// Reports that an API refused the token with this fingerprint.
    pub async fn reject(&self, name: &TokenName, fingerprint: Fingerprint) -> Result<RejectedReply, Error> {
        self.variant(name, Variant::default()).reject(fingerprint).await
    }

    /// Explains why the subject may read the token or may not. A caller that may read it can ask about itself, and an
    /// operator about everybody.
    pub async fn explain(&self, name: &TokenName, subject: &Subject) -> Result<ExplainedReply, Error> {
        self.variant(name, Variant::default()).explain(subject).await
    }

    /// Lists the tokens that the caller may read.
    pub async fn list(&self) -> Result<Vec<ListEntry>, Error> {
        let deadline = Deadline::after(self.deadline);
        let mut pages = Pages::new();
        while pages.more() {
            let page = self.call_until(deadline, request::list(pages.after())).await.and_then(reply::list)?;
            pages.add(page.tokens, page.more)?;
        }
        Ok(pages.into_items())
    }

    /// Returns the status of the daemon and of the tokens that the caller may see.
    pub async fn status(&self) -> Result<Status, Error> {
        let deadline = Deadline::after(self.deadline);
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

    /// Returns the detailed status of one token, with its variants.
    pub async fn status_of(&self, name: &TokenName) -> Result<TokenStatus, Error> {
        reply::status_of(self.call(request::status_of(name)).await?)
    }

    /// Watches the conditions of these tokens, now and at every change, over a connection of its own.
    ///
    /// The deadline limits the subscription. After that, [`Watch::next`] waits for changes without a limit.
    pub async fn watch(&self, names: &[TokenName]) -> Result<Watch, Error> {
        Watch::subscribe(self.shared.socket.clone(), names, self.deadline).await
    }

    /// Keeps the token in this process, for many reads. Call it on a tokio runtime.
    pub fn source(&self, name: &TokenName) -> TokenSource {
        self.variant(name, Variant::default()).source()
    }

    /// Returns the daemon's version.
    pub async fn version(&self) -> Result<VersionReply, Error> {
        self.call(request::version).await.and_then(reply::version)
    }

    async fn call(&self, ask: impl Fn(u32) -> Request) -> Result<Reply, Error> {
        self.call_until(Deadline::after(self.deadline), ask).await
    }

    async fn call_until(&self, deadline: Deadline, ask: impl Fn(u32) -> Request) -> Result<Reply, Error> {
        let left = deadline.left().ok_or_else(silent)?;
        time::timeout(left, self.shared.ask(deadline, ask)).await.unwrap_or_else(|_| Err(silent()))
    }
}

impl Shared {
    /// Sends a request, and sends it once more to the restarted daemon if the connection breaks.
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
        // The slot keeps its state while this call connects: if the call is dropped, the next one waits as long.
        let connected = connect(&self.socket, waits).await;
        *slot = Slot::Empty;
        let connection = Arc::new(Connection::new(connected?, self.socket.clone()));
        *slot = Slot::Open(Arc::clone(&connection));
        Ok(connection)
    }

    /// Drops a broken connection, unless another call has replaced it already.
    async fn lose(&self, dead: &Arc<Connection>) {
        let mut slot = self.slot.lock().await;
        if matches!(&*slot, Slot::Open(held) if Arc::ptr_eq(held, dead)) {
            *slot = Slot::Lost;
        }
    }
}

/// Connects. Without a daemon, it tries again after each of the waits. If the socket's queue is full, it tries until
/// the call is dropped.
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

/// A token by its name, with the variant and the lifetime that its calls ask for. Cloning is cheap.
///
/// ```no_run
/// use std::time::Duration;
/// use tokend_client::Client;
///
/// # async fn example() -> Result<(), tokend_client::Error> {
/// let token = Client::from_env().token("psb")?.with_min_ttl(Duration::from_secs(60));
/// let authorization: http::HeaderValue = token.header_value().await?;
/// # let _ = authorization;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Token {
    client: Client,
    name: TokenName,
    variant: Variant,
}

impl Token {
    /// The name.
    pub fn name(&self) -> &TokenName {
        &self.name
    }

    /// Another variant of the token (see [`Client::variant`]).
    #[must_use]
    pub fn with_variant(&self, variant: Variant) -> Self {
        Self { variant, ..self.clone() }
    }

    /// The token with another minimal lifetime (see [`Options::min_ttl`]).
    #[must_use]
    pub fn with_min_ttl(&self, min_ttl: Duration) -> Self {
        Self { client: self.client.with_min_ttl(min_ttl), ..self.clone() }
    }

    /// Returns a valid access token.
    pub async fn get(&self) -> Result<TokenReply, Error> {
        self.client.call(request::token(self.token_call())).await.and_then(reply::token)
    }

    /// Returns the value of the `Authorization` header. It is marked as sensitive, and wiped from memory with its last clone.
    pub async fn header_value(&self) -> Result<HeaderValue, Error> {
        self.get().await.and_then(SourceToken::new).map(|token| token.header_value)
    }

    /// Returns all headers of an API call, `Authorization` first.
    pub async fn headers(&self, caller: &CallerHeaders) -> Result<HeadersReply, Error> {
        self.client.call(request::headers(self.token_call(), caller)).await.and_then(reply::headers)
    }

    /// Makes the daemon ask the provider now, whatever the schedule says. For operators.
    pub async fn refresh(&self) -> Result<RefreshedReply, Error> {
        self.client.call(request::refresh(self.token_call())).await.and_then(reply::refresh)
    }

    /// Reports that an API refused the token with this fingerprint.
    pub async fn reject(&self, fingerprint: Fingerprint) -> Result<RejectedReply, Error> {
        self.client.call(request::reject(self.token_call(), fingerprint)).await.and_then(reply::reject)
    }

    /// Explains why the subject may read the token or may not.
    pub async fn explain(&self, subject: &Subject) -> Result<ExplainedReply, Error> {
        self.client.call(request::explain(self.token_call(), subject)).await.and_then(reply::explain)
    }

    /// Keeps the token in this process, for many reads. Call it on a tokio runtime.
    pub fn source(&self) -> TokenSource {
        TokenSource::new(&self.client, &self.name, self.variant.clone())
    }

    fn token_call(&self) -> TokenCall<'_> {
        TokenCall { name: &self.name, variant: &self.variant, min_ttl: self.client.min_ttl }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("socket", &self.socket())
            .field("deadline", &self.deadline)
            .field("min_ttl", &self.min_ttl)
            .finish_non_exhaustive()
    }
}

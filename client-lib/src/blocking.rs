//! The client for programs without an async runtime.

mod connect;
mod connection;
mod source;
mod turn;
mod watch;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokend_protocol::{
    ExplainedReply, Fingerprint, HeadersReply, ListEntry, RefreshedReply, RejectedReply, Reply, Request,
    Subject, TokenName, TokenReply, TokenStatus, Variant, VersionReply,
};

use crate::Error;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;
use crate::reply::{self, Pages, Status};
use crate::request::{self, CallerHeaders, TokenCall};
use crate::source::SourceToken;
use connect::Connector;
use connection::Connection;
pub use source::TokenSource;
pub use watch::Watch;

/// How many connections are kept open between calls. More calls at once open more, and close them again.
const IDLE_MAX: usize = 8;

/// A client that blocks its caller.
///
/// Calls from several threads do not wait for each other: each call takes an idle connection or opens one,
/// and leaves it for the next. Cloning is cheap, and clones share the connections. Nothing is opened before
/// the first call.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    deadline: Duration,
    min_ttl: Duration,
}

/// The part that all clones of a client share.
pub(super) struct Shared {
    connector: Connector,
    idle: Mutex<Vec<Connection>>,
    sources: source::Sources,
}

impl Client {
    /// A client for the daemon that the options name.
    pub fn new(options: Options) -> Self {
        let Options { socket, deadline, min_ttl } = options;
        let connector = Connector::new(socket);
        let shared = Shared { connector, idle: Mutex::default(), sources: source::Sources::default() };
        Self { shared: Arc::new(shared), deadline, min_ttl }
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
        self.shared.connector.socket()
    }

    /// Returns a valid access token.
    pub fn get(&self, name: &TokenName) -> Result<TokenReply, Error> {
        self.variant(name, Variant::default()).get()
    }

    /// Returns all headers of an API call, `Authorization` first.
    pub fn headers(&self, name: &TokenName, caller: &CallerHeaders) -> Result<HeadersReply, Error> {
        self.variant(name, Variant::default()).headers(caller)
    }

    /// Makes the daemon ask the provider now, whatever the schedule says. For operators.
    pub fn refresh(&self, name: &TokenName) -> Result<RefreshedReply, Error> {
        self.variant(name, Variant::default()).refresh()
    }

    /// Reports that an API refused the token with this fingerprint.
    pub fn reject(&self, name: &TokenName, fingerprint: Fingerprint) -> Result<RejectedReply, Error> {
        self.variant(name, Variant::default()).reject(fingerprint)
    }

    /// Explains why the subject may read the token or may not. A caller that may read it can ask about itself, and an
    /// operator about everybody.
    pub fn explain(&self, name: &TokenName, subject: &Subject) -> Result<ExplainedReply, Error> {
        self.variant(name, Variant::default()).explain(subject)
    }

    /// Lists the tokens that the caller may read.
    pub fn list(&self) -> Result<Vec<ListEntry>, Error> {
        let deadline = Deadline::after(self.deadline);
        let mut pages = Pages::new();
        while pages.more() {
            let page = self.call_until(deadline, request::list(pages.after())).and_then(reply::list)?;
            pages.add(page.tokens, page.more)?;
        }
        Ok(pages.into_items())
    }

    /// Returns the status of the daemon and of the tokens that the caller may see.
    pub fn status(&self) -> Result<Status, Error> {
        let deadline = Deadline::after(self.deadline);
        let mut pages = Pages::new();
        loop {
            let page = self.call_until(deadline, request::status(pages.after())).and_then(reply::status)?;
            pages.add(page.tokens, page.more)?;
            if !pages.more() {
                return Ok(Status { daemon: page.daemon, tokens: pages.into_items() });
            }
        }
    }

    /// Returns the detailed status of one token, with its variants.
    pub fn status_of(&self, name: &TokenName) -> Result<TokenStatus, Error> {
        reply::status_of(self.call(request::status_of(name))?)
    }

    /// Watches the conditions of these tokens, now and at every change, over a connection of its own.
    ///
    /// The deadline limits the subscription. After that, the iterator waits for changes without a limit, and
    /// [`Watch::next_within`] with one.
    pub fn watch(&self, names: &[TokenName]) -> Result<Watch, Error> {
        Watch::subscribe(Arc::clone(&self.shared), names, self.deadline)
    }

    /// Keeps the token in this process, for many reads.
    pub fn source(&self, name: &TokenName) -> TokenSource {
        self.variant(name, Variant::default()).source()
    }

    /// Returns the daemon's version.
    pub fn version(&self) -> Result<VersionReply, Error> {
        self.call(request::version).and_then(reply::version)
    }

    fn call(&self, ask: impl Fn(u32) -> Request) -> Result<Reply, Error> {
        self.call_until(Deadline::after(self.deadline), ask)
    }

    /// Sends a request, and sends it once more to the restarted daemon if the connection breaks.
    fn call_until(&self, deadline: Deadline, ask: impl Fn(u32) -> Request) -> Result<Reply, Error> {
        let first = match self.shared.take_idle() {
            Some(connection) => connection,
            None => self.shared.connector.connect(deadline)?,
        };
        match self.shared.exchange(first, &ask, deadline) {
            Err(Failure::Gone(_)) => self.shared.expect_return(),
            answered => return answered.map_err(Failure::into_error),
        }
        let second = self.shared.connector.connect(deadline)?;
        self.shared.exchange(second, &ask, deadline).map_err(Failure::into_error)
    }
}

/// A token by its name, with the variant and the lifetime that its calls ask for. Cloning is cheap.
///
/// ```no_run
/// use std::time::Duration;
/// use tokend_client::blocking::Client;
///
/// let token = Client::from_env().token("psb")?.with_min_ttl(Duration::from_secs(60));
/// let authorization: http::HeaderValue = token.header_value()?;
/// # let _ = authorization;
/// # Ok::<(), tokend_client::Error>(())
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
    pub fn get(&self) -> Result<TokenReply, Error> {
        self.client.call(request::token(self.token_call())).and_then(reply::token)
    }

    /// Returns the value of the `Authorization` header. It is marked as sensitive, and wiped from memory with its last clone.
    pub fn header_value(&self) -> Result<HeaderValue, Error> {
        self.get().and_then(SourceToken::new).map(|token| token.header_value)
    }

    /// Returns all headers of an API call, `Authorization` first.
    pub fn headers(&self, caller: &CallerHeaders) -> Result<HeadersReply, Error> {
        self.client.call(request::headers(self.token_call(), caller)).and_then(reply::headers)
    }

    /// Makes the daemon ask the provider now, whatever the schedule says. For operators.
    pub fn refresh(&self) -> Result<RefreshedReply, Error> {
        self.client.call(request::refresh(self.token_call())).and_then(reply::refresh)
    }

    /// Reports that an API refused the token with this fingerprint.
    pub fn reject(&self, fingerprint: Fingerprint) -> Result<RejectedReply, Error> {
        self.client.call(request::reject(self.token_call(), fingerprint)).and_then(reply::reject)
    }

    /// Explains why the subject may read the token or may not.
    pub fn explain(&self, subject: &Subject) -> Result<ExplainedReply, Error> {
        self.client.call(request::explain(self.token_call(), subject)).and_then(reply::explain)
    }

    /// Keeps the token in this process, for many reads.
    pub fn source(&self) -> TokenSource {
        TokenSource::new(&self.client, &self.name, self.variant.clone())
    }

    fn token_call(&self) -> TokenCall<'_> {
        TokenCall { name: &self.name, variant: &self.variant, min_ttl: self.client.min_ttl }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("blocking::Client")
            .field("socket", &self.socket())
            .field("deadline", &self.deadline)
            .field("min_ttl", &self.min_ttl)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Sends a request and receives its reply. After an error the connection is not used again.
    fn exchange(
        &self,
        mut connection: Connection,
        ask: impl Fn(u32) -> Request,
        deadline: Deadline,
    ) -> Result<Reply, Failure> {
        connection.send(ask(deadline.for_daemon()), deadline)?;
        let reply = connection.receive(deadline)?;
        self.keep(connection);
        Ok(reply)
    }

    /// Drops all idle connections, because the daemon has ended, and lets the next one wait for its restart.
    fn expect_return(&self) {
        self.idle().clear();
        self.connector.expect_return();
    }

    fn take_idle(&self) -> Option<Connection> {
        self.idle().pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

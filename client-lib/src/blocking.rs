//! The client for programs without a runtime: the standard library alone.

mod connect;
mod connection;
mod watch;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokend_protocol::{
    ExplainedReply, Fingerprint, HeadersReply, ListEntry, RefreshedReply, RejectedReply, Reply, Request,
    Subject, TokenName, TokenReply, Variant, VersionReply,
};

use crate::Error;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::{Options, Terms};
use crate::reply::{self, Pages, Status};
use crate::request::{self, CallerHeaders};
use connect::Dialler;
use connection::Connection;
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
    terms: Terms,
}

/// What clones of a client have in common.
pub(super) struct Shared {
    dialler: Dialler,
    idle: Mutex<Vec<Connection>>,
}

impl Client {
    /// A client for the daemon that the options name.
    pub fn new(options: Options) -> Self {
        let Options { socket, terms } = options;
        Self { shared: Arc::new(Shared { dialler: Dialler::new(socket), idle: Mutex::default() }), terms }
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
        self.shared.dialler.socket()
    }

    /// A valid access token.
    pub fn get(&self, name: &TokenName) -> Result<TokenReply, Error> {
        self.call(request::token(name, &self.terms)).and_then(reply::token)
    }

    /// All headers of an API call, `Authorization` first.
    pub fn headers(&self, name: &TokenName, caller: &CallerHeaders) -> Result<HeadersReply, Error> {
        self.call(request::headers(name, &self.terms, caller)).and_then(reply::headers)
    }

    /// The tokens that the caller may have.
    pub fn list(&self) -> Result<Vec<ListEntry>, Error> {
        let deadline = Deadline::after(self.terms.deadline);
        let mut pages = Pages::new();
        while pages.more() {
            let page = self.call_until(deadline, request::list(pages.after())).and_then(reply::list)?;
            pages.add(page.tokens, page.more)?;
        }
        Ok(pages.into_items())
    }

    /// The condition of the daemon and of the tokens that the caller may see.
    pub fn status(&self) -> Result<Status, Error> {
        let deadline = Deadline::after(self.terms.deadline);
        let mut pages = Pages::new();
        loop {
            let page = self.call_until(deadline, request::status(pages.after())).and_then(reply::status)?;
            pages.add(page.tokens, page.more)?;
            if !pages.more() {
                return Ok(Status { daemon: page.daemon, tokens: pages.into_items() });
            }
        }
    }

    /// Makes the daemon ask the provider now, whatever its schedule says. For operators.
    pub fn refresh(&self, name: &TokenName) -> Result<RefreshedReply, Error> {
        self.call(request::refresh(name, &self.terms)).and_then(reply::refresh)
    }

    /// Reports that an API refused the token with this fingerprint.
    pub fn reject(&self, name: &TokenName, fingerprint: Fingerprint) -> Result<RejectedReply, Error> {
        self.call(request::reject(name, &self.terms, fingerprint)).and_then(reply::reject)
    }

    /// The conditions of these tokens, now and at every change, over a connection of their own.
    ///
    /// The deadline is that of subscribing; after it, the iterator waits for changes as long as it takes, and
    /// [`Watch::next_within`] as long as it is told.
    pub fn watch(&self, names: &[TokenName]) -> Result<Watch, Error> {
        Watch::subscribe(Arc::clone(&self.shared), names, self.terms.deadline)
    }

    /// Why somebody may have the token, or may not, in the form that the client asks for. A caller that may have it
    /// can ask about itself, an operator about everybody.
    pub fn explain(&self, name: &TokenName, subject: &Subject) -> Result<ExplainedReply, Error> {
        self.call(request::explain(name, &self.terms, subject)).and_then(reply::explain)
    }

    /// Which daemon this is.
    pub fn version(&self) -> Result<VersionReply, Error> {
        self.call(request::version).and_then(reply::version)
    }

    fn call(&self, ask: impl Fn(u32) -> Request) -> Result<Reply, Error> {
        self.call_until(Deadline::after(self.terms.deadline), ask)
    }

    /// Asks, and asks the daemon's successor once more where the daemon has gone away.
    fn call_until(&self, deadline: Deadline, ask: impl Fn(u32) -> Request) -> Result<Reply, Error> {
        let first = match self.shared.take_idle() {
            Some(connection) => connection,
            None => self.shared.dialler.connect(deadline)?,
        };
        match self.shared.exchange(first, &ask, deadline) {
            Err(Failure::Gone(_)) => self.shared.expect_return(),
            answered => return answered.map_err(Failure::into_error),
        }
        let second = self.shared.dialler.connect(deadline)?;
        self.shared.exchange(second, &ask, deadline).map_err(Failure::into_error)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("blocking::Client")
            .field("socket", &self.socket())
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// One request and its reply. The connection is kept only if it is sure to be in order.
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

    /// The daemon has gone: so have all idle connections, and its socket may be missing for a moment.
    fn expect_return(&self) {
        self.idle().clear();
        self.dialler.expect_return();
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

//! The async source of a token, and the one task that keeps the tokens of all sources of a client.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokend_protocol::{Fingerprint, RejectOutcome, TokenName, Variant, WatchedToken};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time;

use super::incoming::Incoming;
use super::{Client, Token, connect};
use crate::deadline::Deadline;
use crate::failure::{Failure, silent};
use crate::source::{
    BackOff, HeaderCache, Rejection, Rejections, SourceHeaders, SourceToken, Subscription, Watches,
};
use crate::{CallerHeaders, Error};

/// How long connecting, or sending, may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A token that is kept in this process. Reading it costs no system call but the clock's.
///
/// The daemon sends each new token as soon as it has one. While the daemon is away, the last token stays in use until it
/// expires, and the source connects again by itself. If the daemon refuses the token (after a reload, for example), it is
/// dropped at once.
///
/// All sources of a client share one connection and one task, which ends with the last source. Cloning is cheap, and clones
/// share the token.
///
/// ```no_run
/// use tokend_client::{Client, Options, TokenName};
/// # async fn call_api(_: http::HeaderValue) -> u16 { 401 }
///
/// # async fn example() -> Result<(), tokend_client::Error> {
/// let client = Client::new(Options::from_env());
/// let source = client.source(&"psb".parse().unwrap());
///
/// // For each call of the API:
/// let token = source.token().await?;
/// if call_api(token.header_value.clone()).await == 401
///     && let Some(newer) = source.reject(token.fingerprint()).await?
/// {
///     call_api(newer.header_value.clone()).await;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TokenSource {
    subscription: Arc<Subscription>,
    shared: Arc<Shared>,
    headers: Arc<Headers>,
}

/// The part that all clones of a source share.
struct Shared {
    client: Client,
    subscription: Arc<Subscription>,
    rejections: Rejections,
    /// Locked during a rejection, so that callers with the same token make one request.
    rejection: tokio::sync::Mutex<Option<Rejection>>,
}

/// The headers of a source, and the caller's part of them.
#[derive(Default)]
struct Headers {
    caller: CallerHeaders,
    cache: HeaderCache,
    /// Locked during a request, so that callers make one request.
    request: tokio::sync::Mutex<()>,
}

impl TokenSource {
    pub(super) fn new(client: &Client, name: &TokenName, variant: Variant) -> Self {
        let watched = WatchedToken { name: name.clone(), variant };
        let subscription = Arc::new(Subscription::new(watched, client.min_ttl));
        client.shared.sources.add(&subscription);
        let shared = Shared {
            client: client.clone(),
            subscription: Arc::clone(&subscription),
            rejections: Rejections::default(),
            rejection: tokio::sync::Mutex::default(),
        };
        let source = Self { subscription, shared: Arc::new(shared), headers: Arc::default() };
        source.start();
        source
    }

    /// The same source with the caller's part of [`Self::headers`].
    #[must_use]
    pub fn with_caller_headers(&self, caller: CallerHeaders) -> Self {
        Self { headers: Arc::new(Headers { caller, ..Headers::default() }), ..self.clone() }
    }

    /// Returns the valid token. If there is none, waits for one until the client's deadline, also for a daemon that is not
    /// running. It returns at once if the daemon refuses the token, or if an operator must act.
    ///
    /// If the token does not last for the client's `min_ttl`, it asks the daemon for one that does.
    #[inline]
    pub async fn token(&self) -> Result<Arc<SourceToken>, Error> {
        match self.subscription.held() {
            Some(token) => Ok(token),
            // In a box, so that the usual read is small.
            None => Box::pin(self.later(self.deadline())).await,
        }
    }

    /// Returns the valid token, or the reason why there is none, without waiting.
    #[inline]
    pub fn try_token(&self) -> Result<Arc<SourceToken>, Error> {
        self.subscription.token().inspect_err(|_| self.start())
    }

    /// Waits until the token or the reason why there is none changes. Then [`Self::try_token`] returns the present one.
    ///
    /// `seen` is the result of the last call, or 0 for the first change. A token that expires while the daemon is away is no
    /// change.
    pub async fn changed(&self, seen: u64) -> u64 {
        self.start();
        self.subscription.changed(seen).await
    }

    /// Returns the value of the `Authorization` header, as [`Self::token`] does.
    pub async fn header_value(&self) -> Result<HeaderValue, Error> {
        self.token().await.map(|token| token.header_value.clone())
    }

    /// Returns all headers of an API call, `Authorization` first: those of [`Client::headers`].
    ///
    /// The first call with each new token asks the daemon for them, and reads the secrets in them. Later ones cost no system
    /// call but the clock's. The headers that the configuration leaves to the caller come from
    /// [`Self::with_caller_headers`]; leave out those that differ from call to call, and add them yourself.
    pub async fn headers(&self) -> Result<Arc<SourceHeaders>, Error> {
        let deadline = self.deadline();
        let token = match self.subscription.held() {
            Some(token) => token,
            None => self.later(deadline).await?,
        };
        let fingerprint = token.fingerprint();
        let Headers { caller, cache, request } = &*self.headers;
        if let Some(headers) = cache.with_token(fingerprint) {
            return Ok(headers);
        }
        let Ok(_one) = time::timeout(deadline.remaining(), request.lock()).await else {
            return cache.replace(Err(silent()));
        };
        if let Some(headers) = cache.with_token(fingerprint) {
            return Ok(headers);
        }
        cache.replace(self.variant(deadline).headers(caller).await)
    }

    /// Reports that an API refused the token with this fingerprint. Returns the newer token, or `None` if another token would
    /// not help: the provider returned the same one, or was asked too recently.
    ///
    /// Callers that report the same token at the same time make one request.
    pub async fn reject(&self, refused: Fingerprint) -> Result<Option<Arc<SourceToken>>, Error> {
        let deadline = self.deadline();
        self.headers.cache.reject(refused);
        let began = self.shared.rejections.ended();
        let last = time::timeout(deadline.remaining(), self.shared.rejection.lock()).await;
        let mut last = last.map_err(|_| silent())?;
        if let Some(newer) = self.try_token().ok().filter(|token| token.fingerprint() != refused) {
            return Ok(Some(newer));
        }
        let known = last.as_ref().filter(|last| last.answers(refused, began)).map(|last| last.outcome);
        let outcome = if let Some(outcome) = known {
            outcome
        } else {
            let reply = self.variant(deadline).reject(refused).await?;
            *last = Some(self.shared.rejections.end(refused, reply.outcome));
            reply.outcome
        };
        drop(last);
        match outcome {
            RejectOutcome::Replaced | RejectOutcome::Superseded => {
                self.wait(deadline, |token| token.fingerprint() != refused).await.map(Some)
            }
            RejectOutcome::Unchanged | RejectOutcome::TooSoon => Ok(None),
        }
    }

    /// Waits for a token, or asks for one that lasts longer. The daemon would renew it by itself only later.
    async fn later(&self, deadline: Deadline) -> Result<Arc<SourceToken>, Error> {
        match self.wait(deadline, |_| true).await {
            Err(Error::MinTtlUnreachable { .. }) => {
                self.variant(deadline).get().await.and_then(SourceToken::new).map(Arc::new)
            }
            waited => waited,
        }
    }

    async fn wait(
        &self,
        deadline: Deadline,
        is_wanted: impl Fn(&SourceToken) -> bool,
    ) -> Result<Arc<SourceToken>, Error> {
        self.start();
        self.subscription.wait(deadline, is_wanted).await
    }

    /// Starts the task, if it does not run: the source may be older than the runtime.
    fn start(&self) {
        let client = &self.shared.client.shared;
        client.sources.start(&client.socket);
    }

    /// The token for a call that has the rest of the time.
    fn variant(&self, deadline: Deadline) -> Token {
        let WatchedToken { name, variant } = self.subscription.watched();
        self.shared.client.with_deadline(deadline.remaining()).variant(name, variant.clone())
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.shared.client.deadline)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.client.shared.sources.remove(&self.subscription);
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.subscription.fmt(f)
    }
}

/// The sources of one client, and their task.
#[derive(Clone, Default)]
pub(super) struct Sources(Arc<SourcesState>);

#[derive(Default)]
struct SourcesState {
    list: Mutex<List>,
    changed: Notify,
}

#[derive(Default)]
struct List {
    wanted: Vec<Arc<Subscription>>,
    task: Option<AbortHandle>,
}

impl Sources {
    fn add(&self, subscription: &Arc<Subscription>) {
        self.list().wanted.push(Arc::clone(subscription));
        self.0.changed.notify_one();
    }

    fn remove(&self, subscription: &Arc<Subscription>) {
        let mut list = self.list();
        list.wanted.retain(|other| !Arc::ptr_eq(other, subscription));
        if list.wanted.is_empty()
            && let Some(task) = list.task.take()
        {
            task.abort();
        }
        drop(list);
        self.0.changed.notify_one();
    }

    /// Starts the task on the present runtime, unless it runs or there is no runtime.
    fn start(&self, socket: &Path) {
        let mut list = self.list();
        if list.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            list.task = Some(runtime.spawn(self.clone().run(socket.to_owned())).abort_handle());
        }
    }

    /// Keeps the tokens, until the task is aborted.
    async fn run(self, socket: PathBuf) {
        let mut back_off = BackOff::default();
        loop {
            match self.serve(&socket, &mut back_off).await {
                // Some source is not wanted any more.
                Ok(()) => continue,
                Err(failure) => {
                    let error = failure.into_error();
                    self.wanted().iter().for_each(|subscription| subscription.lost(&error));
                }
            }
            time::sleep(back_off.next()).await;
        }
    }

    /// Watches over one connection, until it ends or one of the watches is not wanted any more.
    async fn serve(&self, socket: &Path, back_off: &mut BackOff) -> Result<(), Failure> {
        let stream = time::timeout(TIMEOUT, connect(socket, &[])).await;
        let stream = stream.unwrap_or_else(|_| Err(silent())).map_err(Failure::Final)?;
        back_off.connected();
        let (incoming, mut outgoing) = stream.into_split();
        let (mut incoming, mut watches) = (Incoming::new(incoming), Watches::default());
        loop {
            let Some(wire) = watches.update(&self.wanted()) else { return Ok(()) };
            send(&mut outgoing, &wire).await?;
            loop {
                let retry = watches.next_retry();
                tokio::select! {
                    frame = incoming.next(socket) => watches.receive(frame?)?,
                    () = self.0.changed.notified() => break,
                    () = time::sleep(retry.unwrap_or_default()), if retry.is_some() => break,
                }
            }
        }
    }

    fn wanted(&self) -> Vec<Arc<Subscription>> {
        self.list().wanted.clone()
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(outgoing: &mut OwnedWriteHalf, wire: &[u8]) -> Result<(), Failure> {
    // If the daemon closed the connection, it may have sent the reason, which is read next.
    let sent = time::timeout(TIMEOUT, outgoing.write_all(wire)).await;
    sent.map(drop).map_err(|_| Failure::Final(silent()))
}

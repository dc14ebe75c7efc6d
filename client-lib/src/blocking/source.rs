//! The blocking source of a token, and the one thread that keeps the tokens of all sources of a client.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http::HeaderValue;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokend_protocol::{Fingerprint, RejectOutcome, TokenName, Variant, WatchedToken, read_frame};

use super::connect::connect_within;
use super::connection::Outgoing;
use super::turn::Turn;
use super::{Client, Token};
use crate::deadline::Deadline;
use crate::failure::{Failure, not_reachable, silent};
use crate::source::{
    BackOff, HeaderCache, Rejection, Rejections, SourceHeaders, SourceToken, Subscription, Watches,
};
use crate::{CallerHeaders, Error};

/// How long connecting and sending may take, and receiving the rest of a frame that has begun.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A token that is kept in this process. Reading it costs no system call but the clock's.
///
/// The daemon sends each new token as soon as it has one. While the daemon is away, the last token stays in use until it
/// expires, and the source connects again by itself. If the daemon refuses the token (after a reload, for example), it is
/// dropped at once.
///
/// All sources of a client share one connection and one thread. The last source ends the thread when it is dropped, and waits
/// for its end. Cloning is cheap, and clones share the token.
///
/// ```no_run
/// use tokend_client::{Options, TokenName, blocking::Client};
/// # fn call_api(_: http::HeaderValue) -> u16 { 401 }
///
/// let client = Client::new(Options::from_env());
/// let source = client.source(&"psb".parse()?);
///
/// // For each call of the API:
/// let token = source.token()?;
/// if call_api(token.header_value.clone()) == 401
///     && let Some(newer) = source.reject(token.fingerprint())?
/// {
///     call_api(newer.header_value.clone());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
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
    /// For rejections, so that callers with the same token make one request.
    turn: Turn,
    rejection: Mutex<Option<Rejection>>,
}

/// The headers of a source, and the caller's part of them.
#[derive(Default)]
struct Headers {
    caller: CallerHeaders,
    cache: HeaderCache,
    /// So that callers make one request.
    request: Turn,
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
            turn: Turn::default(),
            rejection: Mutex::default(),
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
    pub fn token(&self) -> Result<Arc<SourceToken>, Error> {
        match self.subscription.held() {
            Some(token) => Ok(token),
            None => self.later(self.deadline()),
        }
    }

    /// Returns the valid token, or the reason why there is none, without waiting.
    #[inline]
    pub fn try_token(&self) -> Result<Arc<SourceToken>, Error> {
        self.subscription.token().inspect_err(|_| self.start())
    }

    /// Waits until the token or the reason why there is none changes, but no longer than `wait`. Then [`Self::try_token`] returns
    /// the present one.
    ///
    /// `seen` is the result of the last call, or 0 for the first change. A token that expires while the daemon is away is no
    /// change.
    pub fn changed(&self, seen: u64, wait: Duration) -> u64 {
        self.start();
        self.subscription.changed_blocking(seen, wait)
    }

    /// Returns the value of the `Authorization` header, as [`Self::token`] does.
    pub fn header_value(&self) -> Result<HeaderValue, Error> {
        self.token().map(|token| token.header_value.clone())
    }

    /// Returns all headers of an API call, `Authorization` first: those of [`Client::headers`].
    ///
    /// The first call with each new token asks the daemon for them, and reads the secrets in them. Later ones cost no system
    /// call but the clock's. The headers that the configuration leaves to the caller come from
    /// [`Self::with_caller_headers`]; leave out those that differ from call to call, and add them yourself.
    pub fn headers(&self) -> Result<Arc<SourceHeaders>, Error> {
        let deadline = self.deadline();
        let token = self.subscription.held().map_or_else(|| self.later(deadline), Ok)?;
        let fingerprint = token.fingerprint();
        let Headers { caller, cache, request } = &*self.headers;
        if let Some(headers) = cache.with_token(fingerprint) {
            return Ok(headers);
        }
        let Some(_turn) = request.take(deadline) else { return cache.replace(Err(silent())) };
        if let Some(headers) = cache.with_token(fingerprint) {
            return Ok(headers);
        }
        cache.replace(self.variant(deadline).headers(caller))
    }

    /// Reports that an API refused the token with this fingerprint. Returns the newer token, or `None` if another token would
    /// not help: the provider returned the same one, or was asked too recently.
    ///
    /// Callers that report the same token at the same time make one request.
    pub fn reject(&self, refused: Fingerprint) -> Result<Option<Arc<SourceToken>>, Error> {
        let deadline = self.deadline();
        self.headers.cache.reject(refused);
        let began = self.shared.rejections.ended();
        let turn = self.shared.turn.take(deadline).ok_or_else(silent)?;
        let mut last = self.shared.rejection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(newer) = self.try_token().ok().filter(|token| token.fingerprint() != refused) {
            return Ok(Some(newer));
        }
        let known = last.as_ref().filter(|last| last.answers(refused, began)).map(|last| last.outcome);
        let outcome = if let Some(outcome) = known {
            outcome
        } else {
            let reply = self.variant(deadline).reject(refused)?;
            *last = Some(self.shared.rejections.end(refused, reply.outcome));
            reply.outcome
        };
        drop((last, turn));
        match outcome {
            RejectOutcome::Replaced | RejectOutcome::Superseded => {
                self.wait(deadline, |token| token.fingerprint() != refused).map(Some)
            }
            RejectOutcome::Unchanged | RejectOutcome::TooSoon => Ok(None),
        }
    }

    /// Waits for a token, or asks for one that lasts longer. The daemon would renew it by itself only later.
    fn later(&self, deadline: Deadline) -> Result<Arc<SourceToken>, Error> {
        match self.wait(deadline, |_| true) {
            Err(Error::MinTtlUnreachable { .. }) => {
                self.variant(deadline).get().and_then(SourceToken::new).map(Arc::new)
            }
            waited => waited,
        }
    }

    fn wait(
        &self,
        deadline: Deadline,
        is_wanted: impl Fn(&SourceToken) -> bool,
    ) -> Result<Arc<SourceToken>, Error> {
        self.start();
        self.subscription.wait_blocking(deadline, is_wanted)
    }

    /// Starts the thread, if it does not run: there may have been no room for another thread before.
    fn start(&self) {
        let client = &self.shared.client.shared;
        if let Err(error) = client.sources.start(client.connector.socket()) {
            self.subscription.lost(&not_reachable(client.connector.socket(), error));
        }
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

/// The sources of one client, and their thread.
#[derive(Clone, Default)]
pub(super) struct Sources(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    wanted: Vec<Arc<Subscription>>,
    worker: Option<Worker>,
}

struct Worker {
    /// A byte wakes the thread, because the list changed. Closing the stream ends the thread.
    wake: UnixStream,
    thread: JoinHandle<()>,
}

impl Sources {
    fn add(&self, subscription: &Arc<Subscription>) {
        let mut list = self.list();
        list.wanted.push(Arc::clone(subscription));
        list.wake();
    }

    fn remove(&self, subscription: &Arc<Subscription>) {
        let mut list = self.list();
        list.wanted.retain(|other| !Arc::ptr_eq(other, subscription));
        let ended = if list.wanted.is_empty() { list.worker.take() } else { None };
        list.wake();
        drop(list);
        if let Some(Worker { wake, thread }) = ended {
            drop(wake);
            let _ = thread.join();
        }
    }

    /// Starts the thread, unless it runs.
    fn start(&self, socket: &Path) -> io::Result<()> {
        let mut list = self.list();
        if list.worker.as_ref().is_none_or(|worker| worker.thread.is_finished()) {
            let (wake, woken) = UnixStream::pair()?;
            wake.set_nonblocking(true)?;
            woken.set_nonblocking(true)?;
            let (sources, socket) = (self.clone(), Arc::from(socket));
            let thread = thread::Builder::new().name("tokend-source".to_owned());
            let thread = thread.spawn(move || sources.run(&socket, &woken))?;
            list.worker = Some(Worker { wake, thread });
        }
        Ok(())
    }

    /// Keeps the tokens, until the other end of `woken` is closed.
    fn run(&self, socket: &Path, woken: &UnixStream) {
        let mut back_off = BackOff::default();
        loop {
            let failure = match self.serve(socket, woken, &mut back_off) {
                Ok(End::Unwanted) => continue,
                Ok(End::Stop) => return,
                Err(failure) => failure,
            };
            let error = failure.into_error();
            self.wanted().iter().for_each(|subscription| subscription.lost(&error));
            let end = Deadline::after(back_off.next());
            while !end.remaining().is_zero() {
                if let Ok(Event::Stop) = wait(None, woken, Some(end.remaining())) {
                    return;
                }
            }
        }
    }

    /// Watches over one connection, until it ends or one of the watches is not wanted any more.
    fn serve(&self, socket: &Path, woken: &UnixStream, back_off: &mut BackOff) -> Result<End, Failure> {
        let failed = |error| Failure::of_connection(socket, error);
        let mut stream = open(socket).map_err(|error| Failure::Final(not_reachable(socket, error)))?;
        back_off.connected();
        let mut watches = Watches::default();
        loop {
            let Some(wire) = watches.update(&self.wanted()) else { return Ok(End::Unwanted) };
            match Outgoing(&stream).write_all(&wire) {
                // The daemon may have sent the reason, which is read next.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
                _ => (),
            }
            loop {
                match wait(Some(&stream), woken, watches.next_retry()).map_err(failed)? {
                    Event::Stop => return Ok(End::Stop),
                    Event::Due => break,
                    Event::Readable => (),
                }
                let frame = read_frame(&mut stream).map_err(failed)?;
                let frame = frame.ok_or_else(|| Failure::hung_up(socket))??;
                watches.receive(frame)?;
            }
        }
    }

    fn wanted(&self) -> Vec<Arc<Subscription>> {
        self.list().wanted.clone()
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn wake(&self) {
        if let Some(worker) = &self.worker {
            // Where there is no room, the thread is about to be woken anyway.
            let _ = Outgoing(&worker.wake).write(&[1]);
        }
    }
}

/// How a connection ended without a failure.
enum End {
    Unwanted,
    Stop,
}

/// The outcome of a wait.
enum Event {
    Readable,
    /// The list changed, or the time is over.
    Due,
    Stop,
}

/// Waits for a reply, for a change of the list, for the end, or for `most`.
fn wait(stream: Option<&UnixStream>, mut woken: &UnixStream, most: Option<Duration>) -> io::Result<Event> {
    // Rounded up, so that the time is over when the wait is.
    let most = most.map(|most| most.as_nanos().div_ceil(1_000_000));
    let most = most.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
    let all = [Some(woken), stream].into_iter().flatten();
    let mut all: Vec<_> = all.map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut all, most) {
        Ok(0) | Err(Errno::EINTR) => return Ok(Event::Due),
        polled => polled?,
    };
    let is_ready = |index: usize| all.get(index).and_then(PollFd::any).unwrap_or_default();
    if is_ready(0) {
        let last = std::iter::repeat_with(|| woken.read(&mut [0; 64])).find(|read| !matches!(read, Ok(1..)));
        return Ok(if matches!(last, Some(Ok(0))) { Event::Stop } else { Event::Due });
    }
    Ok(if is_ready(1) { Event::Readable } else { Event::Due })
}

/// Connects with time limits, so that the end of the thread is not waited for without one.
fn open(socket: &Path) -> io::Result<UnixStream> {
    let stream = connect_within(socket, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

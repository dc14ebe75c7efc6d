//! HTTP/1.1 over a Unix socket, for callers that have an HTTP client and nothing else: see `HTTP.md`.
//!
//! A request becomes the request of the protocol that it stands for, and the session of the caller answers it. So identity,
//! rules, quotas and audit are the same. All work on a connection is done in turns of its user.

mod io;
pub mod reply;
pub mod request;

use std::future::poll_fn;
use std::io as std_io;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::poll;
use http::Response;
use http::header::ORIGIN;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokend_protocol::documents::{Dialect, Metrics};
use tokend_protocol::{
    ErrorCode, ErrorReply, Reply, Request, StatusReply, StatusRequest, Timestamp, TokenName,
};
use tokio::io::Interest;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::sleep_until;

use self::io::{CallerIo, HeadClock};
use self::reply::{Problem, Written};
use self::request::{Asked, Form, read};
use crate::peer::Peer;
use crate::quota::{Held, Resource};
use crate::server::ServerState;
use crate::server::accept::{Acceptor, Arrival, Listener, identify_in_task};
use crate::server::audit::{Operation, Record, Refusal};
use crate::server::fair_queue::UserQueue;
use crate::server::session::{self, Session, in_task, is_long};
use crate::server::stream::{Stream, registered};

/// The longest head of a request, the least that hyper can limit it to.
const HEAD_MAX: usize = 8 * 1024;

/// Connections that wait in the kernel's queue. Clients for HTTP connect without blocking, and fail if it is full.
pub const QUEUE_MAX: i32 = 4096;

/// The work of a request besides the turn: the head is read, and a document is written.
const REQUEST_UNITS: u32 = 8;

/// Bytes of a head that cost a unit to read.
const BYTES_PER_UNIT: usize = 64;

const STOPPING: &str = "the daemon is stopping";

/// A reply that the caller has not read yet.
struct Unread {
    body: Vec<u8>,
    _held: Held,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// Serves the callers of this socket. Ends when the daemon stops; then its connections finish what is in flight.
pub async fn serve(listener: Listener, shared: Arc<ServerState>) -> std_io::Result<()> {
    let ready = registered(listener.try_clone()?, Interest::READABLE)?;
    let mut acceptor =
        Acceptor::new(listener, |reason| refusal(ErrorCode::Overloaded, reason), |user| user.uid);
    loop {
        let mut ready = tokio::select! {
            ready = ready.readable() => ready?,
            () = shared.stop.cancelled() => return Ok(()),
        };
        let may_be_more = acceptor.accept(&shared, |arrival| {
            let connection = serve_caller(arrival, Arc::clone(&shared));
            drop(tokio::spawn(async {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection over HTTP ended");
                }
            }));
        });
        if !may_be_more {
            ready.clear_ready();
        }
        match acceptor.paused_until.take() {
            Some(until) => sleep_until(until).await,
            None => yield_now().await,
        }
    }
}

/// The bytes of an answer to a caller that is not served.
pub fn refusal(code: ErrorCode, reason: &str) -> Vec<u8> {
    let problem = Problem::of(&session::refusal(code, reason), Timestamp(0));
    Problem { closes: true, ..problem }.write().to_string().into_bytes()
}

async fn serve_caller(mut arrival: Arrival, shared: Arc<ServerState>) -> std_io::Result<()> {
    if arrival.has_hung_up() {
        arrival.stream.abandon();
        return Ok(());
    }
    match identify_in_task(arrival, &shared).await? {
        Some((stream, _place, session)) => serve_requests(stream, session).await,
        None => Ok(()),
    }
}

/// Serves a connection of an identified caller until it ends.
async fn serve_requests(stream: Stream, session: Arc<Session>) -> std_io::Result<()> {
    let head = HeadClock::default();
    let io = CallerIo::new(stream, head.clone())?;
    let service = service_fn(|request: hyper::Request<Incoming>| {
        head.stop();
        let (session, has_body) = (Arc::clone(&session), !request.body().is_end_stream());
        async move { answer(&session, &request, has_body).await }
    });
    let mut connection = pin!(server().timer(head.clone()).serve_connection(io, service));
    let connection = async {
        let mut is_stopping = false;
        loop {
            tokio::select! {
                biased;
                () = exit(&session.peer) => return Err(peer_has_ended()),
                () = session.shared.stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                ended = &mut connection => return ended.map_err(std_io::Error::other),
            }
        }
    };
    in_turns(&session.user_queue, connection).await
}

/// hyper's server, as it is set for strangers.
pub fn server() -> http1::Builder {
    let mut server = http1::Builder::new();
    // A caller may close its side after its last request.
    server.half_close(true).max_buf_size(HEAD_MAX);
    server
}

/// Polls a future only in turns of a user.
async fn in_turns<F: Future>(user_queue: &UserQueue, future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        let turn = user_queue.turn().await;
        let polled = poll!(future.as_mut());
        drop(turn);
        if let Poll::Ready(output) = polled {
            return output;
        }
        // Until whatever the future waits for wakes this task.
        let mut is_woken = false;
        poll_fn(|_| if mem::replace(&mut is_woken, true) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

/// Waits for the end of the caller's process. Another process may hold the connection then, but has none of the rights.
async fn exit(peer: &Peer) {
    if let Some(process) = peer.process()
        && let Ok(ended) = registered(Arc::clone(process), Interest::READABLE)
        && ended.readable().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

fn peer_has_ended() -> std_io::Error {
    std_io::Error::new(std_io::ErrorKind::NotConnected, "the peer's process has ended")
}

/// Answers a request. An error ends the connection without an answer.
async fn answer(
    session: &Arc<Session>,
    request: &hyper::Request<Incoming>,
    has_body: bool,
) -> std_io::Result<Response<Full<Bytes>>> {
    if !session.user_queue.spend(REQUEST_UNITS + units(request)) {
        // The others have their turns before the reply, however many requests have come at once.
        yield_now().await;
    }
    let written = match read(request.method(), request.uri(), request.headers(), has_body) {
        Ok(Asked::Metrics(dialect)) => match metrics(session, dialect).await {
            Ok(text) => reply::metrics(text, dialect),
            Err(refused) => written(session, &Reply::Error(refused), Form::Json),
        },
        Ok(Asked::Request(request, form)) => {
            let reply = reply_to(session, request).await.unwrap_or_else(Reply::Error);
            written(session, &reply, form)
        }
        Err(problem) => {
            if request.headers().contains_key(ORIGIN) {
                let refused = Err(Refusal::WebPage);
                let record = Record::new(session.peer.caller(), Operation::Request, None, refused);
                session.shared.audit.record(&record, &session.peer);
            }
            problem.write()
        }
    };
    if session.peer.is_gone() {
        return Err(peer_has_ended());
    }
    into_response(written, session)
}

fn written(session: &Session, reply: &Reply, form: Form) -> Written {
    let clock = &session.shared.clock;
    let now = clock.now();
    reply::write(reply, form, now.to_wire(), clock.timestamp(now))
}

/// The metrics of all tokens, for operators.
async fn metrics(session: &Arc<Session>, dialect: Dialect) -> Result<String, ErrorReply> {
    session.require_operator(Operation::Status)?;
    // Held until the text is there: a scrape keeps the status of up to a thousand tokens between its pages.
    let in_flight = session.take(Resource::InFlight, 1)?;
    let _of_user = in_flight.allowance.long_answers.acquire().await;
    let mut page = status_page(session, None).await?;
    let mut metrics = Metrics::new(page.daemon);
    loop {
        let last = page.tokens.last().filter(|_| page.more).map(|token| token.name.clone());
        metrics.add(page.tokens);
        if last.is_none() {
            break;
        }
        page = status_page(session, last).await?;
    }
    // On a thread of its own, because the text of a thousand tokens takes milliseconds.
    let rendered = spawn_blocking(move || Metrics::render(Some(&metrics), dialect)).await;
    rendered.map_err(|_| session::refusal(ErrorCode::Unavailable, "the daemon failed over this request"))
}

async fn status_page(session: &Arc<Session>, after: Option<TokenName>) -> Result<StatusReply, ErrorReply> {
    let (session, request) = (Arc::clone(session), Request::Status(StatusRequest { name: None, after }));
    match in_task(async move { Ok(session.answer(request).await) }).await? {
        Reply::Status(page) => Ok(page),
        Reply::Error(refused) => Err(refused),
        _ => Err(session::refusal(ErrorCode::UnknownRequest, "the daemon gave another answer")),
    }
}

/// The work of reading the head.
fn units(request: &hyper::Request<Incoming>) -> u32 {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    u32::try_from((target + headers.sum::<usize>()) / BYTES_PER_UNIT).unwrap_or(u32::MAX)
}

async fn reply_to(session: &Arc<Session>, request: Request) -> Result<Reply, ErrorReply> {
    let in_flight = session.take(Resource::InFlight, 1)?;
    if !is_long(&request) {
        return tokio::select! {
            biased;
            reply = session.answer(request) => Ok(reply),
            () = session.shared.end_of_waits() => Err(session::refusal(ErrorCode::ShuttingDown, STOPPING)),
        };
    }
    // It takes turns, which it can only in a task of its own.
    let _of_user = in_flight.allowance.long_answers.acquire().await;
    let session = Arc::clone(session);
    in_task(async move { Ok(session.answer(request).await) }).await
}

/// The reply counts as unread until it is written. In place of one that is too much, the caller gets a problem; if even that is
/// too much, the connection ends.
fn into_response(written: Written, session: &Session) -> std_io::Result<Response<Full<Bytes>>> {
    let take = |written: &Written| session.take(Resource::UnreadBytes, written.body.len());
    let (written, held) = match take(&written) {
        Ok(held) => (written, held),
        Err(refused) => {
            let problem = Problem::of(&refused, session.shared.clock.timestamp(session.shared.clock.now()));
            let written = problem.write();
            let held = take(&written).map_err(|refused| std_io::Error::other(refused.message))?;
            (written, held)
        }
    };
    Ok(written.into_response(|body| Full::new(Bytes::from_owner(Unread { body, _held: held }))))
}

#[cfg(test)]
mod tests;

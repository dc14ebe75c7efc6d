//! One connection: frames in, frames out, a deadline on everything, a bound on what is in flight.
//!
//! Each connection is a task of its own, so a peer that is slow, silent or hostile delays nobody else.

mod answer;
mod reader;

use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, SinkExt, StreamExt, poll};
use tokend_protocol::{BadFrame, Codec, ErrorCode, Fault, Frame, Reply, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use self::answer::{Answer, Event};
use self::reader::{Incoming, Reader};
use crate::quota::Resource;
use crate::server::fair_queue::Turn;
use crate::server::peer_exit::PeerExit;
use crate::server::session::{Session, refusal};

/// How long a peer may take to make room for its answers.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests of one connection that may wait for their answers. A peer with more has to read first.
const IN_FLIGHT_MAX: usize = 1024;

/// Watches of one connection. Each may name many tokens.
const WATCHES_MAX: usize = 64;

/// Bytes of answers that wait to be written together.
const UNWRITTEN_MAX: usize = 16 * 1024;

/// The buffers of an idle connection: room for a request each. They grow when they have to.
const BUFFER: usize = 512;

type Framing<S> = Framed<S, Codec<Request, Reply>>;

/// What a connection has to do next.
enum Next {
    /// To take up what came in.
    Incoming(Incoming),
    /// To send an answer that had to be waited for.
    Answer(Event),
    /// To take up nothing more.
    Stop,
    /// Nothing: the peer's process has ended.
    Departed,
}

/// Serves a connection until the peer leaves, misbehaves, or `stop` asks to finish what is in flight.
pub async fn serve<S>(stream: S, session: Arc<Session>, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut framing = Framed::with_capacity(stream, Codec::new(), BUFFER);
    // Answers are written when a turn is over, and not in the middle of it.
    framing.set_backpressure_boundary(usize::MAX);
    let connection = Connection {
        framing,
        reader: Reader::new(),
        departure: session.departure(),
        session,
        stop,
        pending: FuturesUnordered::new(),
        watches: FuturesUnordered::new(),
        reading: true,
    };
    if let Err(error) = connection.run().await {
        tracing::debug!(%error, "a connection ended");
    }
}

struct Connection<S> {
    framing: Framing<S>,
    reader: Reader,
    departure: PeerExit,
    session: Arc<Session>,
    stop: CancellationToken,
    /// Answers that have to be waited for.
    pending: FuturesUnordered<Answer>,
    /// The next events of watches, of those that have only been asked for as well. They may be long in
    /// coming, so they hold up no requests.
    watches: FuturesUnordered<Answer>,
    reading: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    async fn run(mut self) -> io::Result<()> {
        while self.reading || !self.pending.is_empty() || !self.watches.is_empty() {
            let can_read = self.can_read();
            let next = tokio::select! {
                incoming = self.reader.next(&mut self.framing), if can_read => Next::Incoming(incoming),
                Some(event) = self.pending.next() => Next::Answer(event),
                Some(event) = self.watches.next() => Next::Answer(event),
                () = self.stop.cancelled(), if self.reading => Next::Stop,
                () = self.departure.wait() => Next::Departed,
            };
            self.act(next).await?;
            self.flush().await?;
            self.forget_answers();
        }
        Ok(())
    }

    /// Does what is at hand, in a turn of the peer's user, which waits for nothing once it has begun.
    async fn act(&mut self, next: Next) -> io::Result<()> {
        let session = Arc::clone(&self.session);
        let turn = session.turn().await;
        // Asked of the kernel each time, because an answer must not be faster than the news.
        if self.session.is_over() {
            return Err(departed());
        }
        match next {
            Next::Incoming(incoming) => self.take_up_all(incoming, &turn).await,
            Next::Answer(event) => self.send_all(event, &turn).await,
            Next::Stop => {
                self.reading = false;
                Ok(())
            }
            Next::Departed => Err(departed()),
        }
    }

    /// Writes the answers out. What the peer does not take at once counts as unread, and too much of that over all
    /// connections of a user ends this one.
    async fn flush(&mut self) -> io::Result<()> {
        if let Some(flushed) = self.framing.flush().now_or_never() {
            return flushed;
        }
        let unread = self.session.take(Resource::UnreadBytes, self.framing.write_buffer().len());
        let _held = unread.map_err(|refused| io::Error::other(refused.message))?;
        within_write_timeout(self.framing.flush()).await
    }

    /// Frees the memory of answers that have been written, which is wiped thereby. An idle connection would keep
    /// the token that went over it last.
    fn forget_answers(&mut self) {
        *self.framing.write_buffer_mut() = BytesMut::new();
    }

    fn can_read(&self) -> bool {
        self.reading && self.pending.len() < IN_FLIGHT_MAX
    }

    /// Whether more answers may be made before these are written.
    fn has_room(&self) -> bool {
        self.framing.write_buffer().len() < UNWRITTEN_MAX
    }

    /// Takes up a frame and what came with it, as far as the turn goes, so that the answers leave together.
    async fn take_up_all(&mut self, first: Incoming, turn: &Turn<'_>) -> io::Result<()> {
        let mut incoming = first;
        loop {
            self.take_up(incoming).await?;
            if !turn.spend(1) || !self.can_read() || !self.has_room() {
                return Ok(());
            }
            let Some(next) = self.reader.next(&mut self.framing).now_or_never() else { return Ok(()) };
            incoming = next;
        }
    }

    /// Sends an answer that had to be waited for and those that came with it, as far as the turn goes.
    async fn send_all(&mut self, first: Event, turn: &Turn<'_>) -> io::Result<()> {
        let mut event = first;
        loop {
            self.send(event).await?;
            if !turn.spend(1) || !self.has_room() {
                return Ok(());
            }
            let answer = self.pending.next().now_or_never().flatten();
            let Some(next) = answer.or_else(|| self.watches.next().now_or_never().flatten()) else {
                return Ok(());
            };
            event = next;
        }
    }

    async fn take_up(&mut self, incoming: Incoming) -> io::Result<()> {
        match incoming {
            Incoming::Frame(Ok(Frame { id, message })) => self.request(id, message).await,
            Incoming::Frame(Err(bad)) => self.write(bad_frame(bad)).await,
            Incoming::End => {
                self.reading = false;
                // Who waits for events keeps its side open. Otherwise a peer that left would be noticed
                // only at the next event.
                self.watches.clear();
                Ok(())
            }
            Incoming::TooSlow => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the peer took too long over a frame"))
            }
            Incoming::Broken(error) if error.kind() == io::ErrorKind::InvalidData => {
                // What follows cannot be told apart any more, so this answer is the last.
                self.write(error_frame(
                    0,
                    ErrorCode::InvalidRequest,
                    "the frame is larger than a request may be",
                ))
                .await?;
                self.flush().await?;
                Err(error)
            }
            Incoming::Broken(error) => Err(error),
        }
    }

    async fn request(&mut self, id: u32, request: Request) -> io::Result<()> {
        let session = Arc::clone(&self.session);
        match request {
            Request::Watch(_) if self.watches.len() >= WATCHES_MAX => {
                let refused = error_frame(id, ErrorCode::Overloaded, "too many watches on one connection");
                self.write(refused).await
            }
            Request::Watch(request) => {
                let mut begun = answer::first_event(session, id, request, self.stop.clone());
                if let Poll::Ready(event) = poll!(&mut begun) {
                    return self.send(event).await;
                }
                self.watches.push(begun);
                Ok(())
            }
            request => {
                let mut answer = answer::only(session, id, request);
                // Most answers are at hand and need not be waited for.
                if let Poll::Ready(event) = poll!(&mut answer) {
                    return self.send(event).await;
                }
                match self.session.take(Resource::InFlight, 1) {
                    Ok(held) => self.pending.push(answer::holding(held, answer)),
                    Err(refused) => return self.write(Frame { id, message: Reply::Error(refused) }).await,
                }
                Ok(())
            }
        }
    }

    async fn send(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Last(frame) => self.write(frame).await,
            Event::Watched(id, watch, frame) => {
                self.write(frame).await?;
                self.watches.push(answer::next_event(id, watch, self.stop.clone()));
                Ok(())
            }
        }
    }

    async fn write(&mut self, frame: Frame<Reply>) -> io::Result<()> {
        within_write_timeout(feed(&mut self.framing, frame)).await
    }
}

/// Writes an answer, or a refusal in place of one that is larger than an answer may be: the others on the
/// connection are none the worse for it.
async fn feed<S: AsyncWrite + Unpin>(framing: &mut Framing<S>, frame: Frame<Reply>) -> io::Result<()> {
    let id = frame.id;
    match framing.feed(frame).await {
        // The codec says so before it has written any of it.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            tracing::error!(%error, "an answer was larger than a caller may be sent");
            let refused =
                error_frame(id, ErrorCode::NeedsOperator, "the answer is larger than a reply may be");
            framing.feed(refused).await
        }
        fed => fed,
    }
}

async fn within_write_timeout(writing: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let too_slow = || io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answers");
    timeout(WRITE_TIMEOUT, writing).await.map_err(|_| too_slow())?
}

fn bad_frame(bad: BadFrame) -> Frame<Reply> {
    let code = match bad.fault {
        Fault::Version(_) => ErrorCode::UnsupportedVersion,
        Fault::UnknownMessage(_) => ErrorCode::UnknownRequest,
        Fault::Cut(_) | Fault::Malformed | Fault::TrailingBytes(_) => ErrorCode::InvalidRequest,
    };
    error_frame(bad.id, code, &bad.fault.to_string())
}

fn departed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the peer's process has ended")
}

/// A refusal that answers the request `id`, or no request in particular where it is 0.
pub fn error_frame(id: u32, code: ErrorCode, message: &str) -> Frame<Reply> {
    Frame { id, message: Reply::Error(refusal(code, message)) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokend_protocol::{VersionReply, WatchRequest, decode, encode};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::access::Facts;
    use crate::clock::Clock;
    use crate::config;
    use crate::engine::credential::ActorContext;
    use crate::engine::registry::{CredentialFactory, Registry};
    use crate::fingerprint::Fingerprinter;
    use crate::peer::Peer;
    use crate::server::server_state::ServerState;

    /// More than any of it takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    const CONFIG: &str = "[provider.p]\ntoken_endpoint = \"http://127.0.0.1:1/\"\nclient_id = \"c\"\n\
        client_secret = { file = \"/nonexistent\" }\n[token.t]\nprovider = \"p\"\nallow = [\"any\"]\n";

    /// A connection of a peer that may have the token `t`.
    fn connect() -> DuplexStream {
        let (ours, theirs) = duplex(1024 * 1024);
        let peer = Peer::known(Facts { uid: 1000, gid: 1000, ..Facts::default() });
        let clock = Clock::kernel(crate::clock::ClockChanges::default());
        let actor_context = ActorContext {
            clock: clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::generate().unwrap()),
            roll: || 0.5,
            tasks: tokio_util::task::TaskTracker::new(),
        };
        let config = config::parse(Path::new("tokend.toml"), CONFIG).unwrap().config;
        let mut origins = CredentialFactory::new(actor_context);
        let registry = Registry::build(&config, &mut origins, None);
        let shared = Arc::new(ServerState::new(registry, origins, clock));
        let served = Arc::clone(&shared);
        tokio::spawn(async move { served.turns.keep().await });
        let session = Arc::new(Session::new(shared, peer));
        tokio::spawn(serve(theirs, session, CancellationToken::new()));
        ours
    }

    /// Asks for so many watches in one piece.
    async fn watch(peer: &mut DuplexStream, times: usize) {
        let mut wire = Vec::new();
        for id in 0..u32::try_from(times).unwrap() {
            let message = Request::Watch(WatchRequest { names: vec!["t".parse().unwrap()] });
            encode(&Frame { id, message }, &mut wire).unwrap();
        }
        peer.write_all(&wire).await.unwrap();
    }

    #[tokio::test]
    async fn watches_that_have_not_begun_end_with_the_connection() {
        let mut peer = connect();
        watch(&mut peer, 8).await;
        peer.shutdown().await.unwrap();
        let closed = timeout(PATIENCE, peer.read_to_end(&mut Vec::new())).await;
        closed.expect("nothing keeps the connection open").unwrap();
    }

    #[tokio::test]
    async fn watches_that_have_not_begun_count() {
        let mut peer = connect();
        watch(&mut peer, WATCHES_MAX + 2).await;
        let mut replies = Framed::new(peer, Codec::<Reply, Request>::new());
        let mut refused = Vec::new();
        for _ in 0..WATCHES_MAX + 2 {
            let frame = timeout(PATIENCE, replies.next()).await.unwrap().unwrap().unwrap().unwrap();
            match frame.message {
                Reply::Event(_) => (),
                Reply::Error(error) => refused.push((frame.id, error.code)),
                other => panic!("{other:?}"),
            }
        }
        let beyond = [64, 65].map(|id| (id, ErrorCode::Overloaded));
        assert_eq!(refused, beyond);
    }

    #[tokio::test]
    async fn an_answer_that_is_too_large_costs_the_others_nothing() {
        let version = |id, daemon: String| {
            let message = Reply::Version(VersionReply { daemon, oldest: 1, newest: 1, highest_request: 8 });
            Frame { id, message }
        };
        let mut framing = Framing::with_capacity(std::io::Cursor::new(Vec::new()), Codec::new(), BUFFER);
        feed(&mut framing, version(1, "1".into())).await.unwrap();
        feed(&mut framing, version(2, "2".repeat(tokend_protocol::REPLY_MAX))).await.unwrap();
        feed(&mut framing, version(3, "3".into())).await.unwrap();
        SinkExt::<Frame<Reply>>::flush(&mut framing).await.unwrap();
        let mut wire = framing.into_inner().into_inner();
        let mut answers = Vec::new();
        while !wire.is_empty() {
            let (length, rest) = wire.split_first_chunk().unwrap();
            let (body, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
            answers.push(decode::<Reply>(body).unwrap());
            wire = rest.to_vec();
        }
        assert_eq!(answers[0], version(1, "1".into()));
        assert_eq!(answers[1].id, 2);
        assert!(matches!(&answers[1].message, Reply::Error(error) if error.code == ErrorCode::NeedsOperator));
        assert_eq!(answers[2], version(3, "3".into()));
    }
}

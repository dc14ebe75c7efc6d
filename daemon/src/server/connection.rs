//! One connection: frames in, frames out, a deadline on everything. The user's quota limits what is in flight.
//!
//! All work is done in turns of the peer's user, without waiting. The event loop takes the turns of a connection, and a task
//! while something has to be waited for. So a peer that is slow, silent or hostile delays nobody else.

mod buffers;
mod waiting;

use std::io;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokend_protocol::{
    BadFrame, ErrorCode, Fault, Frame, LENGTH_BYTES, REQUEST_MAX, Reply, Request, decode, encode,
};
use tokio::time::{Instant, sleep_until, timeout};

pub use self::buffers::{Buffers, InTurn};
use self::waiting::{Waiting, events, next};
use crate::quota::Resource;
use crate::server::accept::Place;
use crate::server::session::{LastHeld, Session, in_task, is_long, refusal};
use crate::server::stream::Stream;

/// How long a peer may take to send its first request.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take to send a frame, from its first byte to its last.
const FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a peer may take to make room for its answers.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of answers that wait to be written together.
const UNWRITTEN_MAX: usize = 64 * 1024;

/// The work for a frame besides a unit for itself: bytes that cost a unit to read or write, and elements of lists that cost
/// a unit to decode and to decide about.
const BYTES_PER_UNIT: usize = 256;
const ELEMENTS_PER_UNIT: usize = 2;

/// The work for a frame that is no request: a length in it that lies is allocated before it is found out.
const FAULT_UNITS: u32 = 8;

#[expect(missing_debug_implementations, reason = "it holds streams, which have no such implementation")]
pub struct Connection {
    pub stream: Stream,
    pub session: Arc<Session>,
    _place: Place,
    /// Bytes that have come and are not handled: frames for the next turn, or the beginning of one.
    input: Vec<u8>,
    /// Requests that could not be answered at once. Most connections never have one.
    waiting: Option<Box<Waiting>>,
    /// Whether more requests are taken.
    reading: bool,
    /// Whether a task has the connection, and not the event loop.
    is_in_task: bool,
    /// When the frame that is awaited must be complete.
    pub deadline: Option<Instant>,
    pub in_loop: InLoop,
}

/// The event loop's notes about a connection that no task has.
#[derive(Clone, Copy, Debug, Default)]
pub struct InLoop {
    /// Whether its events are awaited.
    pub is_registered: bool,
    /// Whether it is in the list of those that are ready.
    pub is_ready: bool,
    /// Whether its process has ended.
    pub has_lost_peer: bool,
}

/// The outcome of a turn.
#[derive(Debug)]
pub struct Turn {
    /// A failure ends the connection, after the answers are written.
    pub handled: io::Result<()>,
    /// Answers for which there is no room yet.
    unwritten: Vec<u8>,
}

/// How a connection goes on after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The event loop waits for its next request.
    Idle,
    /// There are more requests already.
    Ready,
    /// A task has to wait for something: see [`Connection::run`].
    Task,
    End,
}

impl Connection {
    /// A connection, and the bytes of it that were read.
    pub fn new(stream: Stream, session: Arc<Session>, place: Place, input: Vec<u8>) -> Self {
        Self {
            stream,
            session,
            _place: place,
            input,
            waiting: None,
            reading: true,
            is_in_task: false,
            deadline: Some(Instant::now() + FIRST_FRAME_TIMEOUT),
            in_loop: InLoop::default(),
        }
    }

    /// Goes on after a turn, until the connection is idle, which is then returned, or until the peer leaves, misbehaves, or the
    /// daemon stops and what is in flight is finished.
    pub async fn run(mut self: Box<Self>, turn: Turn) -> io::Result<Option<Box<Self>>> {
        (self.is_in_task, self.in_loop) = (true, InLoop::default());
        let (session, stop) = (Arc::clone(&self.session), self.session.shared.stop.clone());
        let (mut exit, mut stopped) = (pin!(session.peer.exit()), pin!(stop.cancelled()));
        self.finish(turn).await?;
        while self.reading || self.waiting.is_some() {
            if self.reading && self.waiting.is_none() && self.input.is_empty() {
                self.is_in_task = false;
                self.stream.forget_readiness();
                return Ok(Some(self));
            }
            let has_frame = self.has_frame();
            let deadline = self.deadline.filter(|_| self.reading);
            let answer = tokio::select! {
                biased;
                () = &mut exit => return self.check_peer().map(|()| None),
                () = &mut stopped, if self.reading => {
                    self.reading = false;
                    continue;
                }
                answer = next(&mut self.waiting), if self.waiting.is_some() => {
                    if answer.is_none() {
                        self.waiting = None;
                        continue;
                    }
                    answer
                }
                () = std::future::ready(()), if self.reading && has_frame => None,
                readable = self.stream.readable(), if self.reading => readable.map(|()| None)?,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer took too long over a frame"));
                }
            };
            let user_turn = session.user_queue.turn().await;
            let turn = self.take_turn(answer, &mut InTurn::of(&session.shared.buffers));
            drop(user_turn);
            self.finish(turn).await?;
        }
        Ok(None)
    }

    /// Does the work of a turn without waiting: an answer that was waited for, or what has come.
    pub fn take_turn(&mut self, answer: Option<Frame<Reply>>, buffers: &mut Buffers) -> Turn {
        buffers.clear();
        let Buffers { input, output, last, .. } = buffers;
        last.begin_turn();
        let handled = match answer {
            Some(answer) => self.answer(answer, output),
            None => self.receive(input, last, output),
        };
        let written = if output.is_empty() { Ok(0) } else { self.stream.try_write(output) };
        let (written, unwritten) = match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (Ok(()), output.clone()),
            Err(error) => (Err(error), Vec::new()),
            Ok(written) => (Ok(()), output.get(written..).unwrap_or_default().to_vec()),
        };
        buffers.clear();
        Turn { handled: written.and(handled), unwritten }
    }

    /// How to go on after a turn that had no task.
    pub fn next(&self, turn: &Turn) -> Next {
        if !turn.unwritten.is_empty() {
            Next::Task
        } else if turn.handled.is_err() {
            Next::End
        } else if self.waiting.is_some() {
            Next::Task
        } else if !self.reading {
            Next::End
        } else if self.has_frame() {
            Next::Ready
        } else if !self.input.is_empty() {
            Next::Task
        } else if self.stream.has_more {
            Next::Ready
        } else {
            Next::Idle
        }
    }

    /// Waits until the answers of a turn are written.
    async fn finish(&mut self, Turn { handled, unwritten }: Turn) -> io::Result<()> {
        if !unwritten.is_empty() {
            Box::pin(self.write(unwritten)).await?;
        }
        handled
    }

    /// Reads once, unless frames are left from the last turn, and handles what has come.
    fn receive(&mut self, room: &mut [u8], last: &mut LastHeld, output: &mut Vec<u8>) -> io::Result<()> {
        let mut read = 0;
        if !self.has_frame() {
            match self.stream.try_read(room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Ok(0) => {
                    self.reading = false;
                    // The end of the input ends the watches too: a peer that wants events keeps its sending side open.
                    // Otherwise a peer that has left would be noticed only when the next event is written.
                    if let Some(waiting) = &mut self.waiting {
                        waiting.watches.clear();
                    }
                    return Ok(());
                }
                bytes => read = bytes?,
            }
        }
        self.check_peer()?;
        let (mut kept, new) = (mem::take(&mut self.input), room.get(..read).unwrap_or_default());
        let input = if kept.is_empty() {
            new
        } else {
            kept.extend_from_slice(new);
            &kept
        };
        let (handled, rest) = self.handle_frames(input, last, output);
        self.input = rest.to_vec();
        if !rest.is_empty() {
            self.deadline.get_or_insert_with(|| Instant::now() + FRAME_TIMEOUT);
        }
        handled
    }

    /// Handles the frames that have come, until the user's allowance is spent or enough output waits. Returns the rest.
    fn handle_frames<'a>(
        &mut self,
        input: &'a [u8],
        last: &mut LastHeld,
        output: &mut Vec<u8>,
    ) -> (io::Result<()>, &'a [u8]) {
        let (mut rest, mut has_turn) = (input, true);
        while has_turn && output.len() < UNWRITTEN_MAX {
            let Some((length, frame)) = length_of(rest) else { break };
            if length > REQUEST_MAX {
                // The next frame cannot be found any more, so this answer is the last one.
                let message = "the frame is larger than a request may be";
                send(0, Reply::Error(refusal(ErrorCode::InvalidRequest, message)), output);
                return (Err(io::Error::new(io::ErrorKind::InvalidData, message)), rest);
            }
            let Some((body, next)) = frame.split_at_checked(length) else { break };
            rest = next;
            self.deadline = None;
            let is_held = self.session.get_held(body, last, output);
            let units = cost(body.len()) + if is_held { 0 } else { self.handle(body, output) };
            has_turn = self.session.user_queue.spend(units);
        }
        (Ok(()), rest)
    }

    /// Handles a frame. Returns what that costs besides its bytes.
    #[cold]
    fn handle(&mut self, body: &[u8], output: &mut Vec<u8>) -> u32 {
        match decode::<Request>(body) {
            Ok(Frame { id, message }) => {
                let units = units_of(message.elements(), ELEMENTS_PER_UNIT);
                self.request(id, message, body.len(), output);
                units
            }
            Err(BadFrame { id, fault }) => {
                let code = match fault {
                    Fault::Version(_) => ErrorCode::UnsupportedVersion,
                    Fault::UnknownMessage(_) => ErrorCode::UnknownRequest,
                    _ => ErrorCode::InvalidRequest,
                };
                send(id, Reply::Error(refusal(code, fault.to_string())), output);
                FAULT_UNITS
            }
        }
    }

    /// Whether a whole frame has come, or the beginning of one that is too long.
    fn has_frame(&self) -> bool {
        length_of(&self.input).is_some_and(|(length, rest)| length > REQUEST_MAX || rest.len() >= length)
    }

    /// Sends an answer that was waited for and those that are ready as well, until the user's allowance is spent or enough
    /// output waits.
    fn answer(&mut self, first: Frame<Reply>, output: &mut Vec<u8>) -> io::Result<()> {
        self.check_peer()?;
        let mut answer = Some(first);
        while let Some(Frame { id, message }) = answer {
            let before = output.len();
            send(id, message, output);
            let units = cost(output.len() - before);
            if !self.session.user_queue.spend(units) || output.len() >= UNWRITTEN_MAX {
                break;
            }
            answer = next(&mut self.waiting).now_or_never().flatten();
        }
        Ok(())
    }

    /// Asks the kernel whether the peer's process is alive. The exit event alone would be too late: an answer could be
    /// sent before this task sees the event.
    fn check_peer(&self) -> io::Result<()> {
        let peer = &self.session.peer;
        if if self.is_in_task { peer.is_gone() } else { peer.is_known_to_be_gone() } {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the peer's process has ended"));
        }
        Ok(())
    }

    /// Begins the answer to a request of so many bytes.
    fn request(&mut self, id: u32, request: Request, bytes: usize, output: &mut Vec<u8>) {
        let session = Arc::clone(&self.session);
        let is_long = is_long(&request);
        if let Request::Watch(request) = request {
            let events = events(session, id, request);
            return self.waiting.get_or_insert_default().watches.push(events);
        }
        let mut answer = async move { session.answer(request).await }.boxed();
        if !is_long && let Some(message) = (&mut answer).now_or_never() {
            return send(id, message, output);
        }
        let held = self.session.take(Resource::InFlight, 1);
        match held.and_then(|held| Ok([held, self.session.take(Resource::RequestBytes, bytes)?])) {
            Err(refused) => send(id, Reply::Error(refused), output),
            Ok(held) => {
                let waiting = self.waiting.get_or_insert_default();
                let long_answer = Arc::clone(&waiting.long_answer);
                waiting.pending.push(Box::pin(async move {
                    let [in_flight, _] = &held;
                    let message = if is_long {
                        let _of_connection = long_answer.lock().await;
                        let _of_user = in_flight.allowance.long_answers.acquire().await;
                        in_task(answer.map(Ok)).await.unwrap_or_else(Reply::Error)
                    } else {
                        answer.await
                    };
                    drop(held);
                    Frame { id, message }
                }));
            }
        }
    }

    /// Writes answers as the peer reads them. They count as unread, and too much of that over all connections of a user
    /// ends this one.
    async fn write(&mut self, answers: Vec<u8>) -> io::Result<()> {
        let unread = self.session.take(Resource::UnreadBytes, answers.len());
        let _held = unread.map_err(|refused| io::Error::other(refused.message))?;
        let written = timeout(WRITE_TIMEOUT, self.stream.write_all(&answers)).await;
        written.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answers"))?
    }
}

impl Default for Turn {
    fn default() -> Self {
        Self { handled: Ok(()), unwritten: Vec::new() }
    }
}

/// Appends an answer to the output, or a refusal in place of one that is larger than a reply may be.
fn send(id: u32, message: Reply, output: &mut Vec<u8>) {
    if let Err(error) = encode(&Frame { id, message }, output) {
        tracing::error!(%error, "an answer was larger than a reply may be");
        let refused = refusal(ErrorCode::NeedsOperator, "the answer is larger than a reply may be");
        // A refusal fits.
        let _ = encode(&Frame { id, message: Reply::Error(refused) }, output);
    }
}

/// The units of work for a frame of so many bytes.
fn cost(bytes: usize) -> u32 {
    1 + units_of(bytes, BYTES_PER_UNIT)
}

fn units_of(amount: usize, per_unit: usize) -> u32 {
    u32::try_from(amount / per_unit).unwrap_or(u32::MAX)
}

/// The length of the frame at the beginning of `input`, and what follows the length.
fn length_of(input: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = input.split_first_chunk::<LENGTH_BYTES>()?;
    Some((usize::try_from(u32::from_be_bytes(*length)).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::sys::socket::{setsockopt, sockopt};
    use tokend_protocol::{REPLY_MAX, TokenName, VersionReply, WatchRequest, read_frame};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::task::JoinHandle;
    use tokio::time::timeout_at;

    use super::*;
    use crate::access::Facts;
    use crate::clock::Clock;
    use crate::config;
    use crate::engine::credential::ActorContext;
    use crate::engine::registry::{CredentialFactory, Registry};
    use crate::fingerprint::Fingerprinter;
    use crate::peer::Peer;
    use crate::quota::{Allowances, Quota};
    use crate::server::ServerState;
    use crate::server::accept::take_place;
    use crate::server::stream::Descriptors;
    use crate::store::Store;

    const CONFIG: &str = "[provider.p]\ntoken_endpoint = \"http://127.0.0.1:1/\"\nclient_id = \"c\"\n\
        client_secret = { file = \"/nonexistent\" }\n[token.t]\nprovider = \"p\"\nallow = [\"any\"]\n";

    fn server_state() -> Arc<ServerState> {
        let clock = Clock::kernel(crate::clock::ClockChanges::default());
        let actor_context = ActorContext {
            clock: clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::with_key(&[7; 32])),
            roll: || 0.5,
            tasks: tokio_util::task::TaskTracker::new(),
        };
        let config = config::parse(Path::new("tokend.toml"), CONFIG).unwrap().config;
        let mut factory = CredentialFactory::new(Store::forgetful(clock.clone()), None, actor_context);
        let registry = Registry::build(config, &mut factory, None);
        Arc::new(ServerState::new(registry, factory, clock))
    }

    /// A connection of one user that is not served yet, and its caller's end.
    fn connection(shared: &Arc<ServerState>) -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        setsockopt(&ours, sockopt::SndBuf, &4096).unwrap();
        let ours = Stream::new(ours.into_std().unwrap().into(), Descriptors::MayCome);
        let peer = Peer::known(Facts { uid: 7, gid: 7, ..Facts::default() });
        let session = Arc::new(Session::new(Arc::clone(shared), peer));
        let place = take_place(7, shared, shared.clock.now()).unwrap();
        (Connection::new(ours, session, place, Vec::new()), theirs)
    }

    fn serve(connection: Connection) -> JoinHandle<io::Result<()>> {
        tokio::spawn(async move {
            let (mut connection, mut turn) = (Box::new(connection), Turn::default());
            while let Some(idle) = connection.run(turn).await? {
                connection = idle;
                // As the event loop does.
                let readable = connection.stream.readable();
                match connection.deadline {
                    Some(deadline) => timeout_at(deadline, readable).await??,
                    None => readable.await?,
                }
                let session = Arc::clone(&connection.session);
                turn = connection.take_turn(None, &mut InTurn::of(&session.shared.buffers));
            }
            Ok(())
        })
    }

    async fn reply(peer: &mut UnixStream) -> Frame<Reply> {
        let mut wire = vec![0; LENGTH_BYTES];
        peer.read_exact(&mut wire).await.unwrap();
        let (length, _) = length_of(&wire).unwrap();
        wire.resize(LENGTH_BYTES + length, 0);
        peer.read_exact(&mut wire[LENGTH_BYTES..]).await.unwrap();
        decode(&wire[LENGTH_BYTES..]).unwrap()
    }

    fn wire(requests: impl IntoIterator<Item = Request>) -> Vec<u8> {
        let mut wire = Vec::new();
        for (id, message) in (0..).zip(requests) {
            encode(&Frame { id, message }, &mut wire).unwrap();
        }
        wire
    }

    fn watch() -> Request {
        let name: TokenName = "t".parse().unwrap();
        Request::Watch(WatchRequest { tokens: vec![name.into()], with_tokens: false })
    }

    #[tokio::test(start_paused = true)]
    async fn watches_end_with_the_connection() {
        let (connection, mut peer) = connection(&server_state());
        peer.write_all(&wire((0..8).map(|_| watch()))).await.unwrap();
        peer.shutdown().await.unwrap();
        serve(connection).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_turn_ends_sooner_with_bytes_or_elements_than_with_small_requests() {
        let handled = |request: Request| {
            let shared = server_state();
            let _other_user = shared.fair_queue.join(8);
            let (mut connection, _peer) = connection(&shared);
            let frame = wire([request]);
            let input = frame.repeat(20);
            let (handled, rest) = connection.handle_frames(&input, &mut LastHeld::default(), &mut Vec::new());
            handled.unwrap();
            20 - rest.len() / frame.len()
        };
        let watch = |count: usize, length: usize| {
            let name = |number| format!("{number:0>length$}").parse::<TokenName>().unwrap();
            let tokens = (0..count).map(|number| name(number).into()).collect();
            Request::Watch(WatchRequest { tokens, with_tokens: false })
        };
        let few = handled(Request::Version);
        assert!(few >= 10, "{few} small requests");
        assert_eq!(handled(watch(1, 1)), few);
        assert_eq!(handled(watch(64, 2)), 1, "elements count");
        assert!(handled(watch(6, 255)) <= few / 4, "bytes count");
    }

    #[tokio::test(start_paused = true)]
    async fn watches_beyond_the_quota_are_refused() {
        let mut shared = server_state();
        let quota = Quota { watches: 64, ..Quota::default() };
        Arc::get_mut(&mut shared).unwrap().allowances = Allowances::new(quota);
        let (connection, mut peer) = connection(&shared);
        serve(connection);
        peer.write_all(&wire((0..66).map(|_| watch()))).await.unwrap();
        let mut refused = Vec::new();
        for _ in 0..66 {
            let frame = reply(&mut peer).await;
            match frame.message {
                Reply::Event(_) => (),
                Reply::Error(error) => refused.push((frame.id, error.code)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(refused, [64, 65].map(|id| (id, ErrorCode::Overloaded)));
    }

    #[test]
    fn an_answer_that_is_too_large_is_refused_and_the_others_are_sent() {
        let version = |daemon: String| {
            Reply::Version(VersionReply { daemon, oldest: 1, newest: 1, highest_request: 8 })
        };
        let mut output = Vec::new();
        send(1, version("1".into()), &mut output);
        send(2, version("2".repeat(REPLY_MAX)), &mut output);
        send(3, version("3".into()), &mut output);
        let mut wire = output.as_slice();
        let mut next = || read_frame::<Reply>(&mut wire).unwrap().unwrap().unwrap();
        assert_eq!(next(), Frame { id: 1, message: version("1".into()) });
        let refused = next();
        assert!(
            matches!(refused, Frame { id: 2, message: Reply::Error(error) } if error.code == ErrorCode::NeedsOperator)
        );
        assert_eq!(next(), Frame { id: 3, message: version("3".into()) });
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_the_refusal_of_its_frame_holds_up_no_other_connection() {
        let shared = server_state();
        let (slow, mut silent) = connection(&shared);
        while slow.stream.try_write(&[0; 64]).is_ok() {}
        let slow = serve(slow);
        silent.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let (other, mut peer) = connection(&shared);
        serve(other);
        let began = Instant::now();
        // More than is done in one turn.
        peer.write_all(&wire((0..100).map(|_| Request::Version))).await.unwrap();
        for id in 0..100 {
            assert_eq!(reply(&mut peer).await.id, id);
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "it waits for the other connection's peer");
        assert!(!slow.is_finished(), "the refusal is still to be written");
        let ended = slow.await.unwrap().unwrap_err();
        assert_eq!((ended.kind(), began.elapsed()), (io::ErrorKind::TimedOut, WRITE_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_has_a_deadline_and_an_idle_connection_has_none() {
        let shared = server_state();
        let began = Instant::now();
        let ended = |started: Instant, connection| async move {
            let error = serve(connection).await.unwrap().unwrap_err();
            (error.kind(), started.elapsed())
        };
        let (silent, _peer) = connection(&shared);
        assert_eq!(ended(began, silent).await, (io::ErrorKind::TimedOut, FIRST_FRAME_TIMEOUT));
        let (idle, mut peer) = connection(&shared);
        let idle = serve(idle);
        peer.write_all(&wire([Request::Version])).await.unwrap();
        reply(&mut peer).await;
        tokio::time::sleep(10 * FIRST_FRAME_TIMEOUT).await;
        assert!(!idle.is_finished());
        let began = Instant::now();
        peer.write_all(&[0]).await.unwrap();
        let error = idle.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, FRAME_TIMEOUT));
    }
}

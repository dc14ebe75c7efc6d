//! Accepts connections within limits: in total, so that descriptors never run out, and per user, so that no user can
//! shut out the others.
//!
//! All users wait in one queue of the kernel. So this is as quick as can be until the user of a connection is known, and
//! all further work is done in turns of that user.

mod identify;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, SockFlag, accept4, listen};
use tokend_protocol::{ErrorCode, Frame, Reply, encode};
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

pub use self::identify::{Identified, identify, identify_in_task};
use crate::access::{Facts, Groups, NO_ID};
use crate::clock;
use crate::peer::Peer;
use crate::quota::{Held, Resource};
use crate::server::ServerState;
use crate::server::audit::{Operation, Record, Refusal};
use crate::server::connection::Connection;
use crate::server::fair_queue::{Joined, UserQueue};
use crate::server::log_throttle::LogThrottle;
use crate::server::session::{Session, refusal};
use crate::server::sessions::{Found, Sessions};
use crate::server::stream::{Descriptors, Stream, refuse_descriptors};

/// After a failed accept. Without a pause the kernel would report the same connection again at once.
pub const PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait in the kernel's queue of the main socket while the daemon serves. A caller may have to wait until as many
/// connections of another user have been accepted.
pub const QUEUE_MAX: i32 = 256;

/// The work of accepting before others have their turns. One unit is to drop a connection whose caller has hung up.
const BATCH_UNITS: u32 = 16;

/// The cost of a connection that is admitted or turned away, in units of a batch.
const ADMIT_UNITS: u32 = 2;

/// The cost of identifying a peer, in units of a turn.
const IDENTIFY_UNITS: u32 = 8;

const TOO_MANY: &str = "too many open connections";

/// Connections that are reserved for root and the daemon's own user, unless the limit is low.
const RESERVED: usize = 64;

/// How many connections a user may have for each place that is free. However many users have as many as they can, there is
/// room for the first ones of another.
const PER_FREE_PLACE: usize = 8;

/// The listening socket of a daemon that serves. When it is dropped, the queue is as long as the kernel allows, because the
/// service manager may have the socket too, and callers wait in its queue for the next daemon.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// `queue`: how many connections wait to be accepted. A caller that connects without blocking fails if it is full.
    pub fn new(listener: UnixListener, queue: i32) -> io::Result<Self> {
        let listener = OwnedFd::from(listener.into_std()?);
        listen(&listener, Backlog::new(queue)?)?;
        Ok(Self(listener))
    }

    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = listen(&self.0, Backlog::MAXALLOWABLE);
    }
}

/// Encodes the reason why a caller is turned away, in the protocol of the socket.
pub type EncodeRefusal = fn(reason: &str) -> Vec<u8>;

/// The user on whose account a connection is.
pub type AccountOf = fn(user: &Facts) -> u32;

/// A connection of which only the user is known.
#[derive(Debug)]
pub struct Arrival {
    pub stream: Stream,
    encode_refusal: EncodeRefusal,
    /// How many connections had been accepted before it.
    accepted_before: u64,
    user: Facts,
    place: Place,
    /// The bytes that came with it.
    input: Vec<u8>,
}

/// The place of a connection within the limits of its user and of the daemon.
#[derive(Debug)]
pub struct Place {
    user_queue: Joined,
    held: Held,
    _counted: TaskTrackerToken,
}

/// Accepts connections, as many at a time as others can wait for.
#[derive(Debug)]
pub struct Acceptor {
    pub listener: Listener,
    encode_refusal: EncodeRefusal,
    account_of: AccountOf,
    /// How many connections were accepted.
    pub accepted: u64,
    /// Until when no connection is accepted, because descriptors have run out.
    pub paused_until: Option<Instant>,
    descriptors: Descriptors,
    of_new_connections: Descriptors,
    failures: LogThrottle,
    unidentified: LogThrottle,
    /// A reserved descriptor. Closing it makes room to accept one caller and turn it away.
    spare: Option<File>,
    /// The work of the next batch: more and more while callers queue.
    batch_units: u32,
}

impl Acceptor {
    pub fn new(listener: Listener, encode_refusal: EncodeRefusal, account_of: AccountOf) -> Self {
        let of_new_connections = refuse_descriptors(&listener);
        Self {
            listener,
            encode_refusal,
            account_of,
            accepted: 0,
            paused_until: None,
            // Those that were made before take descriptors on every kernel.
            descriptors: Descriptors::MayCome,
            of_new_connections,
            failures: LogThrottle::default(),
            unidentified: LogThrottle::default(),
            spare: spare(),
            batch_units: 1,
        }
    }

    /// Accepts a batch of the connections that wait. Returns whether more may wait.
    pub fn accept(&mut self, shared: &Arc<ServerState>, mut take: impl FnMut(Arrival)) -> bool {
        // Another thread may have taken it while it was closed. Without it, a caller would wait for a word as long as none is free.
        self.spare = self.spare.take().or_else(spare);
        let mut units = 0;
        while units < self.batch_units {
            match accept(&self.listener) {
                Ok(socket) => units += self.admit(Stream::new(socket, self.descriptors), shared, &mut take),
                Err(Errno::EAGAIN) => {
                    self.descriptors = self.of_new_connections;
                    self.batch_units = 1;
                    return false;
                }
                Err(error) => {
                    self.pause(&error.into(), shared);
                    return true;
                }
            }
        }
        self.batch_units = BATCH_UNITS.min(2 * self.batch_units);
        true
    }

    /// Takes in a connection, or turns the caller away. Returns the cost.
    fn admit(&mut self, mut stream: Stream, shared: &Arc<ServerState>, mut take: impl FnMut(Arrival)) -> u32 {
        let accepted_before = self.accepted;
        self.accepted += 1;
        // One that has not waited long is there.
        if self.batch_units > 2 && has_hung_up(&stream) {
            stream.abandon();
            return 1;
        }
        let now = shared.clock.now();
        match Peer::user(stream.as_fd()) {
            Err(error) => self.turn_away_unidentified(&mut stream, &error, shared),
            Ok(user) => match take_place((self.account_of)(&user), shared, now) {
                Err(reason) => refuse(&mut stream, self.encode_refusal, shared, &user, reason),
                Ok(place) => {
                    shared.most_open.fetch_max(shared.connections.len(), Ordering::Relaxed);
                    let (encode_refusal, input) = (self.encode_refusal, Vec::new());
                    take(Arrival { stream, encode_refusal, accepted_before, user, place, input });
                }
            },
        }
        ADMIT_UNITS
    }

    /// Turns a caller away that the kernel does not identify.
    pub fn turn_away_unidentified(&mut self, stream: &mut Stream, error: &io::Error, shared: &ServerState) {
        if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
            turn_away(stream, self.encode_refusal, TOO_MANY);
            self.pause(error, shared);
        } else if let Some(times) = self.unidentified.record(shared.clock.now()) {
            tracing::warn!(%error, times, "peers that ended at once, or that the kernel does not identify, were turned away");
        }
    }

    /// Descriptors have run out: turns one more caller away, and accepts none for a while.
    fn pause(&mut self, error: &io::Error, shared: &ServerState) {
        drop(self.spare.take());
        if let Ok(socket) = accept(&self.listener) {
            turn_away(&mut Stream::new(socket, self.descriptors), self.encode_refusal, TOO_MANY);
        }
        self.spare = spare();
        if let Some(times) = self.failures.record(shared.clock.now()) {
            tracing::warn!(%error, times, "connections could not be accepted");
        }
        self.paused_until = Some(Instant::now() + PAUSE);
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn accept(listener: &Listener) -> nix::Result<OwnedFd> {
    let socket = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the kernel has just made this descriptor for this call alone.
    #[expect(unsafe_code, reason = "nix returns the number of a new descriptor")]
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

impl Arrival {
    pub fn user_queue(&self) -> &Arc<UserQueue> {
        &self.place.user_queue
    }

    pub fn is_of_root(&self) -> bool {
        self.user.uid == 0
    }

    /// Whether nobody waits for an answer any more.
    pub fn has_hung_up(&self) -> bool {
        has_hung_up(&self.stream)
    }

    /// Reads what has come. Returns whether the caller may wait for an answer.
    pub fn read(&mut self, room: &mut [u8]) -> bool {
        match self.stream.try_read(room) {
            Ok(read) => {
                self.input = room.get(..read).unwrap_or_default().to_vec();
                read > 0
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// A session of the process that connected, if it has one.
    pub fn find(&self, sessions: &Sessions) -> Option<Found> {
        sessions.find(&self.user, self.accepted_before)
    }

    /// Returns the process that connected, in a turn of its user. Asks the kernel unless it is known.
    pub fn peer(&self, known: Option<&Found>) -> io::Result<Peer> {
        self.user_queue().spend(IDENTIFY_UNITS);
        match known {
            Some(known) => Ok(known.session.peer.of_same_process(self.user.clone())),
            None => Peer::of(self.stream.as_fd(), self.user.clone()),
        }
    }

    /// Gives the peer its groups. Returns `false` if the lists of its user's processes are too long to be kept, and the caller is
    /// turned away.
    fn set_groups(&mut self, peer: &mut Peer, groups: Groups, shared: &ServerState) -> bool {
        match self.place.held.allowance.share_groups(groups) {
            Ok(groups) => peer.set_groups(groups),
            Err(excess) => {
                refuse(&mut self.stream, self.encode_refusal, shared, peer.caller(), excess.reason);
                return false;
            }
        }
        true
    }

    /// The connection of an identified caller.
    fn connection(self, peer: Peer, known: Option<Found>, shared: &Arc<ServerState>) -> Box<Connection> {
        let joined = known.and_then(|known| known.joined(peer.caller(), shared));
        let session = joined.unwrap_or_else(|| Arc::new(Session::new(Arc::clone(shared), peer)));
        Box::new(Connection::new(self.stream, session, self.place, self.input))
    }
}

/// Whether both directions of a connection are closed, so that nothing can be answered.
fn has_hung_up(socket: &impl AsFd) -> bool {
    let mut socket = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let polled = poll(&mut socket, PollTimeout::ZERO);
    let [socket] = socket;
    polled == Ok(1) && socket.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// Takes a place for a connection of the user, or of the service manager ([`NO_ID`]).
pub fn take_place(uid: u32, shared: &ServerState, now: clock::Instant) -> Result<Place, &'static str> {
    let is_privileged = uid == 0 || uid == shared.own_uid || uid == NO_ID;
    let reserved = if is_privileged { 0 } else { RESERVED.min(shared.connections_max / 4) };
    let free = (shared.connections_max - reserved).saturating_sub(shared.connections.len());
    let allowance = shared.allowances.of(uid, now);
    if allowance.held(Resource::Connections) >= free.saturating_mul(PER_FREE_PLACE) {
        return Err(TOO_MANY);
    }
    let held = allowance.take(Resource::Connections, 1).map_err(|excess| excess.reason)?;
    Ok(Place { user_queue: shared.fair_queue.join(uid), held, _counted: shared.connections.token() })
}

/// Audits a refused connection, and tells the caller.
fn refuse(
    stream: &mut Stream,
    encode_refusal: EncodeRefusal,
    shared: &ServerState,
    facts: &Facts,
    reason: &'static str,
) {
    let refusal = Refusal::TooMuch(reason);
    shared.audit.record_as_it_is(&Record::new(facts, Operation::Connect, None, Err(refusal)));
    turn_away(stream, encode_refusal, reason);
}

/// Tells a caller why it is not served. The stream is dropped next.
fn turn_away(stream: &mut Stream, encode_refusal: EncodeRefusal, reason: &str) {
    // A new socket has room for a few bytes.
    let _ = stream.try_write(&encode_refusal(reason));
    stream.abandon();
}

/// The refusal as a frame of the protocol.
pub fn refusal_frame(reason: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    let message = Reply::Error(refusal(ErrorCode::Overloaded, reason));
    let _ = encode(&Frame { id: 0, message }, &mut wire);
    wire
}

#[cfg(test)]
pub(super) mod tests;

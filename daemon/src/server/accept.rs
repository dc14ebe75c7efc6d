//! Accepts connections within limits: in total, so that descriptors never run out, and per user, so that no user can
//! shut out the others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use nix::errno::Errno;
use nix::libc;
use tokend_protocol::{ErrorCode, encode};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::peer::Peer;
use crate::server::audit::Refusal;
use crate::server::connection::{Connection, error_frame};
use crate::server::log_throttle::LogThrottle;
use crate::server::server_state::ServerState;
use crate::server::session::Session;
use crate::server::stream::{Stream, refuse_descriptors};

/// The pauses after failed accepts: the first, doubled up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The cost of identifying a peer, in units of a turn.
const IDENTIFY_UNITS: u32 = 8;

/// The answer to a caller beyond the limits.
const TOO_MANY: &str = "too many open connections";

/// Connections that are reserved for operators, unless the limit is low.
const RESERVED: usize = 64;

/// How many connections may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In total.
    pub connections: usize,
    /// Per user.
    pub connections_per_uid: usize,
}

/// Accepts until `stop`. Each connection runs as one of `tasks` and ends by the same `stop`.
pub async fn serve(
    listener: UnixListener,
    limits: Limits,
    shared: Arc<ServerState>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    refuse_descriptors(&listener);
    let slots = Arc::new(ConnectionSlots { limits, taken: Mutex::default(), shared: Arc::clone(&shared) });
    let (spare, unidentified) = (spare(), LogThrottle::default());
    let mut acceptor = Acceptor { slots, shared, tasks, stop: stop.clone(), spare, unidentified };
    stop.run_until_cancelled(acceptor.run(listener)).await;
}

/// Accepts connections and starts their tasks.
struct Acceptor {
    slots: Arc<ConnectionSlots>,
    shared: Arc<ServerState>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// A reserved descriptor. Closing it makes room to accept one caller and turn it away.
    spare: Option<File>,
    /// Counts peers that could not be identified.
    unidentified: LogThrottle,
}

impl Acceptor {
    async fn run(&mut self, listener: UnixListener) {
        let mut backoff = AcceptBackoff { pause: PAUSE_FIRST, failures: LogThrottle::default() };
        loop {
            let accepted = listener.accept().await;
            if accepted.is_err() {
                self.turn_one_away(&listener);
            }
            if let Err(error) = accepted.and_then(|(stream, _)| self.admit(Stream::new(stream))) {
                backoff.wait(&error, &self.shared.clock).await;
            } else {
                backoff.pause = PAUSE_FIRST;
                // Callers that connect without end must not delay those that are connected.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Starts the task of a connection, or turns the caller away. Fails if descriptors have run out.
    fn admit(&mut self, stream: Stream) -> io::Result<()> {
        // If the connecting process has ended, whoever holds the connection now is unidentified.
        let is_there = |peer: Peer| if peer.is_gone() { Err(Errno::ESRCH.into()) } else { Ok(peer) };
        let mut peer = match Peer::of(stream.as_fd()).and_then(is_there) {
            Ok(peer) => peer,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                turn_away(&stream);
                return Err(error);
            }
            Err(error) => {
                if let Some(times) = self.unidentified.record(self.shared.clock.now()) {
                    tracing::warn!(%error, times, "peers that ended at once, or that the kernel does not identify, were turned away");
                }
                return Ok(());
            }
        };
        let Some(slot) = ConnectionSlots::take(&self.slots, peer.facts().uid) else {
            self.shared.audit.turned_away(peer.facts(), Refusal::TooMuch(TOO_MANY));
            turn_away(&stream);
            return Ok(());
        };
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        self.tasks.spawn(async move {
            let _slot = slot;
            let member = shared.turns.join(peer.facts().uid);
            member.turn().await.spend(IDENTIFY_UNITS);
            peer.identify();
            if let Some(exe) = &peer.facts().exe {
                shared.names.recheck(exe).await;
            }
            let session = Arc::new(Session::new(shared, peer));
            if let Err(error) = Connection::new(stream, session, stop).run().await {
                tracing::debug!(%error, "a connection ended");
            }
        });
        Ok(())
    }

    /// Gives up the spare descriptor to tell one waiting caller that there is no room.
    fn turn_one_away(&mut self, listener: &UnixListener) {
        if self.spare.take().is_some()
            && let Some(Ok((stream, _))) = listener.accept().now_or_never()
        {
            turn_away(&Stream::new(stream));
        }
        self.spare = spare();
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Tells a caller why it is not served.
fn turn_away(stream: &Stream) {
    let mut wire = Vec::new();
    let _ = encode(&error_frame(0, ErrorCode::Overloaded, TOO_MANY), &mut wire);
    // A new socket has room for a few bytes.
    let _ = stream.try_write(&wire);
}

/// Pauses after a failed accept, most likely for want of descriptors. Open connections are served meanwhile.
struct AcceptBackoff {
    pause: Duration,
    failures: LogThrottle,
}

impl AcceptBackoff {
    async fn wait(&mut self, error: &io::Error, clock: &Clock) {
        if let Some(times) = self.failures.record(clock.now()) {
            tracing::warn!(%error, times, "connections could not be accepted");
        }
        // Without a pause the kernel would report the same connection again at once.
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// Counts the open connections.
#[derive(Debug)]
struct ConnectionSlots {
    limits: Limits,
    /// Connections by user. Never held across an await.
    taken: Mutex<HashMap<u32, usize>>,
    shared: Arc<ServerState>,
}

/// One open connection, counted until it is dropped.
#[derive(Debug)]
struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    uid: u32,
}

impl ConnectionSlots {
    fn take(slots: &Arc<Self>, uid: u32) -> Option<ConnectionSlot> {
        let Self { limits, taken, shared } = &**slots;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = taken.get(&uid).copied().unwrap_or_default();
        let is_operator = uid == 0 || uid == shared.own_uid;
        let reserved = if is_operator { 0 } else { RESERVED.min(limits.connections / 4) };
        let total = shared.connections.load(Ordering::Relaxed) as usize;
        if total >= limits.connections - reserved || of_user >= limits.connections_per_uid {
            return None;
        }
        taken.insert(uid, of_user + 1);
        shared.connections.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionSlot { slots: Arc::clone(slots), uid })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut of_user) = taken.entry(self.uid) {
            *of_user.get_mut() -= 1;
            if *of_user.get() == 0 {
                of_user.remove();
            }
        }
        self.slots.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

//! Accepts connections, within limits: in all, so that descriptors never run out, and for each user, so
//! that one cannot shut out the others.

use std::collections::HashMap;
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
use crate::server::connection::{self, error_frame};
use crate::server::log_throttle::LogThrottle;
use crate::server::server_state::ServerState;
use crate::server::session::Session;
use crate::server::stream::{self, Stream};

/// The first rest after a failed accept.
const ACCEPT_REST_FIRST: Duration = Duration::from_millis(10);

/// The longest.
const ACCEPT_REST_MOST: Duration = Duration::from_secs(1);

/// What it takes to find out who a peer is, in units of a turn.
const WELCOME_UNITS: u32 = 8;

/// What those are told for whom there is no room.
const TOO_MANY: &str = "too many open connections";

/// Connections that are kept for operators, unless there are few in all.
const RESERVED: usize = 64;

/// How many connections may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub connections: usize,
    /// Of one user.
    pub connections_per_uid: usize,
}

impl Limits {
    /// How many of all are for root and the daemon's own user alone, so that an operator gets in whatever others do.
    fn reserved(self) -> usize {
        RESERVED.min(self.connections / 4)
    }
}

/// Accepts until `stop`. Connections run as `tasks` of their own and end by the same `stop`.
pub async fn serve(
    listener: UnixListener,
    limits: Limits,
    shared: Arc<ServerState>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let places = Arc::new(ConnectionSlots { limits, taken: Mutex::default(), shared: Arc::clone(&shared) });
    let mut acceptor = Acceptor {
        places,
        shared,
        tasks,
        stop: stop.clone(),
        spare: spare(),
        unknown: LogThrottle::default(),
    };
    let mut backoff = AcceptBackoff { rest: ACCEPT_REST_FIRST, failures: LogThrottle::default() };
    stream::refuse_descriptors(&listener);
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match acceptor.welcome(Stream::accepted(stream)) {
                    Ok(()) => {
                        backoff.rest = ACCEPT_REST_FIRST;
                        // Whoever connects without end does not keep those waiting who are connected.
                        tokio::task::yield_now().await;
                    }
                    Err(error) => backoff.pass(&error, &acceptor.shared.clock).await,
                },
                Err(error) => {
                    acceptor.turn_one_away(&listener);
                    backoff.pass(&error, &acceptor.shared.clock).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
}

/// What keeps connections from being accepted: most likely no descriptor is left. Those who are connected are served
/// meanwhile.
struct AcceptBackoff {
    rest: Duration,
    failures: LogThrottle,
}

impl AcceptBackoff {
    async fn pass(&mut self, error: &io::Error, clock: &Clock) {
        if let Some(times) = self.failures.record(clock.now()) {
            tracing::warn!(%error, times, "connections could not be accepted");
        }
        // Without a rest the kernel would report the same connection again at once.
        tokio::time::sleep(self.rest).await;
        self.rest = (self.rest * 2).min(ACCEPT_REST_MOST);
    }
}

/// Where connections come in.
struct Acceptor {
    places: Arc<ConnectionSlots>,
    shared: Arc<ServerState>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// A descriptor that is given up so that a connection can be turned away when there is no other.
    spare: Option<File>,
    /// Peers about which the kernel tells nothing.
    unknown: LogThrottle,
}

impl Acceptor {
    /// # Errors
    /// No descriptor is left for the handle on the peer's process. The peer has been told.
    fn welcome(&mut self, stream: Stream) -> io::Result<()> {
        let peer = match Peer::of(stream.as_fd()) {
            // Whoever holds the end of one that is gone is somebody else now, of whom nothing is known.
            Ok(peer) if peer.is_gone() => Err(Errno::ESRCH.into()),
            other => other,
        };
        match peer {
            Ok(peer) => self.let_in(stream, peer),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                turn_away(&stream, TOO_MANY);
                return Err(error);
            }
            Err(error) => self.ignore(&error),
        }
        Ok(())
    }

    fn let_in(&self, stream: Stream, mut peer: Peer) {
        let Some(place) = ConnectionSlots::take(&self.places, peer.facts().uid) else {
            self.shared
                .audit
                .turned_away(peer.facts(), Refusal::TooMuch("there are too many open connections"));
            turn_away(&stream, TOO_MANY);
            return;
        };
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        self.tasks.spawn(async move {
            let _place = place;
            shared.turns.take(peer.facts().uid).await.spend(WELCOME_UNITS);
            peer.identify();
            if let Some(exe) = &peer.facts().exe {
                shared.names.recheck(exe).await;
            }
            let session = Arc::new(Session::new(shared, peer));
            connection::serve(stream, session, stop).await;
        });
    }

    fn ignore(&mut self, error: &io::Error) {
        if let Some(times) = self.unknown.record(self.shared.clock.now()) {
            tracing::warn!(%error, times, "peers about which the kernel tells nothing were turned away");
        }
    }

    /// Tells one of those who wait to be accepted that there is no room, instead of leaving it in the dark.
    fn turn_one_away(&mut self, listener: &UnixListener) {
        if self.spare.take().is_some()
            && let Some(Ok((stream, _))) = listener.accept().now_or_never()
        {
            turn_away(&Stream::accepted(stream), TOO_MANY);
        }
        self.spare = spare();
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Says why, as far as the socket takes it without waiting.
fn turn_away(stream: &Stream, why: &str) {
    let mut wire = Vec::new();
    let reply = error_frame(0, ErrorCode::Overloaded, why);
    if encode(&reply, &mut wire).is_ok() {
        // A peer that cannot take a few bytes at once learns it from the closed connection.
        let _: io::Result<usize> = stream.try_write(&wire);
    }
}

/// The places for connections.
#[derive(Debug)]
struct ConnectionSlots {
    limits: Limits,
    /// By user. Held for a count, never across an await.
    taken: Mutex<HashMap<u32, usize>>,
    shared: Arc<ServerState>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
struct ConnectionSlot {
    places: Arc<ConnectionSlots>,
    uid: u32,
}

impl ConnectionSlots {
    fn take(places: &Arc<Self>, uid: u32) -> Option<ConnectionSlot> {
        let mut taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let in_all: usize = taken.values().sum();
        let of_user = taken.entry(uid).or_default();
        let is_trusted = uid == 0 || uid == places.shared.own_uid;
        let room = places.limits.connections - if is_trusted { 0 } else { places.limits.reserved() };
        if in_all >= room || *of_user >= places.limits.connections_per_uid {
            return None;
        }
        *of_user += 1;
        places.shared.connections.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionSlot { places: Arc::clone(places), uid })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_user) = taken.get_mut(&self.uid) {
            *of_user -= 1;
        }
        taken.retain(|_, of_user| *of_user > 0);
        self.places.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

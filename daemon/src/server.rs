//! Accepts connections, within limits: in all, so that descriptors never run out, and for each user, so
//! that one cannot shut out the others.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokend_protocol::{ErrorCode, encode};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{self, error_frame};
use crate::peer::Peer;
use crate::session::Session;
use crate::shared::Shared;

/// The first rest after a failed accept.
const ACCEPT_REST_FIRST: Duration = Duration::from_millis(10);

/// The longest.
const ACCEPT_REST_MOST: Duration = Duration::from_secs(1);

/// What it takes to find out who a peer is, in units of a turn.
const WELCOME_UNITS: u32 = 8;

/// How many connections may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub connections: usize,
    /// Of one user.
    pub connections_per_uid: usize,
}

/// Accepts until `stop`. Connections run as `tasks` of their own and end by the same `stop`.
pub async fn serve(
    listener: UnixListener,
    limits: Limits,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let places = Arc::new(Places { limits, taken: Mutex::default(), shared: Arc::clone(&shared) });
    let mut rest = ACCEPT_REST_FIRST;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                rest = ACCEPT_REST_FIRST;
                welcome(stream, &places, &shared, &tasks, &stop);
                // Whoever connects without end does not keep those waiting who are connected.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                // Most likely no descriptor is left. Those who are connected are served meanwhile.
                tracing::warn!(%error, "no connection could be accepted");
                tokio::time::sleep(rest).await;
                rest = (rest * 2).min(ACCEPT_REST_MOST);
            }
        }
    }
}

fn welcome(
    stream: UnixStream,
    places: &Arc<Places>,
    shared: &Arc<Shared>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let peer = match Peer::of(stream.as_fd()) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(%error, "a peer about which the kernel tells nothing was turned away");
            return;
        }
    };
    if peer.is_gone() {
        // Whoever holds its end of the connection now is somebody else, of whom nothing is known.
        tracing::debug!(pid = peer.facts().pid, "a connection whose process has ended was closed");
        return;
    }
    let Some(place) = Places::take(places, peer.facts().uid) else {
        tracing::warn!(
            uid = peer.facts().uid,
            pid = peer.facts().pid,
            "a connection beyond the limits was turned away"
        );
        turn_away(&stream);
        return;
    };
    let shared = Arc::clone(shared);
    let stop = stop.clone();
    tasks.spawn(async move {
        let _place = place;
        shared.turns.take(peer.facts().uid).await.spend(WELCOME_UNITS);
        let session = Arc::new(Session::new(shared, peer.identified().await));
        connection::serve(stream, session, stop).await;
    });
}

/// Says why, as far as the socket takes it without waiting.
fn turn_away(stream: &UnixStream) {
    let mut wire = Vec::new();
    let reply = error_frame(0, ErrorCode::Overloaded, "too many open connections");
    if encode(&reply, &mut wire).is_ok() {
        // A peer that cannot take a few bytes at once learns it from the closed connection.
        let _: io::Result<usize> = stream.try_write(&wire);
    }
}

/// The places for connections.
#[derive(Debug)]
struct Places {
    limits: Limits,
    /// By user. Held for a count, never across an await.
    taken: Mutex<HashMap<u32, usize>>,
    shared: Arc<Shared>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    uid: u32,
}

impl Places {
    fn take(places: &Arc<Self>, uid: u32) -> Option<Place> {
        let mut taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let in_all: usize = taken.values().sum();
        let of_user = taken.entry(uid).or_default();
        if in_all >= places.limits.connections || *of_user >= places.limits.connections_per_uid {
            return None;
        }
        *of_user += 1;
        places.shared.connections.fetch_add(1, Ordering::Relaxed);
        Some(Place { places: Arc::clone(places), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_user) = taken.get_mut(&self.uid) {
            *of_user -= 1;
        }
        taken.retain(|_, of_user| *of_user > 0);
        self.places.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

//! Accepts connections within limits: in total, so that descriptors never run out, and per user, so that no user can
//! shut out the others.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use nix::libc;
use tokend_protocol::{ErrorCode, Frame, Reply, encode};
use tokio::net::UnixListener;

use crate::peer::Peer;
use crate::quota::Resource;
use crate::server::ServerState;
use crate::server::audit::{Operation, Record, Refusal};
use crate::server::connection::Connection;
use crate::server::log_throttle::LogThrottle;
use crate::server::session::{Session, refusal};
use crate::server::stream::{Stream, refuse_descriptors};

/// After a failed accept. Without a pause the kernel would report the same connection again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// The cost of identifying a peer, in units of a turn.
const IDENTIFY_UNITS: u32 = 8;

const TOO_MANY: &str = "too many open connections";

/// Connections that are reserved for root and the daemon's own user, unless the limit is low.
const RESERVED: usize = 64;

/// Accepts connections and starts a task for each. Never returns.
pub async fn run(listener: UnixListener, shared: Arc<ServerState>) {
    refuse_descriptors(&listener);
    let (mut failures, mut unidentified) = (LogThrottle::default(), LogThrottle::default());
    // A reserved descriptor. Closing it makes room to accept one caller and turn it away.
    let mut spare = File::open("/dev/null").ok();
    loop {
        let accepted = listener.accept().await;
        if accepted.is_err() {
            drop(spare.take());
            if let Some(Ok((socket, _))) = listener.accept().now_or_never() {
                turn_away(&Stream::new(socket), TOO_MANY);
            }
            spare = File::open("/dev/null").ok();
        }
        let admitted =
            accepted.and_then(|(socket, _)| admit(Stream::new(socket), &shared, &mut unidentified));
        if let Err(error) = admitted {
            if let Some(times) = failures.record(shared.clock.now()) {
                tracing::warn!(%error, times, "connections could not be accepted");
            }
            tokio::time::sleep(PAUSE).await;
        } else {
            // Callers that connect without end must not delay those that are connected.
            tokio::task::yield_now().await;
        }
    }
}

/// Starts the task of a connection, or turns the caller away. Fails if descriptors have run out.
fn admit(stream: Stream, shared: &Arc<ServerState>, unidentified: &mut LogThrottle) -> std::io::Result<()> {
    let now = shared.clock.now();
    let mut peer = match Peer::of(stream.socket.as_fd()) {
        Ok(peer) => peer,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            turn_away(&stream, TOO_MANY);
            return Err(error);
        }
        Err(error) => {
            if let Some(times) = unidentified.record(now) {
                tracing::warn!(%error, times, "peers that ended at once, or that the kernel does not identify, were turned away");
            }
            return Ok(());
        }
    };
    let uid = peer.facts().uid;
    let is_privileged = uid == 0 || uid == shared.own_uid;
    let reserved = if is_privileged { 0 } else { RESERVED.min(shared.connections_max / 4) };
    let has_room = shared.connections.len() < shared.connections_max - reserved;
    let of_user = shared.allowances.of(uid, now).take(Resource::Connections, 1);
    let taken = if has_room { of_user.map_err(|excess| excess.reason) } else { Err(TOO_MANY) };
    let held = match taken {
        Ok(held) => held,
        Err(reason) => {
            let refusal = Refusal::TooMuch(reason);
            shared.audit.record(&Record::new(peer.facts(), Operation::Connect, None, Err(refusal)));
            turn_away(&stream, reason);
            return Ok(());
        }
    };
    let (state, stop) = (Arc::clone(shared), shared.stop.clone());
    shared.connections.spawn(async move {
        let _held = held;
        let user_queue = state.fair_queue.join(uid);
        let turn = user_queue.turn().await;
        user_queue.spend(IDENTIFY_UNITS);
        peer.identify();
        drop(turn);
        if let Some(exe) = &peer.facts().exe {
            state.names.recheck(exe).await;
        }
        let session = Arc::new(Session::new(state, peer));
        if let Err(error) = Connection::new(stream, session, stop).run().await {
            tracing::debug!(%error, "a connection ended");
        }
    });
    Ok(())
}

/// Tells a caller why it is not served.
fn turn_away(stream: &Stream, reason: &str) {
    let mut wire = Vec::new();
    let message = Reply::Error(refusal(ErrorCode::Overloaded, reason));
    let _ = encode(&Frame { id: 0, message }, &mut wire);
    // A new socket has room for a few bytes.
    let _ = stream.try_write(&wire);
}

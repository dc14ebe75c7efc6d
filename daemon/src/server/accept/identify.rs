//! Finds out which groups a caller has, and makes its connection.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use futures_util::TryFutureExt;
use futures_util::future::BoxFuture;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::{Arrival, Place, has_hung_up};
use crate::access::Groups;
use crate::peer::{self, Peer};
use crate::quota::Allowance;
use crate::server::ServerState;
use crate::server::connection::Connection;
use crate::server::session::Session;
use crate::server::sessions::Found;
use crate::server::stream::Stream;

/// The work of comparing a long list of groups with the others of its user.
const SHARE_MANY_GROUPS_UNITS: u32 = 8;

/// A caller that is identified, or will be. It has no connection if it is turned away.
#[expect(missing_debug_implementations, reason = "it holds connections, which have no such implementation")]
pub enum Identified {
    Now(Option<Box<Connection>>),
    Later(BoxFuture<'static, io::Result<Option<Box<Connection>>>>),
}

/// Identifies the caller in a turn of its user.
pub fn identify(
    mut arrival: Arrival,
    mut peer: Peer,
    known: Option<Found>,
    shared: &Arc<ServerState>,
) -> io::Result<Identified> {
    let groups = peer::few_groups(arrival.stream.as_fd())?;
    let has_exe_rules = shared.registry.borrow().has_exe_rules;
    match groups {
        Some(groups) if !has_exe_rules => {
            let is_admitted = arrival.set_groups(&mut peer, groups, shared);
            Ok(Identified::Now(is_admitted.then(|| arrival.connection(peer, known, shared))))
        }
        groups => {
            let shared = Arc::clone(shared);
            let identified = identify_later(arrival, peer, groups, Arc::clone(&shared));
            let connected = identified.map_ok(move |identified| {
                identified.map(|(arrival, peer)| arrival.connection(peer, None, &shared))
            });
            Ok(Identified::Later(Box::pin(connected)))
        }
    }
}

/// Identifies the caller in a task: its connection, its place and a session of its own. `None` if it is turned away.
pub async fn identify_in_task(
    arrival: Arrival,
    shared: &Arc<ServerState>,
) -> io::Result<Option<(Stream, Place, Arc<Session>)>> {
    let user_queue = Arc::clone(arrival.user_queue());
    let turn = user_queue.turn().await;
    let (peer, groups) = (arrival.peer(None)?, peer::few_groups(arrival.stream.as_fd())?);
    drop(turn);
    let identified = identify_later(arrival, peer, groups, Arc::clone(shared)).await?;
    Ok(identified.map(|(Arrival { stream, place, .. }, peer)| {
        (stream, place, Arc::new(Session::new(Arc::clone(shared), peer)))
    }))
}

/// Waits for what it takes to identify the caller. Mostly ready at once. `None` if it is turned away.
async fn identify_later(
    mut arrival: Arrival,
    mut peer: Peer,
    few_groups: Option<Groups>,
    shared: Arc<ServerState>,
) -> io::Result<Option<(Arrival, Peer)>> {
    let is_admitted = if let Some(groups) = few_groups {
        arrival.set_groups(&mut peer, groups, &shared)
    } else {
        let groups = Box::pin(many_groups(&arrival.stream, &arrival.place.held.allowance, &shared)).await?;
        let user_queue = Arc::clone(arrival.user_queue());
        let _turn = user_queue.turn().await;
        user_queue.spend(SHARE_MANY_GROUPS_UNITS);
        arrival.set_groups(&mut peer, groups, &shared)
    };
    if !is_admitted {
        return Ok(None);
    }
    // The caller may run a file that has just replaced the one that a rule means.
    let has_exe_rules = shared.registry.borrow().has_exe_rules;
    if has_exe_rules && let Some(exe) = &peer.facts().exe {
        Box::pin(shared.names.recheck(exe)).await;
    }
    Ok(Some((arrival, peer)))
}

/// Reads a long list of groups on another thread, one list at a time, for users in turn: it takes a processor for longer than
/// most requests.
async fn many_groups(stream: &Stream, allowance: &Allowance, shared: &ServerState) -> io::Result<Groups> {
    let _of_user = allowance.reading_groups.lock().await;
    let _of_all = shared.reading_groups.lock().await;
    if has_hung_up(stream) {
        return Err(io::ErrorKind::NotConnected.into());
    }
    let (socket, began) = (stream.as_fd().try_clone_to_owned()?, Instant::now());
    let groups = spawn_blocking(move || peer::all_groups(socket.as_fd())).await.map_err(io::Error::other)?;
    // At most a tenth of a processor: not every kernel can be interrupted meanwhile, and others wait then.
    sleep(9 * began.elapsed()).await;
    groups
}

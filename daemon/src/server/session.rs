//! The requests of one caller: decide, then answer. Knows messages and not bytes.
//!
//! A request uses the registry that was in force when it began. If the registry or a resolved id changes while a request
//! waits, the session decides again under the new one.

mod authorize;
mod explain;
mod failure;
mod get;
mod headers;
mod held;
mod refresh;
mod status;
mod view;
mod watch;

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokend_protocol::{
    ErrorCode, ErrorReply, Message, Reply, Request, StatusRequest, TokenName, VERSION, Variant, VersionReply,
    pack, unpack,
};
use tokio::sync::MutexGuard;
use tokio_util::task::AbortOnDropHandle;

use self::authorize::Remembered;
pub use self::failure::refusal;
pub use self::held::LastHeld;
pub use self::watch::Watch;
use crate::clock::Instant;
use crate::engine::registry::Registry;
use crate::peer::Peer;
use crate::quota::Allowance;
use crate::server::ServerState;
use crate::server::audit::{Operation, Record, Refusal};
use crate::server::fair_queue::UserQueue;

/// The cost of the work on many tokens that is done in one turn. Other users have their turns in between, so that a list
/// of thousands of tokens delays nobody.
const STRETCH_UNITS: u32 = 8;

/// One connected caller: a process with some user and groups, on one connection or on several.
#[derive(Debug)]
pub struct Session {
    pub shared: Arc<ServerState>,
    pub peer: Peer,
    /// The quota account of the caller's user.
    allowance: Arc<Allowance>,
    pub user_queue: Arc<UserQueue>,
    /// Never locked across an await.
    remembered: Mutex<Remembered>,
}

/// Which token a caller asks for, and what it wants to do with it.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    operation: Operation,
    name: &'a TokenName,
    variant: &'a Variant,
}

impl Session {
    pub fn new(shared: Arc<ServerState>, peer: Peer) -> Self {
        let allowance = shared.allowances.of(peer.caller().uid, shared.clock.now());
        let user_queue = shared.fair_queue.of(peer.caller().uid);
        Self { shared, peer, allowance, user_queue, remembered: Mutex::default() }
    }

    /// Takes another turn before each stretch of so many tokens. Only for the work of a task: see [`in_task`].
    async fn turn<'a>(&'a self, turn: &mut Option<MutexGuard<'a, ()>>, index: usize, stretch: usize) {
        if index.is_multiple_of(stretch) {
            drop(turn.take());
            *turn = Some(self.user_queue.turn().await);
            self.user_queue.spend(STRETCH_UNITS);
        }
    }

    /// Answers any request but [`Request::Watch`], which has many answers: see [`Session::watch`]. Lists and status take
    /// turns, so they need a task: see [`in_task`].
    pub async fn answer(&self, request: Request) -> Reply {
        let answer = match request {
            Request::Get(request) => self.get(request).await,
            Request::Headers(request) => self.headers(request).await,
            Request::List(page) => Ok(self.list(page).await),
            Request::Status(request) => self.status(request).await,
            Request::Refresh(request) => self.refresh(request).await,
            Request::Reject(request) => self.reject(request).await,
            Request::Watch(_) => Err(refusal(ErrorCode::InvalidRequest, "a watch has no single answer")),
            Request::Explain(request) => self.explain(request).await,
            Request::Version => Ok(Reply::Version(VersionReply {
                daemon: env!("CARGO_PKG_VERSION").to_owned(),
                oldest: VERSION,
                newest: VERSION,
                highest_request: Request::HIGHEST,
            })),
        };
        answer.unwrap_or_else(Reply::Error)
    }

    /// The registry in force.
    fn registry(&self) -> Arc<Registry> {
        self.shared.registry.borrow().clone()
    }

    fn deadline(&self, deadline_ms: u32) -> Instant {
        self.shared.clock.now().after(Duration::from_millis(deadline_ms.into()))
    }

    /// The audit record of a decision.
    fn decided<'a>(&'a self, asked: Asked<'a>, decision: Result<&'a str, Refusal>) -> Record<'a> {
        Record::new(self.peer.caller(), asked.operation, Some(asked.name), decision)
    }

    fn audit(&self, asked: Asked<'_>, decision: Result<&str, Refusal>) {
        self.shared.audit.record(&self.decided(asked, decision), &self.peer);
    }
}

/// Whether the answer takes turns, which it can only in a task of its own.
pub fn is_long(request: &Request) -> bool {
    matches!(request, Request::List(_) | Request::Status(StatusRequest { name: None, .. }))
}

/// Runs work that takes turns as a task, which ends when the result is not awaited any more.
pub fn in_task<T: Send + 'static>(
    work: impl Future<Output = Result<T, ErrorReply>> + Send + 'static,
) -> impl Future<Output = Result<T, ErrorReply>> {
    let task = AbortOnDropHandle::new(tokio::spawn(work));
    let failed =
        || refusal(ErrorCode::Unavailable, "the daemon failed over this request; its log has the reason");
    task.map(move |joined| joined.unwrap_or_else(|_| Err(failed())))
}

/// Waits with a request in hand. Unless the result is ready at once, the request is encoded meanwhile, so that many
/// calls that wait take little memory. Not for requests of operators, who are trusted with that much.
async fn hold<R: Serialize + DeserializeOwned, T>(
    request: R,
    wait: impl Future<Output = T>,
) -> Result<(R, T), ErrorReply> {
    let mut wait = pin!(wait);
    if let Some(result) = wait.as_mut().now_or_never() {
        return Ok((request, result));
    }
    let unencodable = || refusal(ErrorCode::InvalidRequest, "the request cannot be encoded");
    let packed = pack(&request).ok_or_else(unencodable)?;
    drop(request);
    let result = wait.await;
    Ok((unpack(&packed).ok_or_else(unencodable)?, result))
}

#[cfg(test)]
mod tests;

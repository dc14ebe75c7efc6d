//! The requests of one caller: decide, then answer. Knows messages and not bytes.
//!
//! A request uses the registry that was in force when it began. If the registry or a resolved id changes while a request
//! waits, the session decides again under the new one.

mod authorize;
mod explain;
mod failure;
mod get;
mod headers;
mod refresh;
mod status;
mod view;
mod watch;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokend_protocol::{ErrorCode, Message, Reply, Request, TokenName, VERSION, Variant, VersionReply};

use self::authorize::Remembered;
pub use self::failure::refusal;
pub use self::watch::Watch;
use crate::clock::Instant;
use crate::engine::registry::Registry;
use crate::peer::Peer;
use crate::quota::Allowance;
use crate::server::ServerState;
use crate::server::audit::{Operation, Record, Refusal};
use crate::server::fair_queue::UserQueue;

/// Tokens that one turn checks. Other users have their turns in between, so that a list of thousands of tokens delays
/// nobody.
const CHECKED_IN_A_TURN: usize = 32;

/// The cost of these checks, in units of a turn.
const CHECK_UNITS: u32 = 8;

/// One connected caller.
#[derive(Debug)]
pub struct Session {
    shared: Arc<ServerState>,
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
        let allowance = shared.allowances.of(peer.facts().uid, shared.clock.now());
        let user_queue = shared.fair_queue.join(peer.facts().uid);
        Self { shared, peer, allowance, user_queue, remembered: Mutex::default() }
    }

    /// Lets other users have their turns each time that [`CHECKED_IN_A_TURN`] tokens have been checked.
    async fn pause(&self, index: usize) {
        if index % CHECKED_IN_A_TURN == CHECKED_IN_A_TURN - 1 {
            self.user_queue.pause(CHECK_UNITS).await;
        }
    }

    /// Answers any request but [`Request::Watch`], which has many answers: see [`Session::watch`].
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
        Record::new(self.peer.facts(), asked.operation, Some(asked.name), decision)
    }

    fn audit_allowed(&self, asked: Asked<'_>, reason: &str) {
        self.shared.audit.record(&self.decided(asked, Ok(reason)));
    }

    fn audit_refused(&self, asked: Asked<'_>, reason: Refusal) {
        self.shared.audit.record(&self.decided(asked, Err(reason)));
    }
}

#[cfg(test)]
mod tests;

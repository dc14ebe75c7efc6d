//! Takes parts of the user's quota for requests, and refuses requests that would exceed it.

use tokend_protocol::{ErrorCode, ErrorReply};

use super::{Asked, Session, refusal};
use crate::quota::{Held, QuotaExceeded, Rate, Resource};
use crate::server::audit::{Operation, Refusal};

impl Session {
    /// Takes a part of the quota for a connection, whatever it asked for.
    pub fn take(&self, kind: Resource, amount: usize) -> Result<Held, ErrorReply> {
        self.allowance.take(kind, amount).map_err(|excess| {
            self.shared.audit.over_quota(self.peer.facts(), Operation::Request, excess.reason);
            self.overloaded(excess)
        })
    }

    /// Takes a place among the user's requests that wait for a provider. Also counts the request if it makes the daemon ask
    /// the provider.
    pub(super) fn wait_for_provider(&self, asked: Asked<'_>, asks: bool) -> Result<Held, ErrorReply> {
        let take = || {
            let held = self.allowance.take(Resource::Waiting, 1)?;
            if asks {
                self.allowance.count(Rate::ProviderCalls, self.shared.clock.now())?;
            }
            Ok(held)
        };
        take().map_err(|excess| self.over_quota(asked, excess))
    }

    /// Counts a refusal.
    pub(super) fn count_refusal(&self) -> Result<(), QuotaExceeded> {
        self.allowance.count(Rate::Refusals, self.shared.clock.now())
    }

    /// Audits that a request for a token exceeds the quota, and returns the error reply.
    pub(super) fn over_quota(&self, asked: Asked<'_>, excess: QuotaExceeded) -> ErrorReply {
        let reason = Refusal::TooMuch(excess.reason);
        self.shared.audit.refused(self.peer.facts(), asked.operation, asked.name, reason);
        self.overloaded(excess)
    }

    /// The error reply, with the time of the next possible attempt if that is known.
    pub(super) fn overloaded(&self, excess: QuotaExceeded) -> ErrorReply {
        let Some(at) = excess.possible_at else {
            return refusal(ErrorCode::Overloaded, excess.reason);
        };
        let wait = at.since(self.shared.clock.now()).as_secs() + 1;
        let message = format!("{}; there is room again in {wait} s", excess.reason);
        let next_attempt = Some(self.shared.clock.timestamp(at));
        ErrorReply { next_attempt, ..refusal(ErrorCode::Overloaded, message) }
    }
}

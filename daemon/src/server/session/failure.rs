//! Error replies: for want of a token, or because the user's quota is used up.

use tokend_protocol::{ErrorCode, ErrorReply};

use super::{Asked, Session, view};
use crate::clock::Instant;
use crate::engine::credential::{Failed, Unobtainable};
use crate::quota::{Held, QuotaExceeded, Resource};
use crate::server::audit::{Operation, Record, Refusal};

impl Session {
    /// The error reply to a request that got no token.
    pub(super) fn unobtainable(&self, reason: Unobtainable) -> ErrorReply {
        match reason {
            Unobtainable::DeadlineExceeded => {
                refusal(ErrorCode::DeadlineExceeded, "the deadline passed before the provider answered")
            }
            Unobtainable::Ended => refusal(ErrorCode::Unavailable, "the configuration of the token changed"),
            Unobtainable::Failed(failed, next) => self.failed(&failed, next),
            Unobtainable::MinTtlUnreachable(best) => ErrorReply {
                best_ttl_ms: Some(u64::try_from(best.as_millis()).unwrap_or(u64::MAX)),
                ..refusal(ErrorCode::MinTtlUnreachable, "the provider's tokens do not last as long as asked")
            },
        }
    }

    /// The error reply after a failed token request.
    pub(super) fn failed(&self, failed: &Failed, next_attempt: Option<Instant>) -> ErrorReply {
        let code = if failed.needs_operator { ErrorCode::NeedsOperator } else { ErrorCode::Unavailable };
        ErrorReply {
            class: Some(failed.class),
            next_attempt: next_attempt.map(|at| self.shared.clock.timestamp(at)),
            ..refusal(code, view::message(failed, self.is_operator(&self.registry())))
        }
    }

    /// Takes a part of the quota for a connection, whatever it asked for.
    pub fn take(&self, kind: Resource, amount: usize) -> Result<Held, ErrorReply> {
        self.allowance.take(kind, amount).map_err(|excess| {
            let refusal = Refusal::TooMuch(excess.reason);
            let record = Record::new(self.peer.caller(), Operation::Request, None, Err(refusal));
            self.shared.audit.record(&record, &self.peer);
            self.overloaded(excess)
        })
    }

    /// Takes a place among the user's requests that wait for a provider. Also counts the request if it makes the daemon ask
    /// the provider.
    pub(super) fn wait_for_provider(&self, asked: Asked<'_>, asks: bool) -> Result<Held, ErrorReply> {
        let take = || {
            let held = self.allowance.take(Resource::Waiting, 1)?;
            if asks {
                self.allowance.count_provider_call(self.shared.clock.now())?;
            }
            Ok(held)
        };
        take().map_err(|excess| self.over_quota(asked, excess))
    }

    /// Audits that a request for a token exceeds the quota, and returns the error reply.
    pub(super) fn over_quota(&self, asked: Asked<'_>, excess: QuotaExceeded) -> ErrorReply {
        self.audit(asked, Err(Refusal::TooMuch(excess.reason)));
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

/// An error reply with a code and a message only.
pub fn refusal(code: ErrorCode, message: impl Into<String>) -> ErrorReply {
    ErrorReply { code, message: message.into(), class: None, next_attempt: None, best_ttl_ms: None }
}

//! Error replies.

use tokend_protocol::{ErrorCode, ErrorReply};

use super::view::{self, Detail};
use super::{Session, millis};
use crate::clock::Instant;
use crate::engine::credential::{Failed, Unobtainable};

impl Session {
    /// How much the caller is told about failures.
    pub(super) fn detail(&self) -> Detail {
        if self.is_operator(&self.registry()) { Detail::Full } else { Detail::ForCallers }
    }

    /// The error reply to a request that got no token.
    pub(super) fn unobtainable(&self, reason: Unobtainable) -> ErrorReply {
        match reason {
            Unobtainable::DeadlineExceeded => {
                refusal(ErrorCode::DeadlineExceeded, "the deadline passed before the provider answered")
            }
            Unobtainable::Ended => refusal(ErrorCode::Unavailable, "the configuration of the token changed"),
            Unobtainable::Failed(failed, next) => self.failed(&failed, next),
            Unobtainable::MinTtlUnreachable(best) => ErrorReply {
                best_ttl_ms: Some(millis(best)),
                ..refusal(ErrorCode::MinTtlUnreachable, "the provider's tokens do not last as long as asked")
            },
        }
    }

    /// The error reply after a failed token request.
    pub(super) fn failed(&self, failed: &Failed, next_attempt: Option<Instant>) -> ErrorReply {
        let code = if failed.needs_operator() { ErrorCode::NeedsOperator } else { ErrorCode::Unavailable };
        let message =
            view::with_detail(&failed.message, failed.detail.as_deref(), failed.class, self.detail());
        ErrorReply {
            class: Some(failed.class),
            next_attempt: next_attempt.map(|at| self.shared.clock.timestamp(at)),
            ..refusal(code, message)
        }
    }
}

/// An error reply with a code and a message only.
pub fn refusal(code: ErrorCode, message: impl Into<String>) -> ErrorReply {
    ErrorReply { code, message: message.into(), class: None, next_attempt: None, best_ttl_ms: None }
}

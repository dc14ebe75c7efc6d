//! What a request takes of its user's quota, and how one is refused that would take too much.

use std::time::Duration;

use tokend_protocol::{ErrorCode, ErrorReply, Fingerprint, TokenName};

use super::{Session, refusal};
use crate::clock::Instant;
use crate::engine::credential::Credential;
use crate::engine::schedule::Serving;
use crate::quota::{Held, QuotaExceeded, Rate, Resource};
use crate::server::audit::{Operation, Refusal};

impl Session {
    /// Takes a part of the quota for a connection, whatever it asked for.
    pub fn take(&self, kind: Resource, amount: usize) -> Result<Held, ErrorReply> {
        self.allowance.take(kind, amount).map_err(|excess| {
            self.shared.audit.over_quota(self.peer.facts(), Refusal::TooMuch(excess.reason));
            self.overloaded(excess)
        })
    }

    /// What a call takes that may wait for a token; nothing where one is at hand, or will not be asked for.
    pub(super) fn may_obtain(
        &self,
        credential: &Credential,
        min_ttl: Duration,
        deadline: Instant,
    ) -> Result<Option<Held>, QuotaExceeded> {
        let Serving::Wait { in_flight } = credential.may_serve(min_ttl) else { return Ok(None) };
        if deadline <= self.shared.clock.now() {
            return Ok(None);
        }
        let held = self.allowance.take(Resource::Waiting, 1)?;
        if !in_flight {
            self.allowance.count(Rate::ProviderCalls, self.shared.clock.now())?;
        }
        Ok(Some(held))
    }

    /// What a call takes that has the provider asked.
    pub(super) fn may_ask_provider(&self) -> Result<Held, QuotaExceeded> {
        let held = self.allowance.take(Resource::Waiting, 1)?;
        self.allowance.count(Rate::ProviderCalls, self.shared.clock.now())?;
        Ok(held)
    }

    /// The same of a report that a token was refused, which has the provider asked only where it is current.
    pub(super) fn may_reject(
        &self,
        credential: &Credential,
        refused: Fingerprint,
    ) -> Result<Held, QuotaExceeded> {
        let snapshot = credential.snapshot();
        let is_current = snapshot.token.as_ref().is_some_and(|token| token.fingerprint == refused);
        let held = self.allowance.take(Resource::Waiting, 1)?;
        if is_current && !snapshot.in_flight {
            self.allowance.count(Rate::ProviderCalls, self.shared.clock.now())?;
        }
        Ok(held)
    }

    /// Counts a refusal: whether there were too many.
    pub(super) fn count_refusal(&self) -> Result<(), QuotaExceeded> {
        self.allowance.count(Rate::Refusals, self.shared.clock.now())
    }

    /// The refusal of a request for a token, which is recorded.
    pub(super) fn over_quota(&self, verb: Operation, name: &TokenName, excess: QuotaExceeded) -> ErrorReply {
        self.shared.audit.refused(self.peer.facts(), verb, name, Refusal::TooMuch(excess.reason));
        self.overloaded(excess)
    }

    /// The refusal of a form of a token while all that there is room for are in use, which is recorded.
    pub(super) fn no_room_for_form(&self, verb: Operation, name: &TokenName) -> ErrorReply {
        const ALL_IN_USE: &str = "too many other forms of the token are in use";
        self.shared.audit.refused(self.peer.facts(), verb, name, Refusal::TooMuch(ALL_IN_USE));
        refusal(ErrorCode::Overloaded, ALL_IN_USE)
    }

    /// The refusal, with the time from which on the call is worth a try where that can be told.
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

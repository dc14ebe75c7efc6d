//! `Refresh`: an operator has the provider asked for a new token now. `Reject`: a caller reports that an API refused a
//! token.

use std::time::Duration;

use tokend_protocol::{
    ErrorCode, ErrorReply, RefreshRequest, RefreshedReply, RejectOutcome, RejectRequest, RejectedReply,
    Reply, TokenInfo,
};

use super::{Asked, Session, hold, refusal, view};
use crate::engine::credential::{Attempted, Credential, Rejected};
use crate::server::audit::Operation;

impl Session {
    pub(super) async fn refresh(&self, request: RefreshRequest) -> Result<Reply, ErrorReply> {
        let asked = Asked { operation: Operation::Refresh, name: &request.name, variant: &request.variant };
        let (_, reason, credential) = self.authorized(asked, Self::authorize_operator)?;
        self.audit(asked, Ok(&reason));
        let _held = self.wait_for_provider(asked, true)?;
        let attempted = credential.refresh(self.deadline(request.deadline_ms)).await;
        self.authorize_operator(&self.registry(), asked)?;
        let attempted = attempted.map_err(|reason| self.unobtainable(reason))?;
        let changed = attempted == Attempted::Changed;
        let info = self.after_attempt(&credential, attempted)?;
        Ok(Reply::Refreshed(RefreshedReply { info, changed }))
    }

    pub(super) async fn reject(&self, request: RejectRequest) -> Result<Reply, ErrorReply> {
        let operation = Operation::Reject;
        let asked = Asked { operation, name: &request.name, variant: &request.variant };
        let (_, reason, credential) = self.authorized(asked, Self::authorize)?;
        self.audit(asked, Ok(&reason));
        // The provider is asked only where the refused token is the current one.
        let snapshot = credential.snapshot();
        let is_current =
            snapshot.token.as_ref().is_some_and(|token| token.fingerprint == request.fingerprint);
        let _held = self.wait_for_provider(asked, is_current && !snapshot.in_flight)?;
        let (refused, deadline) = (request.fingerprint, self.deadline(request.deadline_ms));
        let (request, rejected) = hold(request, credential.reject(refused, deadline)).await?;
        let asked = Asked { operation, name: &request.name, variant: &request.variant };
        self.authorize(&self.registry(), asked)?;
        let (attempted, outcome) = match rejected.map_err(|reason| self.unobtainable(reason))? {
            Rejected::Superseded => (Attempted::Unchanged, RejectOutcome::Superseded),
            Rejected::TooSoon => (Attempted::Unchanged, RejectOutcome::TooSoon),
            Rejected::Attempted(Attempted::Changed) => (Attempted::Changed, RejectOutcome::Replaced),
            Rejected::Attempted(attempted) => (attempted, RejectOutcome::Unchanged),
        };
        let info = self.after_attempt(&credential, attempted)?;
        Ok(Reply::Rejected(RejectedReply { outcome, info }))
    }

    /// The token that is held after an attempt.
    fn after_attempt(&self, credential: &Credential, attempted: Attempted) -> Result<TokenInfo, ErrorReply> {
        if let Attempted::Failed(failed, next_attempt) = attempted {
            return Err(self.failed(&failed, next_attempt));
        }
        let snapshot = credential.snapshot();
        let held = snapshot.usable(self.shared.clock.now(), Duration::ZERO);
        let token = held.ok_or_else(|| refusal(ErrorCode::Unavailable, "no valid token is held any more"))?;
        Ok(view::token_info(&token, &snapshot, &self.shared.clock))
    }
}

//! `Refresh`: an operator has the provider asked for a new token now.

use std::time::Duration;

use tokend_protocol::{ErrorCode, ErrorReply, RefreshRequest, RefreshedReply, Reply, TokenInfo};

use super::{Asked, Session, refusal, view};
use crate::engine::credential::{Attempted, Credential};
use crate::server::audit::Operation;

impl Session {
    pub(super) async fn refresh(&self, request: RefreshRequest) -> Result<Reply, ErrorReply> {
        let asked = Asked { operation: Operation::Refresh, name: &request.name, variant: &request.variant };
        let (registry, generation) = self.policy();
        let (entry, reason) = self.authorize_operator(&registry, asked)?;
        let credential = self.credential(asked, &entry)?;
        self.shared.audit.allowed(self.peer.facts(), asked.operation, asked.name, &reason);
        let deadline = self.deadline(request.deadline_ms);
        let _held = self.wait_for_provider(asked, true)?;
        let attempted = credential.refresh(deadline).await;
        if !self.is_in_force(&registry, generation) {
            self.authorize_operator(&self.registry(), asked)?;
        }
        let attempted = attempted.map_err(|reason| self.unobtainable(reason))?;
        let (info, changed) = self.after_attempt(&credential, attempted)?;
        Ok(Reply::Refreshed(RefreshedReply { info, changed }))
    }

    /// The held token after an attempt, and whether it is another one than before.
    pub(super) fn after_attempt(
        &self,
        credential: &Credential,
        attempted: Attempted,
    ) -> Result<(TokenInfo, bool), ErrorReply> {
        let snapshot = credential.snapshot();
        if let Attempted::Failed(failed, next_attempt) = attempted {
            return Err(self.failed(&failed, next_attempt));
        }
        let held = snapshot.usable(self.shared.clock.now(), Duration::ZERO);
        let token = held.ok_or_else(|| refusal(ErrorCode::Unavailable, "no valid token is held any more"))?;
        let info = view::token_info(&token, &snapshot, &self.shared.clock);
        Ok((info, attempted == Attempted::Changed))
    }
}

//! Requests that have the provider asked for another token.

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{
    ErrorCode, ErrorReply, RefreshRequest, RefreshedReply, RejectOutcome, RejectRequest, RejectedReply,
    Reply, TokenInfo,
};

use super::entitlement::Entitled;
use super::{Session, refusal};
use crate::access::directory::Patience;
use crate::engine::credential::{Attempted, Credential, Rejected};
use crate::server::audit::Operation;

impl Session {
    pub(super) async fn refresh(&self, request: RefreshRequest) -> Result<Reply, ErrorReply> {
        let Entitled { entry, grounds } = self.operated(&request.name, Operation::Refresh).await?;
        let credential = self.credential((Operation::Refresh, &request.name), &entry, &request.variant)?;
        self.shared.audit.allowed(self.peer.facts(), Operation::Refresh, &request.name, &grounds);
        let deadline = self.deadline(request.deadline_ms);
        let over_quota = |excess| self.over_quota(Operation::Refresh, &request.name, excess);
        let _held = self.may_ask_provider().map_err(over_quota)?;
        let registry = self.registry();
        let attempted = credential.refresh(deadline).await;
        if !Arc::ptr_eq(&registry, &self.registry()) {
            self.operated(&request.name, Operation::Refresh).await?;
        }
        let attempted = attempted.map_err(|reason| self.unobtainable(reason))?;
        let (info, changed) = self.after_attempt(&credential, attempted)?;
        Ok(Reply::Refreshed(RefreshedReply { info, changed }))
    }

    pub(super) async fn reject(&self, request: RejectRequest) -> Result<Reply, ErrorReply> {
        let entitled = self
            .entitled(&request.name, &request.variant, Operation::Reject, Patience::of_a_request())
            .await?;
        let credential =
            self.credential((Operation::Reject, &request.name), &entitled.entry, &request.variant)?;
        self.shared.audit.allowed(self.peer.facts(), Operation::Reject, &request.name, &entitled.grounds);
        let deadline = self.deadline(request.deadline_ms);
        let over_quota = |excess| self.over_quota(Operation::Reject, &request.name, excess);
        let _held = self.may_reject(&credential, request.fingerprint).map_err(over_quota)?;
        let registry = self.registry();
        let rejected = credential.reject(request.fingerprint, deadline).await;
        if !Arc::ptr_eq(&registry, &self.registry()) {
            self.entitled(&request.name, &request.variant, Operation::Reject, Patience::of_a_request())
                .await?;
        }
        let rejected = rejected.map_err(|reason| self.unobtainable(reason))?;
        let (attempted, outcome) = match rejected {
            Rejected::Superseded => (Attempted::Unchanged, RejectOutcome::Superseded),
            Rejected::TooSoon => (Attempted::Unchanged, RejectOutcome::TooSoon),
            Rejected::Attempted(Attempted::Changed) => (Attempted::Changed, RejectOutcome::Replaced),
            Rejected::Attempted(attempted) => (attempted, RejectOutcome::Unchanged),
        };
        let (info, _) = self.after_attempt(&credential, attempted)?;
        Ok(Reply::Rejected(RejectedReply { outcome, info }))
    }

    /// The held token after an attempt, and whether it is another one.
    fn after_attempt(
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
        Ok((self.info(credential, &token), attempted == Attempted::Changed))
    }
}

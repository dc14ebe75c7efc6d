//! `Reject`: a caller reports that an API refused a token.

use tokend_protocol::{ErrorReply, RejectOutcome, RejectRequest, RejectedReply, Reply};

use super::{Asked, Session};
use crate::engine::credential::{Attempted, Rejected};
use crate::server::audit::Operation;

impl Session {
    pub(super) async fn reject(&self, request: RejectRequest) -> Result<Reply, ErrorReply> {
        let asked = Asked { operation: Operation::Reject, name: &request.name, variant: &request.variant };
        let (registry, generation) = self.policy();
        let authorized = self.authorize(&registry, asked)?;
        let credential = self.credential(asked, &authorized.entry)?;
        self.shared.audit.allowed(self.peer.facts(), asked.operation, asked.name, &authorized.reason);
        let deadline = self.deadline(request.deadline_ms);
        // The provider is asked only where the refused token is the current one.
        let snapshot = credential.snapshot();
        let is_current =
            snapshot.token.as_ref().is_some_and(|token| token.fingerprint == request.fingerprint);
        let _held = self.wait_for_provider(asked, is_current && !snapshot.in_flight)?;
        let rejected = credential.reject(request.fingerprint, deadline).await;
        if !self.is_in_force(&registry, generation) {
            self.authorize(&self.registry(), asked)?;
        }
        let (attempted, outcome) = match rejected.map_err(|reason| self.unobtainable(reason))? {
            Rejected::Superseded => (Attempted::Unchanged, RejectOutcome::Superseded),
            Rejected::TooSoon => (Attempted::Unchanged, RejectOutcome::TooSoon),
            Rejected::Attempted(Attempted::Changed) => (Attempted::Changed, RejectOutcome::Replaced),
            Rejected::Attempted(attempted) => (attempted, RejectOutcome::Unchanged),
        };
        let (info, _) = self.after_attempt(&credential, attempted)?;
        Ok(Reply::Rejected(RejectedReply { outcome, info }))
    }
}

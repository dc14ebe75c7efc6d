//! `Get`: the token itself. `Headers` gets its token here too.

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{CallOptions, ErrorCode, ErrorReply, GetRequest, Reply, TokenReply};

use super::authorize::Authorized;
use super::{Asked, Session, refusal, view};
use crate::clock::Instant;
use crate::engine::credential::{Credential, Token};
use crate::engine::registry::Entry;
use crate::engine::schedule::Serving;
use crate::engine::variants::{self, NoVariant};
use crate::server::audit::{Operation, Refusal};

impl Session {
    pub(super) async fn get(&self, request: GetRequest) -> Result<Reply, ErrorReply> {
        let GetRequest { name, options, variant } = &request;
        let asked = Asked { operation: Operation::Get, name, variant };
        let deadline = self.deadline(options.deadline_ms);
        loop {
            let (registry, generation) = self.policy();
            let authorized = self.authorize(&registry, asked)?;
            let credential = self.credential(asked, &authorized.entry)?;
            let token = self.obtain(asked, &credential, *options, deadline).await;
            if self.is_in_force(&registry, generation) {
                let token = token?;
                let info = view::token_info(&token, &credential.snapshot(), &self.shared.clock);
                self.handed_out(asked, &authorized, &token);
                return Ok(Reply::Token(TokenReply {
                    info,
                    token: token.secret.clone(),
                    token_type: token.token_type.to_string(),
                    scope: token.scope.as_deref().map(str::to_owned),
                }));
            }
        }
    }

    /// The credential of the variant that was asked for.
    pub(super) fn credential(&self, asked: Asked<'_>, entry: &Entry) -> Result<Arc<Credential>, ErrorReply> {
        const ALL_IN_USE: &str = "too many other variants of the token are in use";
        let found = entry.variant(asked.variant, &self.allowance, &self.shared.credential_factory);
        found.map_err(|reason| match reason {
            NoVariant::NotPermitted(message) => self.no_such_variant(asked, message),
            NoVariant::TooMany(excess) => self.over_quota(asked, excess),
            NoVariant::AllInUse => {
                let reason = Refusal::TooMuch(ALL_IN_USE);
                self.shared.audit.refused(self.peer.facts(), asked.operation, asked.name, reason);
                refusal(ErrorCode::Overloaded, ALL_IN_USE)
            }
        })
    }

    /// Refuses a variant that the configuration allows nobody. The message repeats terms of the caller, so the audit trail
    /// does not have it.
    pub(super) fn no_such_variant(&self, asked: Asked<'_>, message: String) -> ErrorReply {
        self.shared.audit.refused(self.peer.facts(), asked.operation, asked.name, Refusal::NoSuchVariant);
        refusal(ErrorCode::InvalidRequest, message)
    }

    /// The held token, or one from the provider.
    pub(super) async fn obtain(
        &self,
        asked: Asked<'_>,
        credential: &Credential,
        options: CallOptions,
        deadline: Instant,
    ) -> Result<Arc<Token>, ErrorReply> {
        let min_ttl = Duration::from_millis(options.min_ttl_ms.into());
        let _held = match credential.may_serve(min_ttl) {
            Serving::Wait { in_flight } if deadline > self.shared.clock.now() => {
                Some(self.wait_for_provider(asked, !in_flight)?)
            }
            Serving::Wait { .. } | Serving::Token(_) | Serving::Refuse(_) => None,
        };
        credential.obtain(min_ttl, deadline).await.map_err(|reason| self.unobtainable(reason))
    }

    /// Counts and audits a token that is handed out.
    pub(super) fn handed_out(&self, asked: Asked<'_>, authorized: &Authorized, token: &Token) {
        let Authorized { entry, reason, .. } = authorized;
        entry.count_hand_out();
        let variant = variants::as_configured(&entry.settings.variants, asked.variant);
        let asked_for = (asked.name, &variant);
        self.shared.audit.handed_out(
            self.peer.facts(),
            asked.operation,
            asked_for,
            token.fingerprint,
            reason,
        );
    }
}

//! `Get`: the token itself. `Headers` gets its token here too.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{
    CallOptions, ErrorCode, ErrorReply, Fingerprint, GetRequest, Header, HeadersRequest, Reply, TokenInfo,
};

use super::headers::supplied;
use super::{Asked, Session, hold, refusal, view};
use crate::clock::Instant;
use crate::engine::credential::{Credential, Token};
use crate::engine::registry::{Entry, Registry};
use crate::engine::schedule::Serving;
use crate::engine::variants::{self, NoVariant};
use crate::quota::{Held, QuotaExceeded};
use crate::server::audit::{Operation, Place, Record, Refusal};

/// A token that a caller may have, why it may, and the credential of the variant that it asked for.
type Authorized = (Arc<Entry>, Arc<str>, Arc<Credential>);

impl Session {
    pub(super) async fn get(&self, request: GetRequest) -> Result<Reply, ErrorReply> {
        let GetRequest { name, options, variant } = request;
        let (supplied, omitted) = (Vec::new(), Vec::new());
        let request = HeadersRequest { name, options, supplied, omitted, variant };
        let (token, info, _) = self.hand_out(Operation::Get, request).await?;
        Ok(Reply::Token(view::token_reply(&token, info)))
    }

    /// Decides about a `get` or a `headers`, and returns the token, and the headers besides `Authorization` if these were
    /// asked for. Begins again if the registry or a resolved name has changed during a wait.
    pub(super) async fn hand_out(
        &self,
        operation: Operation,
        mut request: HeadersRequest,
    ) -> Result<(Arc<Token>, TokenInfo, Vec<Header>), ErrorReply> {
        let options = request.options;
        let deadline = self.deadline(options.deadline_ms);
        let deadline_for_secrets = self.deadline_for_secrets(options);
        let of_caller = |entry: &Entry, request: &HeadersRequest| match operation {
            Operation::Headers => {
                supplied(&entry.settings.caller_headers, &request.supplied, &request.omitted)
                    .map_err(|message| refusal(ErrorCode::InvalidRequest, message))
            }
            _ => Ok(Vec::new()),
        };
        loop {
            let (registry, ids) = (self.registry(), self.shared.names.ids.subscribe());
            let asked = Asked { operation, name: &request.name, variant: &request.variant };
            let (entry, reason) = self.authorize(&registry, asked)?;
            // Checked first: starting a variant may evict another one.
            of_caller(&entry, &request)?;
            let Some(credential) = self.credential(asked, &registry, &entry)? else { continue };
            let mut headers = Vec::new();
            // Before the token is obtained, so that it does not age meanwhile.
            if operation == Operation::Headers {
                let read = self.configured_headers(request.name.clone(), &entry, deadline_for_secrets);
                let read = hold(request, read).await?;
                (request, headers) = (read.0, read.1?);
            }
            let asked = Asked { operation, name: &request.name, variant: &request.variant };
            let held = self.place_to_wait(asked, &credential, options, deadline)?;
            let min_ttl = Duration::from_millis(options.min_ttl_ms.into());
            let obtained = hold(request, credential.obtain(min_ttl, deadline)).await?;
            drop(held);
            let token = obtained.1.map_err(|reason| self.unobtainable(reason));
            request = obtained.0;
            let is_other_registry = !Arc::ptr_eq(&registry, &self.shared.registry.borrow());
            if is_other_registry || ids.has_changed().unwrap_or(true) {
                continue;
            }
            let token = token?;
            headers.extend(of_caller(&entry, &request)?);
            entry.count_hand_out();
            let asked = Asked { operation, name: &request.name, variant: &request.variant };
            self.audit_allowed(asked, &entry, &reason, Some(token.fingerprint));
            let info = view::token_info(&token, &credential.snapshot(), &self.shared.clock);
            return Ok((token, info, headers));
        }
    }

    /// Audits an allowed request. `fingerprint` is that of the token that is handed out, if one is.
    pub(super) fn audit_allowed(
        &self,
        asked: Asked<'_>,
        entry: &Entry,
        reason: &str,
        fingerprint: Option<Fingerprint>,
    ) -> Option<Place> {
        let variant = Cow::Owned(variants::as_configured(&entry.settings.variants, asked.variant));
        let record = Record { variant, fingerprint, ..self.decided(asked, Ok(reason)) };
        self.shared.audit.record(&record, &self.peer)
    }

    /// Decides about a request by `decide`, and finds the credential. Begins again if a reload comes in between.
    pub(super) fn authorized(
        &self,
        asked: Asked<'_>,
        decide: impl Fn(&Self, &Arc<Registry>, Asked<'_>) -> Result<(Arc<Entry>, Arc<str>), ErrorReply>,
    ) -> Result<Authorized, ErrorReply> {
        loop {
            let registry = self.registry();
            let (entry, reason) = decide(self, &registry, asked)?;
            if let Some(credential) = self.credential(asked, &registry, &entry)? {
                return Ok((entry, reason, credential));
            }
        }
    }

    /// The credential of the variant that was asked for. `None` if a reload has replaced the registry.
    pub(super) fn credential(
        &self,
        asked: Asked<'_>,
        registry: &Arc<Registry>,
        entry: &Entry,
    ) -> Result<Option<Arc<Credential>>, ErrorReply> {
        let is_current = || Arc::ptr_eq(registry, &self.shared.registry.borrow());
        let factory = &self.shared.credential_factory;
        Err(match entry.variant(asked.variant, &self.allowance, factory, is_current) {
            Ok(credential) => return Ok(Some(credential)),
            Err(NoVariant::Replaced) => return Ok(None),
            Err(NoVariant::NotPermitted(message)) => self.no_such_variant(asked, message),
            Err(NoVariant::TooMany(excess)) => self.over_quota(asked, excess),
            Err(NoVariant::AllInUse) => {
                let reason = "too many other variants of the token are in use";
                self.over_quota(asked, QuotaExceeded { reason, possible_at: None })
            }
        })
    }

    /// Refuses a variant that the configuration allows nobody. The message repeats terms of the caller, so the audit trail
    /// does not have it.
    pub(super) fn no_such_variant(&self, asked: Asked<'_>, message: String) -> ErrorReply {
        self.audit(asked, Err(Refusal::NoSuchVariant));
        refusal(ErrorCode::InvalidRequest, message)
    }

    /// Takes quota if the caller would have to wait.
    fn place_to_wait(
        &self,
        asked: Asked<'_>,
        credential: &Credential,
        options: CallOptions,
        deadline: Instant,
    ) -> Result<Option<Held>, ErrorReply> {
        let min_ttl = Duration::from_millis(options.min_ttl_ms.into());
        match credential.may_serve(min_ttl) {
            Serving::Wait { in_flight } if deadline > self.shared.clock.now() => {
                self.wait_for_provider(asked, !in_flight).map(Some)
            }
            Serving::Wait { .. } | Serving::Token(_) | Serving::Refuse(_) => Ok(None),
        }
    }
}

//! The decision about every request: may this caller have that token?
//!
//! The decision is a synchronous function of the caller's facts, the registry and the resolved names. A session
//! remembers which tokens its caller was allowed for as long as neither registry nor names change.
//!
//! A caller that may not have a token must not learn whether the token exists: the answer is the same in either case.

use std::borrow::Cow;
use std::iter::once;
use std::sync::Arc;

use tokend_protocol::{ErrorCode, ErrorReply, Fingerprint, TokenName, Variant};
use tokio::sync::watch::Receiver;

use super::{Asked, Session, refusal};
use crate::access::{Decider, Reason, ResolvedIds, Rule};
use crate::config::{TermKind, TermRules};
use crate::engine::registry::{Entry, Registry};
use crate::server::audit::{Operation, Place, Record, Refusal};

const NOT_ALLOWED: &str = "not allowed, or no such token";

const VARIANT_NOT_ALLOWED: &str =
    "this variant of the token is not allowed, only other scopes, resources or audiences";

/// Tokens that are remembered for a caller. One more clears the memory.
const REMEMBERED_MAX: usize = 256;

/// The tokens that a caller was allowed, each with the reason. Variants and refusals are not remembered.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// Tells whether the decisions still hold.
    in_force: Option<InForce>,
    /// In the order of their names. Most callers have one.
    tokens: Vec<(TokenName, Allowed)>,
}

/// Notices changes of the registry and of the resolved names, by which decisions are made.
#[derive(Debug)]
pub(super) struct InForce {
    registry: Receiver<Arc<Registry>>,
    ids: Receiver<ResolvedIds>,
}

impl InForce {
    pub(super) fn is_unchanged(&self) -> bool {
        matches!((self.registry.has_changed(), self.ids.has_changed()), (Ok(false), Ok(false)))
    }
}

/// A token that a caller was allowed.
#[derive(Debug)]
pub(super) struct Allowed {
    pub(super) entry: Arc<Entry>,
    pub(super) reason: Arc<str>,
    /// The token of the last hand-out by the fast path, and where the audit counts it.
    pub(super) counted: Option<(Fingerprint, Place)>,
}

impl Session {
    /// Decides about a request: the token, and why the caller may have this variant of it.
    ///
    /// # Errors
    /// The caller may not have the token, or not this variant. A token that it may not have and one that does not exist look
    /// the same to anyone but an operator.
    pub(super) fn authorize(
        &self,
        registry: &Arc<Registry>,
        asked: Asked<'_>,
    ) -> Result<(Arc<Entry>, Arc<str>), ErrorReply> {
        let entry = registry.find(asked.name.as_str());
        let decided = self.decide_about(registry, asked.name.as_str(), asked.variant);
        decided.map_err(|reason| {
            if let Some(entry) = entry {
                entry.count_refusal();
            }
            match (reason, entry) {
                (Refusal::NoRuleForVariant, Some(entry)) => {
                    // Only terms with rules of their own: others are the caller's words.
                    let terms = |kind| {
                        let ruled = ruled(entry, asked.variant).filter(|ruled| ruled.kind == kind);
                        ruled.map(|ruled| ruled.term.clone()).collect()
                    };
                    let [scope, resource, audience] = TermKind::ALL.map(terms);
                    let variant = Cow::Owned(Variant { scope, resource, audience });
                    let record = Record { variant, ..self.decided(asked, Err(reason)) };
                    self.shared.audit.record(&record, &self.peer);
                }
                _ => self.audit(asked, Err(reason)),
            }
            match reason {
                Refusal::NoSuchToken if self.is_operator(registry) => {
                    refusal(ErrorCode::UnknownToken, "no such token")
                }
                Refusal::NoRuleForVariant => refusal(ErrorCode::NotAllowed, VARIANT_NOT_ALLOWED),
                _ => refusal(ErrorCode::NotAllowed, NOT_ALLOWED),
            }
        })
    }

    /// Notices changes from now on. Made before a decision, it notices a change during the decision too.
    pub(super) fn in_force(&self) -> InForce {
        InForce { registry: self.shared.registry.subscribe(), ids: self.shared.names.ids.subscribe() }
    }

    /// A token without a variant, if the caller may have it. Decides unless it is remembered.
    pub(super) fn remembered<'a>(
        &self,
        remembered: &'a mut Remembered,
        name: &str,
    ) -> Option<&'a mut Allowed> {
        if !remembered.in_force.as_ref().is_some_and(InForce::is_unchanged) {
            *remembered = Remembered { in_force: Some(self.in_force()), tokens: Vec::new() };
        }
        let tokens = &mut remembered.tokens;
        let mut found = tokens.binary_search_by(|(known, _)| known.as_str().cmp(name));
        if let Err(index) = found {
            let (entry, reason) = self.decide_about(&self.registry(), name, &Variant::default()).ok()?;
            let name = name.parse().ok()?;
            let is_full = tokens.len() >= REMEMBERED_MAX;
            if is_full {
                tokens.clear();
            }
            let index = if is_full { 0 } else { index };
            tokens.reserve_exact(1);
            tokens.insert(index, (name, Allowed { entry, reason, counted: None }));
            found = Ok(index);
        }
        found.ok().and_then(|index| tokens.get_mut(index)).map(|(_, allowed)| allowed)
    }

    fn decide_about(
        &self,
        registry: &Registry,
        name: &str,
        variant: &Variant,
    ) -> Result<(Arc<Entry>, Arc<str>), Refusal> {
        let entry = registry.find(name).ok_or(Refusal::NoSuchToken)?;
        let ids = self.shared.names.ids.borrow();
        let decider = self.decider(registry, &ids, entry.has_rules_about_processes());
        let reason = decide_variant(&decider, entry, variant)?;
        Ok((Arc::clone(entry), reason.into()))
    }

    /// Decides about a request that only operators may make: the token, and why the caller is an operator.
    ///
    /// # Errors
    /// The caller is no operator, or there is no such token.
    pub(super) fn authorize_operator(
        &self,
        registry: &Arc<Registry>,
        asked: Asked<'_>,
    ) -> Result<(Arc<Entry>, Arc<str>), ErrorReply> {
        if let (Some(reason), Some(entry)) = (self.operator(registry), registry.find(asked.name.as_str())) {
            return Ok((Arc::clone(entry), reason.into()));
        }
        // A caller that may have the token learns what is missing. Others get the same answer as for any other name.
        self.authorize(registry, asked)?;
        self.audit(asked, Err(Refusal::NotAnOperator));
        Err(refusal(ErrorCode::NotAllowed, "only an operator may do this"))
    }

    /// Checks that the caller is an operator, for a request about no token.
    ///
    /// # Errors
    /// The caller is no operator. The audit records this.
    pub fn require_operator(&self, operation: Operation) -> Result<(), ErrorReply> {
        if self.is_operator(&self.registry()) {
            return Ok(());
        }
        let record = Record::new(self.peer.caller(), operation, None, Err(Refusal::NotAnOperator));
        self.shared.audit.record(&record, &self.peer);
        Err(refusal(ErrorCode::NotAllowed, "only an operator may do this"))
    }

    /// Why the caller may not have the token. For the log: a caller is not told.
    pub fn reason_of_refusal(&self, name: &TokenName) -> Option<Refusal> {
        self.decide_about(&self.registry(), name.as_str(), &Variant::default()).err()
    }

    pub(super) fn is_operator(&self, registry: &Registry) -> bool {
        self.operator(registry).is_some()
    }

    fn operator(&self, registry: &Registry) -> Option<String> {
        let ids = self.shared.names.ids.borrow();
        let is_about_process = registry.admin.allow.iter().any(Rule::is_about_process);
        let decider = self.decider(registry, &ids, is_about_process);
        decider.decide(&registry.admin.allow).map(|reason| reason.to_string())
    }

    /// Whether the caller may have the token in some variant.
    pub(super) fn may_have(&self, registry: &Registry, entry: &Entry) -> bool {
        let ids = self.shared.names.ids.borrow();
        let decider = self.decider(registry, &ids, entry.has_rules_about_processes());
        decide_variant(&decider, entry, &Variant::default()) != Err(Refusal::NoRule)
    }

    /// Decides about the caller under this registry. The facts about its process are read only if a rule is about them.
    pub(super) fn decider<'a>(
        &'a self,
        registry: &Registry,
        ids: &'a ResolvedIds,
        is_about_process: bool,
    ) -> Decider<'a> {
        let facts = if is_about_process { self.peer.facts() } else { self.peer.caller() };
        let own_uid = self.shared.own_uid;
        Decider { facts, own_uid, root: registry.admin.root, ids }
    }
}

/// Why a caller may have a variant of a token, in words. [`Refusal::NoRule`] means that it may not have the token in any
/// variant.
pub(super) fn decide_variant(
    decider: &Decider<'_>,
    entry: &Entry,
    variant: &Variant,
) -> Result<String, Refusal> {
    let of_token = decider.decide(&entry.settings.allow).ok_or(Refusal::NoRule)?;
    let denied: Vec<&TermRules> =
        entry.settings.variants.rules.iter().filter(|ruled| decider.decide(&ruled.allow).is_none()).collect();
    let has_some_variant = TermKind::ALL.into_iter().all(|kind| {
        let is_allowed =
            |term: &String| !denied.iter().any(|ruled| ruled.kind == kind && ruled.term == *term);
        let configured = entry.settings.credential.terms.of(kind).as_slice();
        let choice = entry.settings.variants.terms.of(kind).as_slice();
        configured.iter().all(is_allowed) || choice.iter().any(is_allowed)
    });
    // A caller that may have no variant is refused as one without a rule.
    if !has_some_variant {
        return Err(Refusal::NoRule);
    }
    let of_terms: Option<Vec<Reason<'_>>> =
        ruled(entry, variant).map(|ruled| decider.decide(&ruled.allow)).collect();
    let of_terms = of_terms.ok_or(Refusal::NoRuleForVariant)?;
    // Callers that need no rule for the token need none for its terms.
    let of_terms = of_terms.into_iter().filter(|reason| matches!(reason, Reason::Rule(_)));
    Ok(once(of_token).chain(of_terms).map(|reason| reason.to_string()).collect::<Vec<_>>().join("; "))
}

/// The terms of a variant that have rules of their own. A variant has a term if the caller asks for the term, or if it is
/// configured and the caller asks for no term of its kind.
pub(super) fn ruled<'a>(entry: &'a Entry, variant: &Variant) -> impl Iterator<Item = &'a TermRules> {
    entry.settings.variants.rules.iter().filter(move |ruled| {
        let asked = match ruled.kind {
            TermKind::Scope => &variant.scope,
            TermKind::Resource => &variant.resource,
            TermKind::Audience => &variant.audience,
        };
        let configured = entry.settings.credential.terms.of(ruled.kind).as_slice();
        if asked.is_empty() { configured } else { asked }.contains(&ruled.term)
    })
}

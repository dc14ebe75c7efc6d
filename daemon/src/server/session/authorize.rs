//! The decision about every request: may this caller have that token?
//!
//! It is a synchronous function of the caller's facts, the registry and the resolved names. A connection remembers what it
//! was allowed for as long as neither registry nor names change.
//!
//! A caller that may not have a token must not learn whether the token exists: the answer is the same in either case.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};

use tokend_protocol::{ErrorCode, ErrorReply, TokenName, Variant};

use super::{Asked, Session, refusal};
use crate::access::{Facts, ImplicitAccess, Reason, ResolvedIds, decide};
use crate::config::{TermKind, TermRules};
use crate::engine::registry::{Entry, Registry};
use crate::server::audit::Refusal;

const NOT_ALLOWED: &str = "not allowed, or no such token";

const VARIANT_NOT_ALLOWED: &str =
    "this variant of the token is not allowed, only other scopes, resources or audiences";

/// Tokens that a connection remembers. One more clears the memory, and decisions are made anew.
const REMEMBERED_MAX: usize = 256;

/// A token that a caller may have in some variant.
#[derive(Clone, Debug)]
pub(super) struct Authorized {
    pub(super) entry: Arc<Entry>,
    /// Why the caller may have it.
    pub(super) reason: Arc<Reason>,
    /// For each term of the token with rules of its own: why the caller may have that, if it may.
    terms: Vec<Option<Reason>>,
}

/// What a connection was allowed under one registry and one state of the resolved names. Refusals are not remembered.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// Weak, so that an idle connection keeps no former registry alive.
    registry: Weak<Registry>,
    generation: u64,
    tokens: HashMap<TokenName, Authorized>,
}

impl Authorized {
    /// Decides about a token and its terms; `None` for a caller that may not have the token in any variant.
    pub(super) fn decide(
        peer: &Facts,
        implicit: ImplicitAccess,
        entry: &Arc<Entry>,
        ids: &ResolvedIds,
    ) -> Option<Self> {
        let reason = Arc::new(decide(peer, implicit, &entry.settings.allow, ids)?);
        let of_term = |ruled: &TermRules| decide(peer, implicit, &ruled.allow, ids);
        let terms = entry.settings.variants.rules.iter().map(of_term).collect();
        let authorized = Self { entry: Arc::clone(entry), reason, terms };
        authorized.has_some_variant().then_some(authorized)
    }

    /// Narrows the decision to a variant; `None` if the caller may not have one of its terms.
    pub(super) fn for_variant(mut self, variant: &Variant) -> Option<Self> {
        let mut rules = Vec::new();
        for (ruled, reason) in self.entry.settings.variants.rules.iter().zip(&self.terms) {
            if has_term(&self.entry, variant, ruled) {
                rules.extend_from_slice(reason.as_ref()?.rules());
            }
        }
        if !rules.is_empty() {
            self.reason = Arc::new(Reason::Rules([self.reason.rules(), &rules].concat()));
        }
        Some(self)
    }

    fn has_some_variant(&self) -> bool {
        TermKind::ALL.into_iter().all(|kind| {
            let is_allowed = |term: &String| {
                let mut decided = self.entry.settings.variants.rules.iter().zip(&self.terms);
                decided.all(|(ruled, reason)| ruled.kind != kind || ruled.term != *term || reason.is_some())
            };
            let configured = self.entry.settings.credential.terms.of(kind).as_slice();
            let choice = self.entry.settings.variants.terms.of(kind).as_slice();
            configured.iter().all(is_allowed) || choice.iter().any(is_allowed)
        })
    }
}

impl Session {
    /// Decides about a request.
    ///
    /// # Errors
    /// The caller may not have the token, or not this variant. A token that it may not have and one that does not exist look
    /// the same to anyone but an operator.
    pub(super) fn authorize(
        &self,
        registry: &Arc<Registry>,
        asked: Asked<'_>,
    ) -> Result<Authorized, ErrorReply> {
        let of_variant =
            |authorized: Authorized| authorized.for_variant(asked.variant).ok_or(Refusal::NoRuleForVariant);
        self.authorized(registry, asked.name).and_then(of_variant).map_err(|reason| {
            let (audit, peer) = (&self.shared.audit, self.peer.facts());
            match (reason, registry.find(asked.name)) {
                (Refusal::NoRuleForVariant, Some(entry)) => {
                    let part = ruled_part(entry, asked.variant);
                    audit.refused_variant(peer, asked.operation, (asked.name, &part));
                }
                _ => audit.refused(peer, asked.operation, asked.name, reason),
            }
            if let Err(excess) = self.count_refusal() {
                return self.overloaded(excess);
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

    /// Decides about a request that only operators may make: the token, and why the caller is an operator.
    ///
    /// # Errors
    /// The caller is no operator, or there is no such token.
    pub(super) fn authorize_operator(
        &self,
        registry: &Arc<Registry>,
        asked: Asked<'_>,
    ) -> Result<(Arc<Entry>, Reason), ErrorReply> {
        if let (Some(reason), Some(entry)) = (self.operator(registry), registry.find(asked.name)) {
            return Ok((Arc::clone(entry), reason));
        }
        // A caller that may have the token is told what is missing, and others what they would be told of any name.
        self.authorize(registry, asked)?;
        self.shared.audit.refused(self.peer.facts(), asked.operation, asked.name, Refusal::NotAnOperator);
        Err(refusal(ErrorCode::NotAllowed, "only an operator may do this"))
    }

    /// Whether the caller is an operator.
    pub(super) fn is_operator(&self, registry: &Registry) -> bool {
        self.operator(registry).is_some()
    }

    fn operator(&self, registry: &Registry) -> Option<Reason> {
        let implicit = self.implicit_access(registry);
        decide(self.peer.facts(), implicit, &registry.admin.allow, &self.shared.names.ids())
    }

    /// Whether the caller may have the token in some variant. Nothing is remembered.
    pub(super) fn may_have(&self, registry: &Registry, entry: &Arc<Entry>) -> bool {
        let (facts, implicit) = (self.peer.facts(), self.implicit_access(registry));
        Authorized::decide(facts, implicit, entry, &self.shared.names.ids()).is_some()
    }

    /// The callers that need no rule under this registry.
    pub(super) fn implicit_access(&self, registry: &Registry) -> ImplicitAccess {
        ImplicitAccess { own_uid: self.shared.own_uid, root: registry.admin.root }
    }

    fn authorized(&self, registry: &Arc<Registry>, name: &TokenName) -> Result<Authorized, Refusal> {
        let ids = self.shared.names.ids();
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (under, generation) = (remembered.registry.as_ptr(), remembered.generation);
        if (under, generation) != (Arc::as_ptr(registry), ids.generation()) {
            *remembered = Remembered {
                registry: Arc::downgrade(registry),
                generation: ids.generation(),
                tokens: HashMap::new(),
            };
        }
        if let Some(authorized) = remembered.tokens.get(name) {
            return Ok(authorized.clone());
        }
        let entry = registry.find(name).ok_or(Refusal::NoSuchToken)?;
        let (facts, implicit) = (self.peer.facts(), self.implicit_access(registry));
        let authorized = Authorized::decide(facts, implicit, entry, &ids).ok_or(Refusal::NoRule)?;
        if remembered.tokens.len() >= REMEMBERED_MAX {
            remembered.tokens.clear();
        }
        remembered.tokens.insert(name.clone(), authorized.clone());
        Ok(authorized)
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.remembered.lock().unwrap().tokens.len()
    }
}

/// The terms of a variant that have rules of their own.
pub(super) fn ruled<'a>(entry: &'a Entry, variant: &Variant) -> impl Iterator<Item = &'a TermRules> {
    entry.settings.variants.rules.iter().filter(move |ruled| has_term(entry, variant, ruled))
}

/// The part of a variant that has rules of its own, for the audit trail.
fn ruled_part(entry: &Entry, variant: &Variant) -> Variant {
    let terms = |kind| {
        let ruled = ruled(entry, variant).filter(move |ruled| ruled.kind == kind);
        ruled.map(|ruled| ruled.term.clone()).collect()
    };
    Variant {
        scope: terms(TermKind::Scope),
        resource: terms(TermKind::Resource),
        audience: terms(TermKind::Audience),
    }
}

/// Whether a variant has a term: the caller asks for it, or the caller asks for no term of its kind and it is configured.
fn has_term(entry: &Entry, variant: &Variant, ruled: &TermRules) -> bool {
    let asked = match ruled.kind {
        TermKind::Scope => &variant.scope,
        TermKind::Resource => &variant.resource,
        TermKind::Audience => &variant.audience,
    };
    let terms =
        if asked.is_empty() { entry.settings.credential.terms.of(ruled.kind).as_slice() } else { asked };
    terms.contains(&ruled.term)
}

//! What a peer was found to be allowed of one token: the token, and those of its terms that have rules of their
//! own. Pure.

use std::sync::Arc;

use tokend_protocol::Variant;

use crate::access::Facts;
use crate::access::{Decision, ImplicitAccess, Reason, ResolvedIds, Rule, decide};
use crate::config::{TermKind, TermRules};
use crate::engine::registry::Entry;

/// What a peer may have of a token.
#[derive(Clone, Debug)]
pub(super) struct Right {
    /// Why it may have the token.
    grounds: Arc<Reason>,
    /// For each term with rules, as the token has them: the grounds, if there are any.
    terms: Vec<Option<Reason>>,
}

impl Right {
    /// Decides; none for a peer that may have the token in no form at all.
    pub(super) fn decide(
        peer: &Facts,
        implicit_access: ImplicitAccess,
        entry: &Entry,
        numbers: &ResolvedIds,
    ) -> Option<Self> {
        let grounds = |rules: &[Rule]| match decide(peer, implicit_access, rules, numbers) {
            Decision::Allow(grounds) => Some(grounds),
            Decision::Deny => None,
        };
        // All is decided whatever comes of the first, so that a refusal takes the same time for each reason.
        let terms = entry.permitted.rules.iter().map(|rules| grounds(&rules.allow)).collect();
        let right = Self { grounds: Arc::new(grounds(&entry.allow)?), terms };
        right.leads_to_some_form(entry).then_some(right)
    }

    /// Whether nothing of it can be refused, so that it may be remembered.
    pub(super) fn is_whole(&self) -> bool {
        self.terms.iter().all(Option::is_some)
    }

    /// The grounds for the form of the token that was asked for; none if it is refused.
    pub(super) fn to(&self, entry: &Entry, variant: &Variant) -> Option<Arc<Reason>> {
        let mut rules = Vec::new();
        for (ruled, grounds) in entry.permitted.rules.iter().zip(&self.terms) {
            if counts(entry, variant, ruled) {
                rules.extend(grounds.as_ref()?.rules());
            }
        }
        if rules.is_empty() {
            return Some(Arc::clone(&self.grounds));
        }
        Some(Arc::new(Reason::Rules(self.grounds.rules().iter().chain(rules).cloned().collect())))
    }

    fn leads_to_some_form(&self, entry: &Entry) -> bool {
        TermKind::ALL.into_iter().all(|kind| {
            let configured = entry.settings().terms(kind).as_slice();
            let choice = entry.permitted.terms(kind).as_slice();
            let is_granted = |term: &String| self.is_granted(entry, kind, term);
            configured.iter().all(is_granted) || choice.iter().any(is_granted)
        })
    }

    fn is_granted(&self, entry: &Entry, kind: TermKind, term: &str) -> bool {
        let mut decided = entry.permitted.rules.iter().zip(&self.terms);
        decided.all(|(ruled, grounds)| ruled.kind != kind || ruled.term != term || grounds.is_some())
    }
}

/// The terms with rules of their own that a form of a token has.
pub(super) fn ruled<'a>(entry: &'a Entry, variant: &Variant) -> impl Iterator<Item = &'a TermRules> {
    entry.permitted.rules.iter().filter(move |ruled| counts(entry, variant, ruled))
}

/// Those terms of a form of a token that have rules of their own, as a form.
pub(super) fn ruled_part(entry: &Entry, variant: &Variant) -> Variant {
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

/// Whether a term is in a form of a token: asked for, or configured where nothing of its kind is asked for.
fn counts(entry: &Entry, variant: &Variant, ruled: &TermRules) -> bool {
    let asked = asked(variant, ruled.kind);
    let terms = if asked.is_empty() { entry.settings().terms(ruled.kind).as_slice() } else { asked };
    terms.contains(&ruled.term)
}

fn asked(variant: &Variant, kind: TermKind) -> &[String] {
    match kind {
        TermKind::Scope => &variant.scope,
        TermKind::Resource => &variant.resource,
        TermKind::Audience => &variant.audience,
    }
}

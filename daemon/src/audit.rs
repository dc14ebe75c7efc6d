//! The audit trail: one event for each hand-out and each refusal, under the target `tokend::audit`.
//!
//! It names the token, its fingerprint, the peer and the grounds, and never a secret.

use tokend_protocol::{Fingerprint, TokenName, Variant};

use crate::peer::Facts;
use crate::policy::access::Grounds;

/// What a peer asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The token.
    Get,
    /// The header set.
    Headers,
    /// A new token from the provider.
    Refresh,
    /// To report a refused token.
    Reject,
    /// To be told of changes.
    Watch,
    /// To be told why somebody may have the token or may not.
    Explain,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Headers => "headers",
            Self::Refresh => "refresh",
            Self::Reject => "reject",
            Self::Watch => "watch",
            Self::Explain => "explain",
        }
    }
}

/// Records that a peer was given a token.
pub fn handed_out(
    peer: &Facts,
    verb: Verb,
    (token, variant): (&TokenName, &Variant),
    fingerprint: Fingerprint,
    grounds: &Grounds,
) {
    let variant = (!variant.is_empty()).then(|| in_words(variant));
    tracing::info!(
        target: "tokend::audit",
        decision = "allow",
        verb = verb.as_str(),
        token = %token,
        variant,
        %fingerprint,
        reason = %grounds,
        uid = peer.uid,
        gid = peer.gid,
        pid = peer.pid,
        unit = peer.unit.as_deref(),
        "{token} handed out to uid {} ({grounds})", peer.uid
    );
}

/// A variant as a line. Only what is configured gets this far, so it holds nothing but scopes and names.
fn in_words(variant: &Variant) -> String {
    let kinds = [("scope", &variant.scope), ("resource", &variant.resource), ("audience", &variant.audience)];
    let asked = kinds.into_iter().filter(|(_, terms)| !terms.is_empty());
    asked.map(|(kind, terms)| format!("{kind}={}", terms.join(","))).collect::<Vec<_>>().join(" ")
}

/// Records that a peer was allowed something that gives no token away.
pub fn allowed(peer: &Facts, verb: Verb, token: &TokenName, grounds: &Grounds) {
    tracing::info!(
        target: "tokend::audit",
        decision = "allow",
        verb = verb.as_str(),
        token = %token,
        reason = %grounds,
        uid = peer.uid,
        gid = peer.gid,
        pid = peer.pid,
        unit = peer.unit.as_deref(),
        "{} of {token} allowed to uid {} ({grounds})", verb.as_str(), peer.uid
    );
}

/// Why a peer was refused, for the journal alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No rule of the token lets it.
    NoRule,
    /// No rule of the token is known to let it, and the name service was of no help with some of them.
    NamesUnanswered,
    /// It may have the token, but not with these scopes, resources or audiences.
    NoRuleOfForm,
    /// No such token is configured.
    NoSuchToken,
    /// It is not an operator.
    NotAnOperator,
}

impl Refusal {
    fn as_str(self) -> &'static str {
        match self {
            Self::NoRule => "no rule of the token's allow list matches",
            Self::NamesUnanswered => {
                "no rule of the token's allow list is known to match, and the host's name service gives no answer"
            }
            Self::NoRuleOfForm => "no rule of a scope, resource or audience of this form matches",
            Self::NoSuchToken => "no such token",
            Self::NotAnOperator => "not an operator",
        }
    }
}

/// Records that a peer was refused.
pub fn refused(peer: &Facts, verb: Verb, token: &TokenName, refusal: Refusal) {
    tracing::warn!(
        target: "tokend::audit",
        decision = "deny",
        verb = verb.as_str(),
        token = %token,
        reason = refusal.as_str(),
        uid = peer.uid,
        gid = peer.gid,
        pid = peer.pid,
        unit = peer.unit.as_deref(),
        "{} of {token} refused to uid {}: {}", verb.as_str(), peer.uid, refusal.as_str()
    );
}

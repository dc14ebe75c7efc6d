//! One record of the audit trail, and how it is written.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};

use tokend_protocol::{Fingerprint, TokenName, Variant};

use super::{Operation, Refusal};
use crate::access::Facts;

/// The longest variant in a record, in bytes. A configuration may have many and long terms.
const VARIANT_BYTES_MAX: usize = 1024;

/// A decision, or what several decisions have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) peer: Cow<'a, Facts>,
    pub(super) operation: Operation,
    /// The tokens that were asked for, or the first few of many. Empty if the request names none.
    pub(super) tokens: Cow<'a, [TokenName]>,
    pub(super) variant: Option<Cow<'a, Variant>>,
    /// The fingerprint of the token that was handed out.
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) outcome: Outcome<'a>,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome<'a> {
    /// Allowed by this rule.
    Allow(Cow<'a, str>),
    /// Denied for this reason.
    Deny(Refusal),
}

/// Hashes all that is written, which is all but the peer's groups.
impl Hash for Record<'_> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Facts { uid, gid, groups: _, pid, unit, user_unit, invocation_id, exe } = &*self.peer;
        (uid, gid, pid, unit, user_unit, invocation_id, exe).hash(hasher);
        let variant =
            self.variant.as_ref().map(|variant| (&variant.scope, &variant.resource, &variant.audience));
        let fingerprint = self.fingerprint.map(|fingerprint| fingerprint.0);
        (self.operation, &self.tokens, variant, fingerprint, &self.outcome).hash(hasher);
    }
}

impl Record<'_> {
    /// A copy to keep, without the peer's groups, which may be very many.
    pub(super) fn to_kept(&self) -> Record<'static> {
        Record {
            peer: Cow::Owned(self.peer.without_groups()),
            operation: self.operation,
            tokens: Cow::Owned(self.tokens.to_vec()),
            variant: self.variant.as_deref().map(|variant| Cow::Owned(variant.clone())),
            fingerprint: self.fingerprint,
            outcome: match &self.outcome {
                Outcome::Allow(rule) => Outcome::Allow(Cow::Owned(rule.to_string())),
                Outcome::Deny(refusal) => Outcome::Deny(*refusal),
            },
        }
    }

    /// Writes it: as one decision, or as the number of decisions that repeated one already written. `SECURITY.md`
    /// documents the names of the fields.
    pub(super) fn write(&self, repeats: Option<u64>) {
        let (peer, verb, count) = (&self.peer, self.operation.as_str(), repeats.unwrap_or(1));
        let (unit, user_unit) = (peer.unit.as_deref(), peer.user_unit.as_deref());
        let exe = peer.exe.as_ref().map(|exe| exe.path.display().to_string());
        let exe = exe.as_deref();
        let (uid, gid, pid, invocation_id) = (peer.uid, peer.gid, peer.pid, peer.invocation_id.as_deref());
        let names: Vec<&str> = self.tokens.iter().map(TokenName::as_str).collect();
        let token = (!names.is_empty()).then(|| names.join(" "));
        let token = token.as_deref();
        let variant = self.variant.as_deref().filter(|variant| !variant.is_empty()).map(describe);
        let variant = variant.as_deref();
        let message = self.message(repeats);
        match &self.outcome {
            Outcome::Allow(rule) => tracing::info!(
                target: "tokend::server::audit",
                decision = "allow", verb, token, variant,
                fingerprint = self.fingerprint.map(tracing::field::display), rule = &**rule, count,
                uid, gid, pid, unit, user_unit, invocation_id, exe, "{message}"
            ),
            Outcome::Deny(refusal) => tracing::warn!(
                target: "tokend::server::audit",
                decision = "deny", verb, token, variant, reason = refusal.as_str(), count,
                uid, gid, pid, unit, user_unit, invocation_id, exe, "{message}"
            ),
        }
    }

    fn message(&self, repeats: Option<u64>) -> String {
        let (uid, operation) = (self.peer.uid, self.operation.as_str());
        let asked = match &*self.tokens {
            [] => operation.to_owned(),
            [token] => format!("{operation} of {token}"),
            [first, rest @ ..] => format!("{operation} of {first} and {} or more others", rest.len()),
        };
        let decided = match (&self.outcome, self.fingerprint, self.tokens.first()) {
            (Outcome::Allow(rule), Some(_), Some(token)) => {
                format!("{token} handed out to uid {uid} ({rule})")
            }
            (Outcome::Allow(rule), ..) => format!("{asked} allowed to uid {uid} ({rule})"),
            (Outcome::Deny(refusal), ..) => format!("{asked} refused to uid {uid}: {}", refusal.as_str()),
        };
        match repeats {
            None => decided,
            Some(1) => format!("{decided}, once more"),
            Some(repeats) => format!("{decided}, {repeats} times more"),
        }
    }
}

/// A variant as one line, cut if it is long.
fn describe(variant: &Variant) -> String {
    let kinds = [("scope", &variant.scope), ("resource", &variant.resource), ("audience", &variant.audience)];
    let asked = kinds.into_iter().filter(|(_, terms)| !terms.is_empty());
    let words: Vec<String> = asked.map(|(kind, terms)| format!("{kind}={}", terms.join(","))).collect();
    let mut line = words.join(" ");
    if line.len() > VARIANT_BYTES_MAX {
        let cut = (0..=VARIANT_BYTES_MAX).rfind(|at| line.is_char_boundary(*at)).unwrap_or_default();
        line.truncate(cut);
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_variant_is_cut_between_two_characters() {
        let scope: Vec<String> = (0..1000).map(|n| format!("é{n}")).collect();
        let line = describe(&Variant { scope, ..Variant::default() });
        assert!(line.starts_with("scope=é0,é1,") && line.ends_with("..."), "{line}");
        assert!(line.len() <= VARIANT_BYTES_MAX + 3);
        let short = Variant { resource: vec!["r".into()], audience: vec!["a".into()], ..Variant::default() };
        assert_eq!(describe(&short), "resource=r audience=a");
    }
}

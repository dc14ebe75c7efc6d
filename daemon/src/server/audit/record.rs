//! One record of the audit trail, and how it is written.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};

use tokend_protocol::{Fingerprint, TokenName, Variant};

use super::{Operation, Refusal};
use crate::access::{Facts, Groups};

/// A decision, or what several decisions have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub peer: Cow<'a, Facts>,
    pub operation: Operation,
    /// The tokens that were asked for, or the first few of many. Empty if the request names none.
    pub tokens: Cow<'a, [TokenName]>,
    /// Only configured terms, in the configured order. Other terms are text of the caller, and another order would be
    /// counted separately.
    pub variant: Cow<'a, Variant>,
    /// The fingerprint of the token that was handed out.
    pub fingerprint: Option<Fingerprint>,
    pub decision: Result<Cow<'a, str>, Refusal>,
}

/// Hashes all that is written, which is all but the peer's groups.
impl Hash for Record<'_> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Facts { uid, gid, groups: _, pid, unit, user_unit, invocation_id, exe } = &*self.peer;
        (uid, gid, pid, unit, user_unit, invocation_id, exe).hash(hasher);
        (self.operation, &self.tokens, &self.variant, self.fingerprint, &self.decision).hash(hasher);
    }
}

impl<'a> Record<'a> {
    /// A decision about a token, or about a connection or request whatever it asks for.
    pub fn new(
        peer: &'a Facts,
        operation: Operation,
        token: Option<&'a TokenName>,
        decision: Result<&'a str, Refusal>,
    ) -> Self {
        let tokens = Cow::Borrowed(token.map(std::slice::from_ref).unwrap_or_default());
        let (peer, variant) = (Cow::Borrowed(peer), Cow::Owned(Variant::default()));
        let decision = decision.map(Cow::Borrowed);
        Record { peer, operation, tokens, variant, fingerprint: None, decision }
    }

    /// A copy to keep, without the peer's groups, which may be very many.
    pub(super) fn to_kept(&self) -> Record<'static> {
        Record {
            peer: Cow::Owned(Facts { groups: Groups::default(), ..Facts::clone(&self.peer) }),
            operation: self.operation,
            tokens: Cow::Owned(self.tokens.to_vec()),
            variant: Cow::Owned(self.variant.as_ref().clone()),
            fingerprint: self.fingerprint,
            decision: match &self.decision {
                Ok(reason) => Ok(Cow::Owned(reason.to_string())),
                Err(refusal) => Err(*refusal),
            },
        }
    }

    /// Writes it: as one decision, or as the number of decisions that repeated one already written. `SECURITY.md`
    /// documents the names of the fields.
    pub(super) fn write(&self, repeats: Option<u64>) {
        let Facts { uid, gid, pid, unit, user_unit, invocation_id, exe, .. } = &*self.peer;
        let exe = exe.as_ref().map(|exe| exe.path.display().to_string());
        let (verb, count) = (self.verb(), repeats.unwrap_or(1));
        let names: Vec<&str> = self.tokens.iter().map(TokenName::as_str).collect();
        let token = (!names.is_empty()).then(|| names.join(" "));
        let variant = (!self.variant.is_empty()).then(|| describe(&self.variant));
        let message = self.message(repeats);
        match &self.decision {
            Ok(reason) => tracing::info!(
                target: "tokend::server::audit",
                decision = "allow", verb, token, variant,
                fingerprint = self.fingerprint.map(tracing::field::display), rule = &**reason, count,
                uid, gid, pid, unit, user_unit, invocation_id, exe, "{message}"
            ),
            Err(refusal) => tracing::warn!(
                target: "tokend::server::audit",
                decision = "deny", verb, token, variant, reason = refusal.to_string(), count,
                uid, gid, pid, unit, user_unit, invocation_id, exe, "{message}"
            ),
        }
    }

    fn verb(&self) -> String {
        format!("{:?}", self.operation).to_lowercase()
    }

    fn message(&self, repeats: Option<u64>) -> String {
        let (uid, verb) = (self.peer.uid, self.verb());
        let asked = match &*self.tokens {
            [] => verb,
            [token] => format!("{verb} of {token}"),
            [first, rest @ ..] => format!("{verb} of {first} and {} or more others", rest.len()),
        };
        let decided = match (&self.decision, self.fingerprint, self.tokens.first()) {
            (Ok(reason), Some(_), Some(token)) => format!("{token} handed out to uid {uid} ({reason})"),
            (Ok(reason), ..) => format!("{asked} allowed to uid {uid} ({reason})"),
            (Err(refusal), ..) => format!("{asked} refused to uid {uid}: {refusal}"),
        };
        match repeats {
            None => decided,
            Some(1) => format!("{decided}, once more"),
            Some(repeats) => format!("{decided}, {repeats} times more"),
        }
    }
}

fn describe(variant: &Variant) -> String {
    let kinds = [("scope", &variant.scope), ("resource", &variant.resource), ("audience", &variant.audience)];
    let asked = kinds.into_iter().filter(|(_, terms)| !terms.is_empty());
    let words: Vec<String> = asked.map(|(kind, terms)| format!("{kind}={}", terms.join(","))).collect();
    words.join(" ")
}

//! One record of the audit trail, and how it is written.

use tokend_protocol::{Fingerprint, TokenName, Variant};

use super::{Operation, Refusal};
use crate::access::Facts;

/// The longest form of a token in a record, in bytes. The configuration's terms may be long and many.
const FORM_BYTES_MAX: usize = 1024;

/// What was decided about one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decided<'a> {
    pub(super) peer: &'a Facts,
    pub(super) verb: Operation,
    /// Absent where the request names none.
    pub(super) token: Option<&'a TokenName>,
    pub(super) variant: Option<&'a Variant>,
    /// Of the token that was handed out.
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) outcome: Outcome<'a>,
}

/// What came of it, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome<'a> {
    /// By this rule.
    Allow(&'a str),
    /// For this reason.
    Deny(Refusal),
}

/// What is kept of a decision for a record that is written later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Without its groups, which are not written and may be very many.
    pub(super) peer: Facts,
    pub(super) verb: Operation,
    /// The tokens that were asked for, the first few of them.
    pub(super) tokens: Vec<TokenName>,
    pub(super) variant: Option<Variant>,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) verdict: Verdict,
}

/// An [`Outcome`] that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow(String),
    Deny(Refusal),
}

/// How many decisions a record stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// This one.
    One,
    /// So many more like one that was written.
    More(u64),
}

impl Decided<'_> {
    pub(super) fn to_record(self) -> Record {
        Record {
            peer: self.peer.without_groups(),
            verb: self.verb,
            tokens: self.token.cloned().into_iter().collect(),
            variant: self.variant.cloned(),
            fingerprint: self.fingerprint,
            verdict: match self.outcome {
                Outcome::Allow(rule) => Verdict::Allow(rule.to_owned()),
                Outcome::Deny(reason) => Verdict::Deny(reason),
            },
        }
    }
}

impl Record {
    /// Reports it. The names of the fields are documented in `SECURITY.md`.
    pub(super) fn write(&self, count: Count) {
        let number = count.number();
        let (peer, verb) = (&self.peer, self.verb.as_str());
        let (unit, user_unit) = (peer.unit.as_deref(), peer.user_unit.as_deref());
        let exe = peer.exe.as_ref().map(|exe| exe.path.display().to_string());
        let exe = exe.as_deref();
        let (uid, gid, pid, invocation_id) = (peer.uid, peer.gid, peer.pid, peer.invocation_id.as_deref());
        let names: Vec<&str> = self.tokens.iter().map(TokenName::as_str).collect();
        let token = (!names.is_empty()).then(|| names.join(" "));
        let token = token.as_deref();
        let variant = self.variant.as_ref().filter(|variant| !variant.is_empty()).map(in_words);
        let variant = variant.as_deref();
        let fingerprint = self.fingerprint.map(tracing::field::display);
        let message = self.message(count);
        match &self.verdict {
            Verdict::Allow(rule) => tracing::info!(
                target: "tokend::server::audit",
                decision = "allow", verb, token, variant, fingerprint, rule, count = number,
                uid, gid, pid, unit, user_unit, invocation_id, exe, "{message}"
            ),
            Verdict::Deny(refusal) => tracing::warn!(
                target: "tokend::server::audit",
                decision = "deny", verb, token, variant, reason = refusal.as_str(), count = number,
                uid, gid, pid, unit, user_unit, invocation_id, exe, "{message}"
            ),
        }
    }

    fn message(&self, count: Count) -> String {
        let uid = self.peer.uid;
        let verb = self.verb.as_str();
        let what = match self.tokens.as_slice() {
            [] => verb.to_owned(),
            [token] => format!("{verb} of {token}"),
            [first, rest @ ..] => format!("{verb} of {first} and {} others or more", rest.len()),
        };
        let told = match (&self.verdict, self.fingerprint, self.tokens.first()) {
            (Verdict::Allow(rule), Some(_), Some(token)) => {
                format!("{token} handed out to uid {uid} ({rule})")
            }
            (Verdict::Allow(rule), ..) => format!("{what} allowed to uid {uid} ({rule})"),
            (Verdict::Deny(refusal), ..) => format!("{what} refused to uid {uid}: {}", refusal.as_str()),
        };
        match count {
            Count::One => told,
            Count::More(1) => format!("{told}, once more"),
            Count::More(more) => format!("{told}, {more} times more"),
        }
    }
}

impl Count {
    pub(super) fn number(self) -> u64 {
        match self {
            Self::One => 1,
            Self::More(more) => more,
        }
    }
}

/// A variant as a line, cut where it is a long one.
fn in_words(variant: &Variant) -> String {
    let kinds = [("scope", &variant.scope), ("resource", &variant.resource), ("audience", &variant.audience)];
    let asked = kinds.into_iter().filter(|(_, terms)| !terms.is_empty());
    let words: Vec<String> = asked.map(|(kind, terms)| format!("{kind}={}", terms.join(","))).collect();
    let mut line = words.join(" ");
    if line.len() > FORM_BYTES_MAX {
        let cut = (0..=FORM_BYTES_MAX).rfind(|at| line.is_char_boundary(*at)).unwrap_or_default();
        line.truncate(cut);
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_form_is_cut_between_two_characters() {
        let scope: Vec<String> = (0..1000).map(|n| format!("é{n}")).collect();
        let line = in_words(&Variant { scope, ..Variant::default() });
        assert!(line.starts_with("scope=é0,é1,") && line.ends_with("..."), "{line}");
        assert!(line.len() <= FORM_BYTES_MAX + 3);
        let short = Variant { resource: vec!["r".into()], audience: vec!["a".into()], ..Variant::default() };
        assert_eq!(in_words(&short), "resource=r audience=a");
    }
}

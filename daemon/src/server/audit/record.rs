//! One record of the audit trail, and how it is written.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};

use tokend_protocol::{Fingerprint, TokenName, Variant};

use super::aggregator::Count;
use super::{Operation, Refusal};
use crate::access::{Facts, Groups, NO_ID};

/// A decision, or what several decisions have in common: then a fact in which they differ is absent, or [`NO_ID`], or empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub peer: Cow<'a, Facts>,
    pub operation: Operation,
    /// The token that was asked for, if the request names one.
    pub token: Option<Cow<'a, TokenName>>,
    /// Only configured terms, in the configured order. Other terms are text of the caller, and another order would be
    /// counted separately.
    pub variant: Cow<'a, Variant>,
    /// The fingerprint of the token that was handed out.
    pub fingerprint: Option<Fingerprint>,
    /// The rule that allows it, or why it is refused.
    pub decision: Result<Cow<'a, str>, Refusal>,
}

/// Hashes everything that is written, which is everything but the peer's groups. A process with a unique number
/// ([`Facts::process`]) counts as one caller, whatever program it runs.
impl Hash for Record<'_> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Facts { uid, gid, groups: _, pid, process, unit, user_unit, invocation_id, exe } = &*self.peer;
        (uid, gid, process).hash(hasher);
        if process.is_none() {
            (pid, unit, user_unit, invocation_id, exe).hash(hasher);
        }
        (self.operation, &self.token, &self.variant, self.fingerprint, &self.decision).hash(hasher);
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
        let (peer, variant) = (Cow::Borrowed(peer), Cow::Owned(Variant::default()));
        let (token, decision) = (token.map(Cow::Borrowed), decision.map(Cow::Borrowed));
        Record { peer, operation, token, variant, fingerprint: None, decision }
    }

    /// A copy to keep, without the peer's groups, which may be very many.
    pub(super) fn to_kept(&self) -> Record<'static> {
        Record {
            peer: Cow::Owned(Facts { groups: Groups::default(), ..Facts::clone(&self.peer) }),
            operation: self.operation,
            token: self.token.as_ref().map(|token| Cow::Owned(token.as_ref().clone())),
            variant: Cow::Owned(self.variant.as_ref().clone()),
            fingerprint: self.fingerprint,
            decision: match &self.decision {
                Ok(reason) => Ok(Cow::Owned(reason.to_string())),
                Err(refusal) => Err(*refusal),
            },
        }
    }

    /// Removes the facts in which another decision differs.
    pub(super) fn keep_common(&mut self, other: &Record<'_>) {
        fn keep<T: PartialEq>(kept: &mut Option<T>, other: Option<&T>) {
            if kept.as_ref() != other {
                *kept = None;
            }
        }
        let peer = self.peer.to_mut();
        keep(&mut peer.pid, other.peer.pid.as_ref());
        keep(&mut peer.unit, other.peer.unit.as_ref());
        keep(&mut peer.user_unit, other.peer.user_unit.as_ref());
        keep(&mut peer.invocation_id, other.peer.invocation_id.as_ref());
        keep(&mut peer.exe, other.peer.exe.as_ref());
        keep(&mut self.fingerprint, other.fingerprint.as_ref());
        if peer.gid != other.peer.gid {
            peer.gid = NO_ID;
        }
        if self.variant != other.variant {
            self.variant = Cow::default();
        }
        if let (Ok(reason), Ok(other)) = (&mut self.decision, &other.decision)
            && reason != other
        {
            *reason = Cow::default();
        }
    }

    /// The facts of this decision that it may not have in common with others of a merged record.
    pub(super) fn details(&self, merged: &Record<'_>) -> String {
        let Facts { uid, gid, pid, unit, user_unit, invocation_id: _, exe, .. } = &*self.peer;
        let facts = [
            ("uid", (merged.peer.uid == NO_ID).then(|| uid.to_string())),
            ("token", self.token.as_ref().filter(|_| merged.token.is_none()).map(ToString::to_string)),
            ("pid", pid.map(|pid| pid.to_string())),
            ("gid", Some(gid.to_string())),
            ("unit", unit.clone()),
            ("user_unit", user_unit.clone()),
            ("variant", (!self.variant.is_empty()).then(|| describe(&self.variant))),
            ("fingerprint", self.fingerprint.map(|fingerprint| fingerprint.to_string())),
            ("rule", self.decision.as_ref().ok().map(ToString::to_string)),
            ("exe", exe.as_ref().map(|exe| format!("{:?}", exe.path.to_string_lossy()))),
        ];
        let known = facts.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        known.collect::<Vec<_>>().join(" ")
    }

    /// Writes it: as one decision, or as the count of decisions like one that is already written. `SECURITY.md` documents
    /// the names of the fields.
    pub(super) fn write(&self, counted: Option<&Count>) {
        let Facts { uid, gid, pid, unit, user_unit, invocation_id, exe, .. } = &*self.peer;
        let [uid, gid] = [uid, gid].map(|id| Some(*id).filter(|id| *id != NO_ID));
        let exe = exe.as_ref().map(|exe| exe.path.display().to_string());
        let (verb, repeats) = (self.verb(), counted.map(|counted| counted.repeats));
        let count = repeats.unwrap_or(1);
        let sample = counted.and_then(|counted| counted.sample.as_ref());
        let (sample, others) = sample.map(|sample| (sample.to_string(), sample.others)).unzip();
        let token = self.token.as_ref().map(|token| token.as_str());
        let variant = (!self.variant.is_empty()).then(|| describe(&self.variant));
        let message = self.message(repeats);
        match &self.decision {
            Ok(reason) => tracing::info!(
                target: "tokend::server::audit",
                decision = "allow", verb, token, variant,
                fingerprint = self.fingerprint.map(tracing::field::display),
                rule = (!reason.is_empty()).then_some(&**reason), count, sample, others,
                uid, gid, pid, unit, user_unit, invocation_id, exe, "{message}"
            ),
            Err(refusal) => tracing::warn!(
                target: "tokend::server::audit",
                decision = "deny", verb, token, variant, reason = refusal.to_string(), count, sample, others,
                uid, gid, pid, unit, user_unit, invocation_id, exe, "{message}"
            ),
        }
    }

    fn verb(&self) -> String {
        format!("{:?}", self.operation).to_lowercase()
    }

    fn message(&self, repeats: Option<u64>) -> String {
        let verb = self.verb();
        let caller = match (self.peer.uid, &self.peer.unit) {
            (NO_ID, Some(unit)) => format!("unit {unit}"),
            (NO_ID, None) => "several users".to_owned(),
            (uid, Some(unit)) => format!("uid {uid} in {unit}"),
            (uid, None) => format!("uid {uid}"),
        };
        let asked = self.token.as_ref().map_or_else(|| verb.clone(), |token| format!("{verb} of {token}"));
        let decided = match (&self.decision, &self.token) {
            (Ok(_), Some(token)) if self.fingerprint.is_some() => format!("{token} handed out to {caller}"),
            (Ok(_), _) => format!("{asked} allowed to {caller}"),
            (Err(refusal), _) => format!("{asked} refused to {caller}: {refusal}"),
        };
        let rule = match &self.decision {
            Ok(reason) if !reason.is_empty() => format!(" ({reason})"),
            _ => String::new(),
        };
        match repeats {
            None => format!("{decided}{rule}"),
            Some(1) => format!("{decided}{rule}, once more"),
            Some(repeats) => format!("{decided}{rule}, {repeats} times more"),
        }
    }
}

fn describe(variant: &Variant) -> String {
    let kinds = [("scope", &variant.scope), ("resource", &variant.resource), ("audience", &variant.audience)];
    let asked = kinds.into_iter().filter(|(_, terms)| !terms.is_empty());
    let words: Vec<String> = asked.map(|(kind, terms)| format!("{kind}={}", terms.join(","))).collect();
    words.join(" ")
}

//! `Explain`: why somebody may have a token or may not.
//!
//! Operators may ask about every subject and see all rules. Any other caller may ask only about itself, and sees only the
//! rule that lets it have the token. About other tokens it learns no more than from any other request.

use std::iter::once;

use tokend_protocol::{
    ErrorCode, ErrorReply, ExplainRequest, ExplainedList, ExplainedReply, ExplainedRule, Reply, Subject,
    SubjectFacts, Variant,
};

use super::authorize::{decide_variant, ruled};
use super::{Asked, Session, refusal};
use crate::access::{Decider, Facts, NO_ID, RootAccess, Rule};
use crate::engine::registry::Entry;
use crate::engine::variants;
use crate::peer::Peer;
use crate::server::audit::Operation;

/// Bytes of rules in one reply: half a reply frame, whatever the rules are.
const RULES_BYTES_MAX: usize = 128 * 1024;

/// Groups in one reply. The kernel lets a process have 65,536.
const GROUPS_MAX: usize = 1024;

/// The longest name of a user. Linux allows 32; directory services more.
const USER_BYTES_MAX: usize = 256;

impl Session {
    pub(super) async fn explain(&self, request: ExplainRequest) -> Result<Reply, ErrorReply> {
        let ExplainRequest { name, variant, subject } = request;
        let asked = Asked { operation: Operation::Explain, name: &name, variant: &variant };
        let registry = self.registry();
        if subject == Subject::Caller && !self.is_operator(&registry) {
            let (entry, reason) = self.authorize(&registry, asked)?;
            self.allow_explanation(asked, &entry, &reason)?;
            let (facts, omitted) = subject_facts(self.peer.facts());
            let lists = Vec::new();
            let reason = reason.to_string();
            let reply = ExplainedReply { allowed: true, reason, facts, operator: None, lists, omitted };
            return Ok(Reply::Explained(reply));
        }
        self.authorize_operator(&registry, asked)?;
        let absent = match subject {
            Subject::User(_) | Subject::Unit(_) => "not given",
            Subject::Caller | Subject::Process(_) => "not known",
        };
        let facts = match subject {
            Subject::Caller => self.peer.facts().clone(),
            Subject::User(user) => self.look_up_user(user).await?,
            Subject::Process(pid) => facts_of_process(pid)?,
            Subject::Unit(unit) => Peer::facts_of_unit(unit).ok_or_else(|| {
                refusal(ErrorCode::InvalidRequest, "this is not the name of a unit, such as billing.service")
            })?,
        };
        // Decided again: the caller may have lost its operator rights during the look-up.
        let registry = self.registry();
        let (entry, reason) = self.authorize_operator(&registry, asked)?;
        self.allow_explanation(asked, &entry, &reason)?;
        let ids = self.shared.names.ids.borrow();
        let decider = Decider { facts: &facts, ..self.decider(&registry, &ids, false) };
        Ok(Reply::Explained(explanation(&decider, absent, &entry, &variant, &registry.admin.allow)))
    }

    /// Audits an explanation, unless nobody may ask for this variant.
    fn allow_explanation(&self, asked: Asked<'_>, entry: &Entry, reason: &str) -> Result<(), ErrorReply> {
        variants::terms(&entry.settings.credential.terms, &entry.settings.variants, asked.variant)
            .map_err(|message| self.no_such_variant(asked, message))?;
        self.audit(asked, Ok(reason));
        Ok(())
    }

    async fn look_up_user(&self, user: String) -> Result<Facts, ErrorReply> {
        if user.is_empty() || user.len() > USER_BYTES_MAX || user.contains(char::is_control) {
            return Err(refusal(ErrorCode::InvalidRequest, "this cannot be the name of a user"));
        }
        match self.shared.names.facts_of_user(user.clone()).await {
            Ok(Some(facts)) => Ok(facts),
            Ok(None) => Err(refusal(ErrorCode::InvalidRequest, format!("this host has no user {user}"))),
            Err(_) => {
                let message = format!("the host's name service gives no answer about user {user}");
                Err(refusal(ErrorCode::Unavailable, message))
            }
        }
    }
}

/// Explains the decision about a subject, which is made as for every request.
fn explanation(
    decider: &Decider<'_>,
    text_for_absent_fact: &str,
    entry: &Entry,
    variant: &Variant,
    operators: &[Rule],
) -> ExplainedReply {
    let of_terms = ruled(entry, variant)
        .map(|ruled| (format!("{} {}", ruled.kind.as_str(), ruled.term), ruled.allow.as_slice()));
    let lists: Vec<(String, &[Rule])> =
        once(("token".to_owned(), &*entry.settings.allow)).chain(of_terms).collect();
    let reason = decide_variant(decider, entry, variant);
    let (facts, mut omitted) = subject_facts(decider.facts);
    let mut room = RULES_BYTES_MAX;
    let mut explain = |rule: &Rule| {
        let explained = decider.explain(rule, text_for_absent_fact);
        let rest = room.checked_sub(encoded_size(&explained));
        omitted = omitted.saturating_add(u32::from(rest.is_none()));
        room = rest?;
        Some(explained)
    };
    let mut explained = Vec::new();
    for (of, rules) in &lists {
        let rules = rules.iter().filter_map(&mut explain).collect();
        explained.push(ExplainedList { of: of.clone(), rules });
    }
    ExplainedReply {
        allowed: reason.is_ok(),
        reason: reason.unwrap_or_else(|_| refusal_text(decider, &lists)),
        facts,
        operator: decider.decide(operators).map(|reason| reason.to_string()),
        lists: explained,
        omitted,
    }
}

/// Why no list lets the subject have it.
fn refusal_text(decider: &Decider<'_>, lists: &[(String, &[Rule])]) -> String {
    let refusing = lists.iter().find(|(_, rules)| decider.decide(rules).is_none());
    let mut reason = format!("no rule of the {} matches", refusing.map_or("token", |(of, _)| of));
    let mut names = lists.iter().flat_map(|(_, rules)| *rules).flat_map(Rule::to_resolve);
    if names.any(|name| decider.ids.answer(name).is_none()) {
        reason.push_str(", and the host's name service gives no answer about some names");
    }
    if decider.facts.uid == 0 && decider.root == RootAccess::Deny {
        reason.push_str("; root needs one too ([admin] root = \"deny\")");
    }
    reason
}

/// The most bytes that a rule takes in a reply.
fn encoded_size(rule: &ExplainedRule) -> usize {
    /// The most that the length of one text takes on the wire.
    const FRAMING: usize = 16;
    let texts = rule.conditions.iter().flat_map(|explained| [&explained.condition, &explained.fact]);
    once(&rule.rule).chain(texts).map(|text| text.len() + FRAMING).sum()
}

/// A process of a unit, of which nothing else is known.
fn facts_of_process(pid: u32) -> Result<Facts, ErrorReply> {
    let unknown = |reason: &str| {
        let message = format!("nothing can be found out about process {pid}: {reason}");
        refusal(ErrorCode::InvalidRequest, message)
    };
    let number = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or_else(|| unknown("there is none"))?;
    Peer::of_pid(number).map_err(|error| unknown(&error.to_string()))
}

/// The facts as the protocol has them, and the number of groups that are left out.
fn subject_facts(facts: &Facts) -> (SubjectFacts, u32) {
    let omitted = facts.groups.as_slice().len().saturating_sub(GROUPS_MAX);
    let subject = SubjectFacts {
        uid: Some(facts.uid).filter(|uid| *uid != NO_ID),
        gid: Some(facts.gid).filter(|gid| *gid != NO_ID),
        groups: facts.groups.as_slice().iter().take(GROUPS_MAX).copied().collect(),
        pid: facts.pid.and_then(|pid| u32::try_from(pid).ok()),
        unit: facts.unit.clone(),
        user_unit: facts.user_unit.clone(),
        invocation_id: facts.invocation_id.clone(),
        exe: facts.exe.as_ref().map(|exe| exe.path.to_string_lossy().into_owned()),
    };
    (subject, u32::try_from(omitted).unwrap_or(u32::MAX))
}

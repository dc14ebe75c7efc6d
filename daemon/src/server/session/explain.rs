//! `Explain`: why somebody may have a token or may not.
//!
//! An operator is told everything about everybody. Anybody else is told about itself, and only the reason that lets it have
//! the token: about other tokens it learns no more than from any other request.

use std::sync::Arc;

use tokend_protocol::{
    ErrorCode, ErrorReply, ExplainRequest, ExplainedCondition, ExplainedList, ExplainedReply, ExplainedRule,
    Reply, Subject, SubjectFacts, Variant,
};

use super::authorize::{Authorized, ruled};
use super::{Asked, Session, refusal};
use crate::access::{
    Absent, Facts, Finding, ImplicitAccess, NO_ID, ResolvedIds, RootAccess, Rule, decide, facts_of_user,
    findings,
};
use crate::engine::registry::{Entry, Registry};
use crate::engine::variants;
use crate::peer::Peer;
use crate::server::audit::Operation;

/// Bytes of rules in one reply: half a reply frame, whatever the rules are.
const RULES_BYTES_MAX: usize = 128 * 1024;

/// Groups in one reply. The kernel lets a process have 65,536.
const GROUPS_MAX: usize = 1024;

/// The longest name of a user. Linux allows 32; directory services more.
const USER_BYTES_MAX: usize = 256;

/// The longest name of a unit (systemd.unit(5)).
const UNIT_BYTES_MAX: usize = 255;

impl Session {
    pub(super) async fn explain(&self, request: ExplainRequest) -> Result<Reply, ErrorReply> {
        let ExplainRequest { name, variant, subject } = request;
        let asked = Asked { operation: Operation::Explain, name: &name, variant: &variant };
        let registry = self.registry();
        if subject == Subject::Caller && !self.is_operator(&registry) {
            return self.explain_to_caller(&registry, asked);
        }
        self.authorize_operator(&registry, asked)?;
        let absent = match subject {
            Subject::User(_) | Subject::Unit(_) => Absent::NotAssumed,
            Subject::Caller | Subject::Process(_) => Absent::NotKnown,
        };
        let facts = match subject {
            Subject::Caller => self.peer.facts().clone(),
            Subject::User(user) => look_up_user(user).await?,
            Subject::Process(pid) => facts_of_process(pid)?,
            Subject::Unit(unit) => facts_of_unit(unit)?,
        };
        // Decided again: the caller may have lost its operator rights during the look-up.
        let registry = self.registry();
        let (entry, reason) = self.authorize_operator(&registry, asked)?;
        self.check_variant(asked, &entry)?;
        self.shared.audit.allowed(self.peer.facts(), asked.operation, asked.name, &reason);
        let implicit = self.implicit_access(&registry);
        let case = Case { facts: &facts, absent, implicit, ids: &self.shared.names.ids() };
        Ok(Reply::Explained(case.explanation(&entry, &variant, &registry.admin.allow)))
    }

    fn explain_to_caller(&self, registry: &Arc<Registry>, asked: Asked<'_>) -> Result<Reply, ErrorReply> {
        let Authorized { entry, reason, .. } = self.authorize(registry, asked)?;
        self.check_variant(asked, &entry)?;
        self.shared.audit.allowed(self.peer.facts(), asked.operation, asked.name, &reason);
        let (facts, omitted) = subject_facts(self.peer.facts());
        let reason = reason.to_string();
        let reply =
            ExplainedReply { allowed: true, reason, facts, operator: None, lists: Vec::new(), omitted };
        Ok(Reply::Explained(reply))
    }

    /// Checks whether callers may ask for this variant at all.
    fn check_variant(&self, asked: Asked<'_>, entry: &Entry) -> Result<(), ErrorReply> {
        variants::terms(&entry.settings.credential.terms, &entry.settings.variants, asked.variant)
            .map(drop)
            .map_err(|message| self.no_such_variant(asked, message))
    }
}

/// The subject of a decision, and what the decision goes by besides rules.
struct Case<'a> {
    facts: &'a Facts,
    absent: Absent,
    implicit: ImplicitAccess,
    ids: &'a ResolvedIds,
}

impl Case<'_> {
    fn explanation(&self, entry: &Arc<Entry>, variant: &Variant, operators: &[Rule]) -> ExplainedReply {
        let lists = lists(entry, variant);
        // Decided as every request is, so that the explanation is true.
        let authorized = Authorized::decide(self.facts, self.implicit, entry, self.ids);
        let reason = authorized.and_then(|authorized| authorized.for_variant(variant));
        let reason = reason.map(|authorized| authorized.reason.to_string());
        let operator = decide(self.facts, self.implicit, operators, self.ids);
        let (facts, groups_omitted) = subject_facts(self.facts);
        let mut room = Room { bytes: RULES_BYTES_MAX, omitted: groups_omitted };
        ExplainedReply {
            allowed: reason.is_some(),
            reason: reason.unwrap_or_else(|| self.refusal(&lists)),
            facts,
            operator: operator.map(|reason| reason.to_string()),
            lists: lists.into_iter().map(|list| self.list(list, &mut room)).collect(),
            omitted: room.omitted,
        }
    }

    /// Why no list lets the subject have it.
    fn refusal(&self, lists: &[List<'_>]) -> String {
        let refuses = |list: &&List<'_>| decide(self.facts, self.implicit, list.rules, self.ids).is_none();
        let of = lists.iter().find(refuses).map_or("token", |list| list.of.as_str());
        let mut reason = format!("no rule of the {of} matches");
        let mut names = lists.iter().flat_map(|list| list.rules).flat_map(Rule::names);
        if names.any(|name| self.ids.answer(&name).is_none()) {
            reason.push_str(", and the host's name service gives no answer about some names");
        }
        if self.facts.uid == 0 && self.implicit.root == RootAccess::Deny {
            reason.push_str("; root needs one too ([admin] root = \"deny\")");
        }
        reason
    }

    fn list(&self, list: List<'_>, room: &mut Room) -> ExplainedList {
        let found = findings(self.facts, self.absent, list.rules, self.ids);
        let rules = found.into_iter().map(explained).filter(|rule| room.takes(rule)).collect();
        ExplainedList { of: list.of, rules }
    }
}

/// Rules of which one must match, and what they are the rules of.
struct List<'a> {
    of: String,
    rules: &'a [Rule],
}

/// The lists that decide about a variant of a token.
fn lists<'a>(entry: &'a Entry, variant: &Variant) -> Vec<List<'a>> {
    let of_term = ruled(entry, variant)
        .map(|ruled| List { of: format!("{} {}", ruled.kind.as_str(), ruled.term), rules: &ruled.allow });
    std::iter::once(List { of: "token".to_owned(), rules: &entry.settings.allow }).chain(of_term).collect()
}

fn explained(finding: Finding) -> ExplainedRule {
    let conditions = finding.conditions.into_iter().map(|result| ExplainedCondition {
        condition: result.condition.to_string(),
        holds: result.holds,
        fact: result.fact,
    });
    ExplainedRule {
        rule: finding.rule.to_string(),
        matches: finding.matches,
        conditions: conditions.collect(),
    }
}

/// The bytes that are left in a reply, and the number of rules and groups that did not fit.
struct Room {
    bytes: usize,
    omitted: u32,
}

impl Room {
    fn takes(&mut self, rule: &ExplainedRule) -> bool {
        /// The most that the length of one text takes on the wire.
        const FRAMING: usize = 16;
        let texts = rule.conditions.iter().flat_map(|told| [&told.condition, &told.fact]);
        let bytes: usize = std::iter::once(&rule.rule).chain(texts).map(|text| text.len() + FRAMING).sum();
        let takes = bytes <= self.bytes;
        if takes {
            self.bytes -= bytes;
        } else {
            self.omitted = self.omitted.saturating_add(1);
        }
        takes
    }
}

async fn look_up_user(user: String) -> Result<Facts, ErrorReply> {
    if user.is_empty() || user.len() > USER_BYTES_MAX || user.contains(char::is_control) {
        return Err(refusal(ErrorCode::InvalidRequest, "this cannot be the name of a user"));
    }
    match facts_of_user(user.clone()).await {
        Ok(Some(facts)) => Ok(facts),
        Ok(None) => Err(refusal(ErrorCode::InvalidRequest, format!("this host has no user {user}"))),
        Err(_) => {
            let message = format!("the host's name service gives no answer about user {user}");
            Err(refusal(ErrorCode::Unavailable, message))
        }
    }
}

/// A process of a unit, of which nothing else is known.
fn facts_of_unit(unit: String) -> Result<Facts, ErrorReply> {
    if unit.is_empty() || unit.len() > UNIT_BYTES_MAX || unit.contains(|c: char| c.is_control() || c == '/') {
        return Err(refusal(ErrorCode::InvalidRequest, "this is not the name of a unit"));
    }
    Ok(Facts { uid: NO_ID, gid: NO_ID, unit: Some(unit), ..Facts::default() })
}

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
    let omitted = facts.groups.len().saturating_sub(GROUPS_MAX);
    let subject = SubjectFacts {
        uid: Some(facts.uid).filter(|uid| *uid != NO_ID),
        gid: Some(facts.gid).filter(|gid| *gid != NO_ID),
        groups: facts.groups.iter().take(GROUPS_MAX).copied().collect(),
        pid: facts.pid.and_then(|pid| u32::try_from(pid).ok()),
        unit: facts.unit.clone(),
        user_unit: facts.user_unit.clone(),
        invocation_id: facts.invocation_id.clone(),
        exe: facts.exe.as_ref().map(|exe| exe.path.to_string_lossy().into_owned()),
    };
    (subject, u32::try_from(omitted).unwrap_or(u32::MAX))
}

//! Why somebody may have a token or may not.
//!
//! An operator is told all about everybody. Anybody else is told about itself, and only what lets it have the token:
//! where it may not have it, it learns no more than from any other request.

use std::path::Path;

use tokend_protocol::{
    ErrorCode, ErrorReply, ExplainRequest, ExplainedCondition, ExplainedList, ExplainedReply, ExplainedRule,
    Reply, Subject, SubjectFacts, TokenName, Variant,
};

use super::entitlement::Entitled;
use super::right::{self, Right};
use super::{Session, refusal};
use crate::access::Facts;
use crate::access::directory::{Account, NoAccount, Patience, Resolved};
use crate::access::{Absent, Decision, Finding, ImplicitAccess, RootAccess, Rule, decide, findings};
use crate::engine::registry::{Entry, Registry};
use crate::engine::variants;
use crate::peer::Peer;
use crate::server::audit::Operation;

/// Text of rules in one reply: half a reply frame, whatever the rules are.
const RULES_BYTES_MAX: usize = 128 * 1024;

/// Groups in one reply. The kernel lets a process have 65,536.
const GROUPS_MAX: usize = 1024;

/// The longest name of a user. Linux allows 32; directory services more.
const USER_BYTES_MAX: usize = 256;

/// The longest name of a unit that systemd allows.
const UNIT_BYTES_MAX: usize = 255;

/// What the kernel calls no user.
const NO_USER: u32 = u32::MAX;

/// What the kernel calls no group.
const NO_GROUP: u32 = u32::MAX;

impl Session {
    pub(super) async fn explain(&self, request: ExplainRequest) -> Result<Reply, ErrorReply> {
        // Who was an operator when it was asked is told nothing when it has ceased to be one.
        self.in_force(|_| self.explained(request.clone())).await?
    }

    async fn explained(&self, request: ExplainRequest) -> Result<Reply, ErrorReply> {
        let ExplainRequest { name, variant, subject } = request;
        let patience = Patience::of_a_request();
        let operator = self.operator(patience).await;
        let registry = self.registry();
        if let (Ok(grounds), Some(entry)) = (operator, registry.find(&name)) {
            self.check_form(&name, entry, &variant)?;
            self.allowed(Operation::Explain, &name, &grounds);
            let absent = match subject {
                Subject::User(_) | Subject::Unit(_) => Absent::NotAssumed,
                Subject::Caller | Subject::Process(_) => Absent::NotKnown,
            };
            let facts = (&self.facts_of(subject).await?, absent);
            let explained = self.explanation(&registry, entry, &variant, facts, patience).await;
            return Ok(Reply::Explained(explained));
        }
        if subject != Subject::Caller {
            return Err(self.not_an_operator(&name, &variant, Operation::Explain, patience).await);
        }
        let Entitled { entry, grounds } =
            self.entitled(&name, &variant, Operation::Explain, patience).await?;
        self.check_form(&name, &entry, &variant)?;
        self.allowed(Operation::Explain, &name, &grounds);
        let (facts, omitted) = told(self.peer.facts());
        let reason = grounds.to_string();
        let reply =
            ExplainedReply { allowed: true, reason, facts, operator: None, lists: Vec::new(), omitted };
        Ok(Reply::Explained(reply))
    }

    /// What is known of whom the question is about.
    async fn facts_of(&self, subject: Subject) -> Result<Facts, ErrorReply> {
        match subject {
            Subject::Caller => Ok(self.peer.facts().clone()),
            Subject::User(user) => facts_of_user(user).await,
            Subject::Process(pid) => facts_of_process(pid),
            Subject::Unit(unit) => facts_of_unit(unit),
        }
    }

    /// Whether callers may ask for this form at all.
    fn check_form(&self, name: &TokenName, entry: &Entry, variant: &Variant) -> Result<(), ErrorReply> {
        variants::settings(entry.settings(), &entry.permitted, variant)
            .map(drop)
            .map_err(|message| self.no_such_form(Operation::Explain, name, message))
    }

    async fn explanation(
        &self,
        registry: &Registry,
        entry: &Entry,
        variant: &Variant,
        (facts, absent): (&Facts, Absent),
        patience: Patience,
    ) -> ExplainedReply {
        let operators = registry.admin.allow.iter().flat_map(Rule::names);
        let names: Vec<_> = entry.names_in_rules().chain(operators).collect();
        let resolved = self.shared.directory.resolve(&names, patience).await;
        let case =
            Case { facts, absent, implicit_access: self.implicit_access(registry), resolved: &resolved };
        case.explanation(entry, variant, &registry.admin.allow)
    }
}

/// Whom a decision is about, and what it is decided by besides rules.
struct Case<'a> {
    facts: &'a Facts,
    absent: Absent,
    implicit_access: ImplicitAccess,
    resolved: &'a Resolved,
}

impl Case<'_> {
    fn explanation(&self, entry: &Entry, variant: &Variant, operators: &[Rule]) -> ExplainedReply {
        let lists = lists(entry, variant);
        // Decided as every request is, so that what is explained is what happens.
        let right = Right::decide(self.facts, self.implicit_access, entry, &self.resolved.numbers);
        let grounds = right.and_then(|right| right.to(entry, variant));
        let operator = match decide(self.facts, self.implicit_access, operators, &self.resolved.numbers) {
            Decision::Allow(grounds) => Some(grounds.to_string()),
            Decision::Deny => None,
        };
        let (facts, groups_omitted) = told(self.facts);
        let mut room = Room { bytes: RULES_BYTES_MAX, omitted: groups_omitted };
        ExplainedReply {
            allowed: grounds.is_some(),
            reason: grounds.map_or_else(|| self.refusal(&lists), |grounds| grounds.to_string()),
            facts,
            operator,
            lists: lists.into_iter().map(|list| self.list(list, &mut room)).collect(),
            omitted: room.omitted,
        }
    }

    /// Why nothing lets it.
    fn refusal(&self, lists: &[List<'_>]) -> String {
        let numbers = &self.resolved.numbers;
        let lets_in =
            |list: &&List<'_>| decide(self.facts, self.implicit_access, list.rules, numbers).is_allowed();
        let refusing = lists.iter().find(|list| !lets_in(list));
        let of = refusing.map_or("token", |list| list.of.as_str());
        let mut reason = format!("no rule of the {of} matches");
        if !self.resolved.is_complete {
            reason.push_str(", and the host's name service gives no answer about some names");
        }
        if self.facts.uid == 0 && self.implicit_access.root == RootAccess::Deny {
            reason.push_str("; root needs one too ([admin] root = \"deny\")");
        }
        reason
    }

    fn list(&self, list: List<'_>, room: &mut Room) -> ExplainedList {
        let found = findings(self.facts, self.absent, list.rules, &self.resolved.numbers);
        let rules = found.into_iter().map(explained).filter(|rule| room.takes(rule)).collect();
        ExplainedList { of: list.of, rules }
    }
}

/// Rules one of which must match, and whose they are.
struct List<'a> {
    of: String,
    rules: &'a [Rule],
}

/// The lists that count for a form of a token.
fn lists<'a>(entry: &'a Entry, variant: &Variant) -> Vec<List<'a>> {
    let of_term = right::ruled(entry, variant)
        .map(|ruled| List { of: format!("{} {}", ruled.kind.as_str(), ruled.term), rules: &ruled.allow });
    std::iter::once(List { of: "token".to_owned(), rules: &entry.allow }).chain(of_term).collect()
}

fn explained(finding: Finding) -> ExplainedRule {
    let conditions = finding.conditions.into_iter().map(|holding| ExplainedCondition {
        condition: holding.condition.to_string(),
        holds: holding.holds,
        fact: holding.fact,
    });
    ExplainedRule {
        rule: finding.rule.to_string(),
        matches: finding.matches,
        conditions: conditions.collect(),
    }
}

/// What is left of a reply.
struct Room {
    bytes: usize,
    omitted: u32,
}

impl Room {
    fn takes(&mut self, rule: &ExplainedRule) -> bool {
        /// Lengths and marks of one text on the wire, at most.
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

async fn facts_of_user(user: String) -> Result<Facts, ErrorReply> {
    if user.is_empty() || user.len() > USER_BYTES_MAX || user.contains(char::is_control) {
        return Err(refusal(ErrorCode::InvalidRequest, "that cannot be the name of a user"));
    }
    match Account::of(user.clone()).await {
        Ok(Account { uid, gid, groups }) => {
            Ok(Facts { uid, gid: gid.unwrap_or(NO_GROUP), groups, ..Facts::default() })
        }
        Err(NoAccount::Unknown) => {
            Err(refusal(ErrorCode::InvalidRequest, format!("this host has no user {user}")))
        }
        Err(NoAccount::Unanswered) => {
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
    Ok(Facts { uid: NO_USER, gid: NO_GROUP, unit: Some(unit), ..Facts::default() })
}

fn facts_of_process(pid: u32) -> Result<Facts, ErrorReply> {
    let unknown = |reason: &str| {
        let message = format!("nothing can be found out about process {pid}: {reason}");
        refusal(ErrorCode::InvalidRequest, message)
    };
    let number = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or_else(|| unknown("there is none"))?;
    Peer::of_pid(number).map_err(|error| unknown(&error.to_string()))
}

/// The facts as they are told, and how many groups are left out.
fn told(facts: &Facts) -> (SubjectFacts, u32) {
    let omitted = facts.groups.len().saturating_sub(GROUPS_MAX);
    let told = SubjectFacts {
        uid: Some(facts.uid).filter(|uid| *uid != NO_USER),
        gid: Some(facts.gid).filter(|gid| *gid != NO_GROUP),
        groups: facts.groups.iter().take(GROUPS_MAX).copied().collect(),
        pid: facts.pid.and_then(|pid| u32::try_from(pid).ok()),
        unit: facts.unit.clone(),
        user_unit: facts.user_unit.clone(),
        invocation_id: facts.invocation_id.clone(),
        exe: facts.exe.as_deref().map(Path::to_string_lossy).map(String::from),
    };
    (told, u32::try_from(omitted).unwrap_or(u32::MAX))
}

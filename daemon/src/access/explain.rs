//! Why a rule matches or does not, condition by condition, for whoever wants a decision explained.

use super::{Condition, Principal, ResolvedIds, Rule, holds};
use crate::access::Facts;

/// A rule, and how it fares with the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// Whether it matches: all of its conditions hold.
    pub matches: bool,
    /// Its conditions.
    pub conditions: Vec<ConditionResult>,
}

/// A condition, and how it fares with the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionResult {
    /// The condition.
    pub condition: Condition,
    /// Whether it holds.
    pub holds: bool,
    /// The fact that makes it hold or not, in words.
    pub fact: String,
}

/// Why a fact may be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It is about a process, and cannot be proved.
    NotKnown,
    /// It is about a user, who may run anything.
    NotAssumed,
}

impl Absent {
    fn as_str(self) -> &'static str {
        match self {
            Self::NotKnown => "not known",
            Self::NotAssumed => "not assumed",
        }
    }
}

/// How each of the rules fares. What matches here is what [`super::decide`] lets in, implicit_access apart.
pub fn findings(peer: &Facts, absent: Absent, rules: &[Rule], numbers: &ResolvedIds) -> Vec<Finding> {
    let finding = |rule: &Rule| {
        let conditions: Vec<ConditionResult> =
            rule.conditions().iter().map(|condition| holding(peer, absent, condition, numbers)).collect();
        Finding { rule: rule.clone(), matches: conditions.iter().all(|told| told.holds), conditions }
    };
    rules.iter().map(finding).collect()
}

fn holding(peer: &Facts, absent: Absent, condition: &Condition, numbers: &ResolvedIds) -> ConditionResult {
    let known = |what: &str, fact: Option<String>| match fact {
        Some(fact) => format!("the {what} is {fact}"),
        None => format!("the {what} is {}", absent.as_str()),
    };
    let holds = holds(peer, condition, numbers);
    let fact = match condition {
        Condition::User(user) => unanswered(condition, numbers).unwrap_or_else(|| match user {
            Principal::Name(name) if !holds => {
                format!("the user is {}, and {name} is {}", peer.uid, number(condition, numbers))
            }
            Principal::Name(_) | Principal::Id(_) => format!("the user is {}", peer.uid),
        }),
        Condition::Group(group) => unanswered(condition, numbers).unwrap_or_else(|| {
            let among = if holds { "is" } else { "is not" };
            let group = match group {
                Principal::Name(name) => format!("{} ({name})", number(condition, numbers)),
                Principal::Id(id) => id.to_string(),
            };
            format!("group {group} {among} among its groups")
        }),
        Condition::Unit(_) => known("unit", peer.unit.clone()),
        Condition::UserUnit(_) => known("user unit", peer.user_unit.clone()),
        Condition::Exe(_) => known("executable", peer.exe.as_ref().map(|path| path.display().to_string())),
    };
    ConditionResult { condition: condition.clone(), holds, fact }
}

/// What there is to say of a name without a number.
fn unanswered(condition: &Condition, numbers: &ResolvedIds) -> Option<String> {
    let name = condition.name()?;
    match numbers.answer(&name) {
        Some(Some(_)) => None,
        Some(None) => Some(format!("this host has no {name}")),
        None => Some(format!("the host's name service gives no answer about {name}")),
    }
}

fn number(condition: &Condition, numbers: &ResolvedIds) -> String {
    let number = condition.name().and_then(|name| numbers.answer(&name).flatten());
    number.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
}

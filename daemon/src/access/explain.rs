//! Explains, condition by condition, why a rule matches or does not.

use super::facts::NO_ID;
use super::{Condition, Facts, Id, Named, Principal, ResolvedIds, Rule, holds};

/// A rule, and whether it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// Whether it matches: all of its conditions hold.
    pub matches: bool,
    /// Its conditions.
    pub conditions: Vec<ConditionResult>,
}

/// A condition, and whether it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionResult {
    /// The condition.
    pub condition: Condition,
    /// Whether it holds.
    pub holds: bool,
    /// The fact that decides, in words.
    pub fact: String,
}

/// Why a fact may be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The question is about a process, and the fact cannot be proved.
    NotKnown,
    /// The question is about any process of a user or a unit.
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

/// Explains each of `rules`. The rules that match here are those that [`super::decide`] goes by.
pub fn findings(peer: &Facts, absent: Absent, rules: &[Rule], ids: &ResolvedIds) -> Vec<Finding> {
    let result = |condition: &Condition| ConditionResult {
        condition: condition.clone(),
        holds: holds(peer, condition, ids),
        fact: fact(peer, absent, condition, ids),
    };
    let finding = |rule: &Rule| {
        let conditions: Vec<ConditionResult> = rule.conditions().iter().map(result).collect();
        Finding { rule: rule.clone(), matches: conditions.iter().all(|result| result.holds), conditions }
    };
    rules.iter().map(finding).collect()
}

fn fact(peer: &Facts, absent: Absent, condition: &Condition, ids: &ResolvedIds) -> String {
    let name = condition.name().filter(|name| !matches!(name, Named::Executable(_)));
    match name.as_ref().map(|name| ids.answer(name)) {
        Some(Some(None)) => return format!("this host has no {condition:#}"),
        Some(None) => return format!("the host's name service gives no answer about {condition:#}"),
        Some(Some(Some(_))) | None => (),
    }
    let number = match name.as_ref().and_then(|name| ids.id(name)) {
        Some(Id::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let is = |what: &str, fact: Option<&str>| format!("the {what} is {}", fact.unwrap_or(absent.as_str()));
    match condition {
        Condition::User(_) if peer.uid == NO_ID => is("user", None),
        Condition::User(Principal::Name(name)) if !holds(peer, condition, ids) => {
            format!("the user is {}, and {name} is {number}", peer.uid)
        }
        Condition::User(_) => is("user", Some(&peer.uid.to_string())),
        Condition::Group(_) if peer.uid == NO_ID => is("group", None),
        Condition::Group(group) => {
            let among = if holds(peer, condition, ids) { "is" } else { "is not" };
            let group = match group {
                Principal::Name(name) => format!("{number} ({name})"),
                Principal::Id(id) => id.to_string(),
            };
            format!("group {group} {among} among its groups")
        }
        Condition::Unit(_) => is("unit", peer.unit.as_deref()),
        Condition::UserUnit(_) => is("user unit", peer.user_unit.as_deref()),
        Condition::Exe(path) => match &peer.exe {
            Some(exe) if exe.path == *path && !holds(peer, condition, ids) => {
                format!("the executable is another file than {} of this host", path.display())
            }
            exe => is("executable", exe.as_ref().map(|exe| exe.path.to_string_lossy()).as_deref()),
        },
    }
}

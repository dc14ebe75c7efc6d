//! Who may have what. Pure: facts and rules in, a decision with its reason out. Default deny.

pub mod directory;
mod explain;
mod facts;
mod rule;

use std::collections::HashMap;
use std::fmt;

pub use self::explain::{Absent, ConditionResult, Finding, findings};
pub use self::facts::{Abilities, Facts};
pub use self::rule::{Condition, Conditions, Named, Principal, Rule, UnitPattern};

/// Who needs no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImplicitAccess {
    /// The daemon's own user, which could read what the daemon reads.
    pub own_uid: u32,
    /// Whether root is among them.
    pub root: RootAccess,
}

/// `[admin] root`: whether root needs no rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootAccess {
    /// `"allow"`: it needs none.
    #[default]
    Allow,
    /// `"deny"`: it is let in by rules alone, as everybody else.
    Deny,
}

/// What the host's name service said about the names in rules. One that is not in here was not answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedIds(HashMap<Named, Option<u32>>);

/// Whether a peer may, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Allow(Reason),
    /// It may not: nothing that is configured lets it.
    Deny,
}

/// Why a peer may. As text it is stable: audit records are searched by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is root.
    Root,
    /// It is the daemon's own user.
    OwnUser,
    /// These rules match: one of the token's, and one for each of the terms asked for that has rules of its own.
    Rules(Vec<Rule>),
}

impl ImplicitAccess {
    /// The grounds on which a peer needs no rule.
    pub fn grounds(&self, peer: &Facts) -> Option<Reason> {
        match (peer.uid, self.root) {
            (0, RootAccess::Allow) => Some(Reason::Root),
            // Also where the daemon itself is root's: otherwise the switch would do nothing there.
            (0, RootAccess::Deny) => None,
            (uid, _) => (uid == self.own_uid).then_some(Reason::OwnUser),
        }
    }
}

impl Reason {
    /// The rules that matched; none for those who need none.
    pub fn rules(&self) -> &[Rule] {
        match self {
            Self::Rules(rules) => rules,
            Self::Root | Self::OwnUser => &[],
        }
    }
}

impl ResolvedIds {
    /// Notes what was said about a name: its number, or that there is no such user or group.
    pub fn note(&mut self, name: Named, number: Option<u32>) {
        self.0.insert(name, number);
    }

    /// What was said about a name; the outer `None` where nothing was.
    pub fn answer(&self, name: &Named) -> Option<Option<u32>> {
        self.0.get(name).copied()
    }
}

impl Decision {
    /// Whether the peer may.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// Decides. The first rule that matches is the reason.
pub fn decide(
    peer: &Facts,
    implicit_access: ImplicitAccess,
    rules: &[Rule],
    numbers: &ResolvedIds,
) -> Decision {
    let by_rule = || {
        let rule = rules.iter().find(|rule| rule_matches(peer, rule, numbers))?;
        Some(Reason::Rules(vec![rule.clone()]))
    };
    implicit_access.grounds(peer).or_else(by_rule).map_or(Decision::Deny, Decision::Allow)
}

fn rule_matches(peer: &Facts, rule: &Rule, numbers: &ResolvedIds) -> bool {
    rule.conditions().iter().all(|condition| holds(peer, condition, numbers))
}

/// Whether a condition holds. A fact that is absent fulfils none.
fn holds(peer: &Facts, condition: &Condition, numbers: &ResolvedIds) -> bool {
    let number = |principal: &Principal| match principal {
        Principal::Id(id) => Some(*id),
        Principal::Name(_) => numbers.answer(&condition.name()?).flatten(),
    };
    match condition {
        Condition::User(user) => number(user) == Some(peer.uid),
        Condition::Group(group) => {
            number(group).is_some_and(|gid| peer.gid == gid || peer.groups.contains(&gid))
        }
        Condition::Unit(pattern) => peer.unit.as_ref().is_some_and(|unit| pattern.matches(unit)),
        Condition::UserUnit(pattern) => peer.user_unit.as_ref().is_some_and(|unit| pattern.matches(unit)),
        Condition::Exe(path) => peer.exe.as_ref() == Some(path),
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::OwnUser => f.write_str("the daemon's own user"),
            Self::Rules(rules) => {
                let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
                f.write_str(&rules.join("; "))
            }
        }
    }
}

#[cfg(test)]
mod tests;

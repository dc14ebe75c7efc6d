//! Decides which caller may have which token: facts and rules in, a reason out. The default is to deny. Only `names` and
//! `account` ask the host; all else is pure.

mod account;
mod explain;
mod facts;
mod names;
mod rule;

use std::fmt;

pub use self::account::facts_of_user;
#[cfg(test)]
pub use self::account::hold_look_ups;
pub use self::explain::{Absent, ConditionResult, Finding, findings};
pub use self::facts::{Abilities, Executable, Facts, NO_ID};
pub use self::names::{Id, Names, ResolvedIds, group_id};
pub use self::rule::{Condition, Conditions, Named, Principal, Rule, UnitPattern};

/// The callers that need no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImplicitAccess {
    /// The daemon's own user, which could read what the daemon reads.
    pub own_uid: u32,
    /// Whether root needs no rule either.
    pub root: RootAccess,
}

/// `[admin] root`: whether root needs a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootAccess {
    /// `"allow"`: root needs none.
    #[default]
    Allow,
    /// `"deny"`: root needs a rule, as everybody else.
    Deny,
}

/// Why a caller is allowed something. Its text is stable: audit records are searched by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is root.
    Root,
    /// It is the daemon's own user.
    OwnUser,
    /// These rules match: one of the token's, and one for each of the terms asked for that has rules of its own.
    Rules(Vec<Rule>),
}

impl ImplicitAccess {
    /// Why a caller needs no rule, if it needs none.
    pub fn reason(&self, peer: &Facts) -> Option<Reason> {
        match (peer.uid, self.root) {
            (0, RootAccess::Allow) => Some(Reason::Root),
            // Root needs a rule even if root is the daemon's own user. Otherwise "deny" would change nothing then.
            (0, RootAccess::Deny) => None,
            (uid, _) => (uid == self.own_uid).then_some(Reason::OwnUser),
        }
    }
}

impl Reason {
    /// The rules that matched; none for callers that need none.
    pub fn rules(&self) -> &[Rule] {
        match self {
            Self::Rules(rules) => rules,
            Self::Root | Self::OwnUser => &[],
        }
    }
}

/// Decides whether a caller is allowed what `rules` are about: the reason, or `None` if it is not. The first rule that
/// matches is the reason.
pub fn decide(peer: &Facts, implicit: ImplicitAccess, rules: &[Rule], ids: &ResolvedIds) -> Option<Reason> {
    implicit.reason(peer).or_else(|| {
        let rule = rules.iter().find(|rule| matches(peer, rule, ids))?;
        Some(Reason::Rules(vec![rule.clone()]))
    })
}

fn matches(peer: &Facts, rule: &Rule, ids: &ResolvedIds) -> bool {
    rule.conditions().iter().all(|condition| holds(peer, condition, ids))
}

/// Whether a condition holds. An absent fact fulfils none.
fn holds(peer: &Facts, condition: &Condition, ids: &ResolvedIds) -> bool {
    let number = |principal: &Principal| match principal {
        Principal::Id(id) => Some(*id),
        Principal::Name(_) => match ids.id(&condition.name()?)? {
            Id::Number(number) => Some(number),
            Id::File { .. } => None,
        },
    };
    match condition {
        Condition::User(user) => number(user) == Some(peer.uid),
        Condition::Group(group) => {
            number(group).is_some_and(|gid| peer.gid == gid || peer.groups.contains(&gid))
        }
        Condition::Unit(pattern) => peer.unit.as_ref().is_some_and(|unit| pattern.matches(unit)),
        Condition::UserUnit(pattern) => peer.user_unit.as_ref().is_some_and(|unit| pattern.matches(unit)),
        Condition::Exe(path) => peer.exe.as_ref().is_some_and(|exe| {
            exe.path == *path && condition.name().and_then(|name| ids.id(&name)) == Some(exe.file)
        }),
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

//! Decides which caller may have which token: facts and rules in, a reason out. The default is to deny. Only `names` asks
//! the host; all else is pure.

mod explain;
mod facts;
mod groups;
mod names;
mod rule;

use std::fmt;

pub use self::facts::{Abilities, Executable, Facts, NO_ID};
pub use self::groups::{GroupLists, Groups};
pub use self::names::{Id, Names, ResolvedIds, group_id};
pub use self::rule::{Condition, Principal, Rule, UnitPattern};

/// Decides about one process.
#[derive(Clone, Copy, Debug)]
pub struct Decider<'a> {
    pub facts: &'a Facts,
    /// The daemon's own user. It needs no rule, because it could read what the daemon reads.
    pub own_uid: u32,
    pub root: RootAccess,
    pub ids: &'a ResolvedIds,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason<'a> {
    Root,
    OwnUser,
    Rule(&'a Rule),
}

impl Decider<'_> {
    /// Why the process is allowed what `rules` are about; `None` if it is not. The first rule that matches is the reason.
    pub fn decide<'r>(&self, rules: &'r [Rule]) -> Option<Reason<'r>> {
        match (self.facts.uid, self.root) {
            (0, RootAccess::Allow) => Some(Reason::Root),
            // Root needs a rule even if root is the daemon's own user. Otherwise "deny" would change nothing then.
            (uid, _) if uid != 0 && uid == self.own_uid => Some(Reason::OwnUser),
            _ => rules.iter().find(|rule| self.matches(rule)).map(Reason::Rule),
        }
    }

    fn matches(&self, rule: &Rule) -> bool {
        rule.conditions().iter().all(|condition| self.holds(condition))
    }

    /// Whether a condition holds. An absent fact fulfils none.
    fn holds(&self, condition: &Condition) -> bool {
        let Self { facts, ids, .. } = self;
        match condition {
            Condition::User(_) => ids.id(condition) == Some(Id::Number(facts.uid)),
            Condition::Group(_) => match ids.id(condition) {
                Some(Id::Number(gid)) => facts.gid == gid || facts.groups.contains(gid),
                Some(Id::File { .. }) | None => false,
            },
            Condition::Unit(pattern) => facts.unit.as_ref().is_some_and(|unit| pattern.matches(unit)),
            Condition::UserUnit(pattern) => {
                facts.user_unit.as_ref().is_some_and(|unit| pattern.matches(unit))
            }
            Condition::Exe(path) => {
                facts.exe.as_ref().is_some_and(|exe| exe.path == *path && ids.id(condition) == Some(exe.file))
            }
        }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::OwnUser => f.write_str("the daemon's own user"),
            Self::Rule(rule) => rule.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;

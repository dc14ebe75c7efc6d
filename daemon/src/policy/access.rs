//! Who may have what. Pure: facts and rules in, a decision with its reason out. Default deny.

use std::fmt;

use crate::peer::Facts;

/// One entry of an `allow` list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `user:NAME` or `user:UID`: the peer's effective user.
    User(Principal),
    /// `group:NAME` or `group:GID`: the peer's effective group or one of its supplementary groups.
    Group(Principal),
    /// `unit:NAME`: the systemd system unit that the peer runs in.
    Unit(String),
}

/// A user or a group, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Looked up in the host's name service when it is needed.
    Name(String),
    /// Taken as it is.
    Id(u32),
}

/// A rule whose names have been looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRule {
    /// The rule as configured, for the reason.
    pub rule: Rule,
    /// The number of its user or group; `None` for one that this host does not know, which matches nobody.
    pub id: Option<u32>,
}

/// Whether a peer may, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Allow(Grounds),
    /// It may not: nothing that is configured lets it.
    Deny,
}

/// Why a peer may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grounds {
    /// It is root.
    Root,
    /// It is the daemon's own user.
    OwnUser,
    /// This rule matches.
    Rule(Rule),
}

impl Decision {
    /// Whether the peer may.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// Decides. `own_uid` is the daemon's own user.
pub fn decide(peer: &Facts, own_uid: u32, rules: &[ResolvedRule]) -> Decision {
    if peer.uid == 0 {
        return Decision::Allow(Grounds::Root);
    }
    if peer.uid == own_uid {
        return Decision::Allow(Grounds::OwnUser);
    }
    rules
        .iter()
        .find(|resolved| matches(peer, resolved))
        .map_or(Decision::Deny, |resolved| Decision::Allow(Grounds::Rule(resolved.rule.clone())))
}

fn matches(peer: &Facts, resolved: &ResolvedRule) -> bool {
    match &resolved.rule {
        Rule::User(_) => resolved.id == Some(peer.uid),
        Rule::Group(_) => resolved.id.is_some_and(|gid| peer.gid == gid || peer.groups.contains(&gid)),
        Rule::Unit(unit) => peer.unit.as_ref() == Some(unit),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user:{user}"),
            Self::Group(group) => write!(f, "group:{group}"),
            Self::Unit(unit) => write!(f, "unit:{unit}"),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => id.fmt(f),
        }
    }
}

impl fmt::Display for Grounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::OwnUser => f.write_str("the daemon's own user"),
            Self::Rule(rule) => rule.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN_UID: u32 = 900;

    fn peer() -> Facts {
        Facts {
            uid: 1001,
            gid: 1001,
            groups: vec![27, 50],
            pid: Some(7),
            unit: Some("billing.service".into()),
            ..Facts::default()
        }
    }

    fn rule(rule: Rule) -> ResolvedRule {
        let id = match &rule {
            Rule::User(Principal::Id(id)) | Rule::Group(Principal::Id(id)) => Some(*id),
            _ => None,
        };
        ResolvedRule { rule, id }
    }

    #[test]
    fn nobody_gets_anything_by_default_but_root_and_the_daemon_itself() {
        assert_eq!(decide(&peer(), OWN_UID, &[]), Decision::Deny);
        assert_eq!(decide(&Facts { uid: 0, ..peer() }, OWN_UID, &[]), Decision::Allow(Grounds::Root));
        assert_eq!(
            decide(&Facts { uid: OWN_UID, ..peer() }, OWN_UID, &[]),
            Decision::Allow(Grounds::OwnUser)
        );
    }

    #[test]
    fn each_kind_of_rule_matches_what_it_names_and_nothing_else() {
        let cases = [
            (Rule::User(Principal::Id(1001)), true),
            (Rule::User(Principal::Id(27)), false),
            (Rule::Group(Principal::Id(1001)), true),
            (Rule::Group(Principal::Id(50)), true),
            (Rule::Group(Principal::Id(0)), false),
            (Rule::Unit("billing.service".into()), true),
            (Rule::Unit("billing".into()), false),
            (Rule::Unit("other.service".into()), false),
        ];
        for (case, expected) in cases {
            let decision = decide(&peer(), OWN_UID, &[rule(case.clone())]);
            assert_eq!(decision.is_allowed(), expected, "{case}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_is_the_reason() {
        let rules =
            [Rule::User(Principal::Id(1)), Rule::Group(Principal::Id(27)), Rule::User(Principal::Id(1001))];
        let decision = decide(&peer(), OWN_UID, &rules.clone().map(rule));
        assert_eq!(decision, Decision::Allow(Grounds::Rule(rules[1].clone())));
    }

    #[test]
    fn a_name_that_the_host_does_not_know_and_an_absent_fact_match_nobody() {
        let unknown = ResolvedRule { rule: Rule::User(Principal::Name("ghost".into())), id: None };
        let unit = rule(Rule::Unit("billing.service".into()));
        let peer = Facts { unit: None, ..peer() };
        assert_eq!(decide(&peer, OWN_UID, &[unknown, unit]), Decision::Deny);
    }
}

//! The rules of an `allow` list, and the conditions of a rule.

use std::fmt;
use std::path::PathBuf;

/// One entry of an `allow` list: the conditions that must all hold of a process. Only [`Rule::ANY`] has none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule(Vec<Condition>);

/// One thing that must be true of a process. The order is that in which a rule is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Condition {
    /// Its effective user.
    User(Principal),
    /// Its effective group or one of its supplementary groups.
    Group(Principal),
    /// The systemd system unit that it runs in.
    Unit(UnitPattern),
    /// The unit of its user's own service manager. That user chooses the name, so it says nothing without the user.
    UserUnit(UnitPattern),
    /// Its executable, by the path that the kernel gives.
    Exe(PathBuf),
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    Name(String),
    Id(u32),
}

/// A unit, or all instances of a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitPattern {
    /// `billing.service`, `pay@eu.service`.
    Exact(String),
    /// `pay@*.service`: the template up to and with the `@`, the suffix from the dot on.
    Instances { template: String, suffix: String },
}

impl Rule {
    /// `any`: every process that reaches the socket.
    pub const ANY: Self = Self(Vec::new());

    /// The rule of several conditions, in the order in which a rule is shown. `None` without conditions, because such a
    /// rule would let everybody in.
    pub fn all(mut conditions: Vec<Condition>) -> Option<Self> {
        conditions.sort_unstable();
        conditions.dedup();
        (!conditions.is_empty()).then_some(Self(conditions))
    }

    pub fn conditions(&self) -> &[Condition] {
        &self.0
    }

    /// Whether it is about the process and not only about its user and groups.
    pub fn is_about_process(&self) -> bool {
        self.0.iter().any(|condition| !matches!(condition, Condition::User(_) | Condition::Group(_)))
    }

    /// The conditions with a name or a path that has to be resolved on this host.
    pub fn to_resolve(&self) -> impl Iterator<Item = &Condition> {
        self.0.iter().filter(|condition| match condition {
            Condition::User(principal) | Condition::Group(principal) => {
                matches!(principal, Principal::Name(_))
            }
            Condition::Exe(_) => true,
            Condition::Unit(_) | Condition::UserUnit(_) => false,
        })
    }

    /// Whether this rule has only conditions of `other`, so that a caller that matches `other` matches this rule too.
    pub fn includes(&self, other: &Self) -> bool {
        self.0.iter().all(|condition| other.0.contains(condition))
    }
}

impl UnitPattern {
    pub fn matches(&self, unit: &str) -> bool {
        match self {
            Self::Exact(name) => name == unit,
            Self::Instances { template, suffix } => unit
                .strip_prefix(template)
                .and_then(|rest| rest.strip_suffix(suffix))
                .is_some_and(|instance| !instance.is_empty()),
        }
    }
}

/// As it is written in a configuration. Several conditions are joined by "and".
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ANY {
            return f.write_str("any");
        }
        let conditions: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&conditions.join(" and "))
    }
}

/// As it is written in a configuration. The alternate form (`{:#}`) has a space instead of the colon.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, value): (&str, &dyn fmt::Display) = match self {
            Self::User(user) => ("user", user),
            Self::Group(group) => ("group", group),
            Self::Unit(unit) => ("unit", unit),
            Self::UserUnit(unit) => ("user_unit", unit),
            Self::Exe(path) => ("exe", &path.display()),
        };
        let separator = if f.alternate() { ' ' } else { ':' };
        write!(f, "{kind}{separator}{value}")
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

impl fmt::Display for UnitPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Instances { template, suffix } => write!(f, "{template}*{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Rule {
        /// The rule of a single condition.
        pub(crate) fn of(condition: Condition) -> Self {
            Self(vec![condition])
        }
    }

    fn user(id: u32) -> Condition {
        Condition::User(Principal::Id(id))
    }

    fn unit(name: &str) -> Condition {
        Condition::Unit(UnitPattern::Exact(name.into()))
    }

    fn all(conditions: &[Condition]) -> Rule {
        Rule::all(conditions.to_vec()).unwrap()
    }

    #[test]
    fn there_is_no_rule_of_no_conditions() {
        assert_eq!(Rule::all(Vec::new()), None);
    }

    #[test]
    fn the_order_of_conditions_makes_no_other_rule() {
        let (one, other) = (all(&[unit("a.service"), user(1)]), all(&[user(1), unit("a.service"), user(1)]));
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "user:1 and unit:a.service");
        assert_eq!(Rule::ANY.to_string(), "any");
    }

    #[test]
    fn an_instance_is_of_its_template_and_has_a_name() {
        let pattern = UnitPattern::Instances { template: "pay@".into(), suffix: ".service".into() };
        for unit in ["pay@eu.service", "pay@a-b\\x2dc.service", "pay@x.service.service"] {
            assert!(pattern.matches(unit), "{unit}");
        }
        for unit in [
            "pay@.service",
            "pay.service",
            "pay@eu.scope",
            "xpay@eu.service",
            "pay@eu.service.d",
            "pay@service",
        ] {
            assert!(!pattern.matches(unit), "{unit}");
        }
        assert_eq!(pattern.to_string(), "pay@*.service");
    }

    #[test]
    fn a_wider_rule_has_some_of_the_conditions() {
        let (one, both) = (all(&[user(1)]), all(&[user(1), unit("a.service")]));
        assert!(Rule::ANY.includes(&one) && one.includes(&both));
        assert!(!one.includes(&Rule::ANY) && !both.includes(&one) && !one.includes(&all(&[user(2)])));
    }
}

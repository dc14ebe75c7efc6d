//! The rules of an `allow` list, and the conditions of a rule.

use std::fmt;
use std::path::PathBuf;

/// One entry of an `allow` list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `any`: every process that reaches the socket.
    Any,
    /// A process of which all of these hold.
    All(Conditions),
}

/// Conditions of which all must hold. There is one at least: a rule without any would let everybody in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conditions(Vec<Condition>);

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

/// A user or a group, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// By name.
    Name(String),
    /// By number.
    Id(u32),
}

/// A unit, or all instances of a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitPattern {
    /// `billing.service`, `pay@eu.service`.
    Exact(String),
    /// `pay@*.service`.
    Instances {
        /// Up to and with the `@`.
        template: String,
        /// From the dot on.
        suffix: String,
    },
}

/// A name in a rule that has to be resolved on this host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Named {
    /// The name of a user.
    User(String),
    /// The name of a group.
    Group(String),
    /// The path of an executable.
    Executable(PathBuf),
}

impl Rule {
    /// The rule of a single condition.
    pub fn of(condition: Condition) -> Self {
        Self::All(Conditions(vec![condition]))
    }

    /// Its conditions; [`Rule::Any`] has none.
    pub fn conditions(&self) -> &[Condition] {
        match self {
            Self::Any => &[],
            Self::All(conditions) => &conditions.0,
        }
    }

    /// The names in it that have to be resolved.
    pub fn names(&self) -> impl Iterator<Item = Named> + use<'_> {
        self.conditions().iter().filter_map(Condition::name)
    }

    /// All wider rules: [`Rule::Any`], and each rule with only some of these conditions. A caller that matches this rule
    /// matches each of them.
    pub fn wider(&self) -> impl Iterator<Item = Self> + use<'_> {
        // There are five kinds of conditions, so these are few.
        let all = self.conditions();
        (0..(1_usize << all.len()).saturating_sub(1)).map(move |chosen| {
            let is_chosen = |index: &usize| chosen >> index & 1 == 1;
            let some = (0..all.len()).filter(is_chosen).filter_map(|index| all.get(index).cloned());
            Conditions::new(some.collect()).map_or(Self::Any, Self::All)
        })
    }
}

impl Conditions {
    /// Sorts the conditions into the order in which a rule is shown. `None` if there are no conditions.
    pub fn new(mut conditions: Vec<Condition>) -> Option<Self> {
        conditions.sort_unstable();
        conditions.dedup();
        (!conditions.is_empty()).then_some(Self(conditions))
    }
}

impl Condition {
    /// The name in it that has to be resolved.
    pub fn name(&self) -> Option<Named> {
        match self {
            Self::User(Principal::Name(name)) => Some(Named::User(name.clone())),
            Self::Group(Principal::Name(name)) => Some(Named::Group(name.clone())),
            Self::Exe(path) => Some(Named::Executable(path.clone())),
            Self::User(_) | Self::Group(_) | Self::Unit(_) | Self::UserUnit(_) => None,
        }
    }
}

impl UnitPattern {
    /// Whether it means this unit.
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
        for (index, condition) in self.conditions().iter().enumerate() {
            if index > 0 {
                f.write_str(" and ")?;
            }
            condition.fmt(f)?;
        }
        if *self == Self::Any { f.write_str("any") } else { Ok(()) }
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

    fn user(id: u32) -> Condition {
        Condition::User(Principal::Id(id))
    }

    fn unit(name: &str) -> Condition {
        Condition::Unit(UnitPattern::Exact(name.into()))
    }

    fn all(conditions: &[Condition]) -> Rule {
        Rule::All(Conditions::new(conditions.to_vec()).unwrap())
    }

    #[test]
    fn there_is_no_rule_of_no_conditions() {
        assert_eq!(Conditions::new(Vec::new()), None);
    }

    #[test]
    fn the_order_of_conditions_makes_no_other_rule() {
        let (one, other) = (all(&[unit("a.service"), user(1)]), all(&[user(1), unit("a.service"), user(1)]));
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "user:1 and unit:a.service");
        assert_eq!(Rule::Any.to_string(), "any");
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
        let wider = |rule: &Rule| rule.wider().map(|rule| rule.to_string()).collect::<Vec<_>>();
        assert_eq!(wider(&Rule::Any), [""; 0]);
        assert_eq!(wider(&all(&[user(1)])), ["any"]);
        assert_eq!(wider(&all(&[user(1), unit("a.service")])), ["any", "user:1", "unit:a.service"]);
    }
}

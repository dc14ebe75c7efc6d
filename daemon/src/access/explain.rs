//! Explains, condition by condition, why a rule matches or does not.

use tokend_protocol::{ExplainedCondition, ExplainedRule};

use super::{Condition, Decider, Id, NO_ID, Principal, Rule};

impl Decider<'_> {
    /// Explains a rule. `absent` says in words why a fact may be absent.
    pub fn explain(&self, rule: &Rule, absent: &str) -> ExplainedRule {
        let explained = |condition: &Condition| ExplainedCondition {
            condition: condition.to_string(),
            holds: self.holds(condition),
            fact: self.fact(condition, absent),
        };
        ExplainedRule {
            rule: rule.to_string(),
            matches: self.matches(rule),
            conditions: rule.conditions().iter().map(explained).collect(),
        }
    }

    fn fact(&self, condition: &Condition, absent: &str) -> String {
        let (facts, holds) = (self.facts, self.holds(condition));
        let the_fact_is = |what, fact: Option<&str>| format!("the {what} is {}", fact.unwrap_or(absent));
        let number = match (condition, self.ids.answer(condition)) {
            (Condition::User(_) | Condition::Group(_), None) => {
                return format!("the host's name service gives no answer about {condition:#}");
            }
            (Condition::User(_) | Condition::Group(_), Some(None)) => {
                return format!("this host has no {condition:#}");
            }
            (_, Some(Some(Id::Number(number)))) => number.to_string(),
            _ => String::new(),
        };
        match condition {
            Condition::User(_) if facts.uid == NO_ID => the_fact_is("user", None),
            Condition::User(Principal::Name(name)) if !holds => {
                format!("the user is {}, and {name} is {number}", facts.uid)
            }
            Condition::User(_) => the_fact_is("user", Some(&facts.uid.to_string())),
            Condition::Group(_) if facts.uid == NO_ID => the_fact_is("group", None),
            Condition::Group(group) => {
                let among = if holds { "is" } else { "is not" };
                let name = match group {
                    Principal::Name(name) => format!(" ({name})"),
                    Principal::Id(_) => String::new(),
                };
                format!("group {number}{name} {among} among its groups")
            }
            Condition::Unit(_) => the_fact_is("unit", facts.unit.as_deref()),
            Condition::UserUnit(_) => the_fact_is("user unit", facts.user_unit.as_deref()),
            Condition::Exe(path) => match &facts.exe {
                Some(exe) if exe.path == *path && !holds => {
                    format!("the executable is another file than {} of this host", path.display())
                }
                exe => {
                    the_fact_is("executable", exe.as_ref().map(|exe| exe.path.to_string_lossy()).as_deref())
                }
            },
        }
    }
}

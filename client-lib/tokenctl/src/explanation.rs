//! The text of an explanation: the decision, the facts, and the result of each rule.

use std::fmt::Write;

use tokend_client::{ExplainedReply, ExplainedRule, Subject, SubjectFacts, TokenName};

use crate::human::clean;

/// The whole explanation.
pub(crate) fn text(name: &TokenName, subject: &Subject, reply: &ExplainedReply) -> String {
    let decision = if reply.allowed { "allowed" } else { "not allowed" };
    let operator = reply.operator.as_deref().map_or_else(|| "no".to_owned(), clean);
    let mut text = format!("{name}: {decision}: {}\n", clean(&reply.reason));
    for (what, fact) in facts(&reply.facts, subject) {
        let _ = writeln!(text, "  {what}: {fact}");
    }
    let _ = writeln!(text, "  operator: {operator}");
    for list in &reply.lists {
        let _ = writeln!(text, "rules of the {}:", clean(&list.of));
        if list.rules.is_empty() {
            text.push_str("  none\n");
        }
        text.extend(list.rules.iter().map(rule));
    }
    if reply.omitted > 0 {
        let _ = writeln!(text, "{} more groups or rules are not shown", reply.omitted);
    }
    text
}

fn facts(facts: &SubjectFacts, subject: &Subject) -> Vec<(&'static str, String)> {
    // A user or a unit stands for any of its processes, so nothing about a process is assumed.
    let absent = match subject {
        Subject::User(_) | Subject::Unit(_) => "not assumed",
        Subject::Caller | Subject::Process(_) => "not known",
    };
    let text = |fact: Option<&str>| fact.map_or_else(|| absent.to_owned(), clean);
    let number = |fact: Option<u32>| fact.map_or_else(|| absent.to_owned(), |number| number.to_string());
    let groups: Vec<String> = facts.groups.iter().map(u32::to_string).collect();
    vec![
        ("user", number(facts.uid)),
        ("group", number(facts.gid)),
        ("groups", if groups.is_empty() { "none".to_owned() } else { groups.join(" ") }),
        ("process", number(facts.pid)),
        ("unit", text(facts.unit.as_deref())),
        ("user unit", text(facts.user_unit.as_deref())),
        ("invocation", text(facts.invocation_id.as_deref())),
        ("executable", text(facts.exe.as_deref())),
    ]
}

fn rule(rule: &ExplainedRule) -> String {
    let outcome = if rule.matches { "matches" } else { "does not match" };
    let mut text = format!("  {}: {outcome}\n", clean(&rule.rule));
    // The one condition of a simple rule is the rule itself.
    let is_simple = rule.conditions.len() == 1;
    for condition in &rule.conditions {
        let fact = clean(&condition.fact);
        if is_simple {
            let _ = writeln!(text, "    {fact}");
            continue;
        }
        let holds = if condition.holds { "holds" } else { "does not hold" };
        let _ = writeln!(text, "    {}: {holds}: {fact}", clean(&condition.condition));
    }
    text
}

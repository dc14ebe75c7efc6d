//! The text of an explanation: the decision, the facts, and the result of each rule.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;

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
        Subject::User(_) | Subject::Unit(_) => "not given",
        Subject::Caller | Subject::Process(_) => "not known",
    };
    let text = |fact: Option<&str>| fact.map_or_else(|| absent.to_owned(), clean);
    let number = |fact: Option<u32>| fact.map_or_else(|| absent.to_owned(), |number| number.to_string());
    let users = names("passwd", facts.uid);
    let groups = names("group", facts.gid.into_iter().chain(facts.groups.iter().copied()));
    let named = |id: u32, names: &BTreeMap<u32, String>| match names.get(&id) {
        Some(name) => format!("{name} ({id})"),
        None => id.to_string(),
    };
    let one = |id: Option<u32>, names| id.map_or_else(|| absent.to_owned(), |id| named(id, names));
    let all: Vec<String> = facts.groups.iter().map(|id| named(*id, &groups)).collect();
    vec![
        ("user", one(facts.uid, &users)),
        ("group", one(facts.gid, &groups)),
        ("groups", if all.is_empty() { "none".to_owned() } else { all.join(", ") }),
        ("process", number(facts.pid)),
        ("unit", text(facts.unit.as_deref())),
        ("user unit", text(facts.user_unit.as_deref())),
        ("invocation", text(facts.invocation_id.as_deref())),
        ("executable", text(facts.exe.as_deref())),
    ]
}

/// The names of users (`passwd`) or groups (`group`) by their numbers, as far as the name service knows them. The C library
/// would load modules to find them, which a static program must not do, so `getent` asks, for two seconds at most.
fn names(database: &str, ids: impl IntoIterator<Item = u32>) -> BTreeMap<u32, String> {
    let mut getent = Command::new("timeout");
    getent.args(["2", "getent", database]).args(ids.into_iter().map(|id| id.to_string()));
    let found = if getent.get_args().len() > 3 { getent.output().ok() } else { None };
    let entries = found.map(|found| String::from_utf8_lossy(&found.stdout).into_owned()).unwrap_or_default();
    let name = |entry: &str| {
        let mut fields = entry.split(':');
        let name = clean(fields.next()?);
        Some((fields.nth(1)?.parse().ok()?, name))
    };
    entries.lines().filter_map(name).collect()
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

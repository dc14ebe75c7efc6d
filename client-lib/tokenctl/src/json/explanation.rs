//! The shape of `explain`.

use serde::Serialize;
use tokend_client::{ExplainedCondition, ExplainedReply, ExplainedRule, SubjectFacts, TokenName};

use crate::human::clean;

#[derive(Serialize)]
pub(crate) struct Explanation<'a> {
    name: &'a str,
    decision: &'static str,
    reason: String,
    operator: Option<String>,
    facts: Facts,
    rules: Vec<Explained>,
    omitted: u32,
}

#[derive(Serialize)]
struct Facts {
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Vec<u32>,
    pid: Option<u32>,
    unit: Option<String>,
    user_unit: Option<String>,
    invocation_id: Option<String>,
    exe: Option<String>,
}

#[derive(Serialize)]
struct Explained {
    of: String,
    rule: String,
    matches: bool,
    conditions: Vec<Condition>,
}

#[derive(Serialize)]
struct Condition {
    condition: String,
    holds: bool,
    fact: String,
}

pub(crate) fn explanation<'a>(name: &'a TokenName, reply: &ExplainedReply) -> Explanation<'a> {
    let rules = reply.lists.iter().flat_map(|list| list.rules.iter().map(|rule| explained(&list.of, rule)));
    Explanation {
        name: name.as_str(),
        decision: if reply.allowed { "allow" } else { "deny" },
        reason: clean(&reply.reason),
        operator: reply.operator.as_deref().map(clean),
        facts: facts(&reply.facts),
        rules: rules.collect(),
        omitted: reply.omitted,
    }
}

fn facts(facts: &SubjectFacts) -> Facts {
    let SubjectFacts { uid, gid, groups, pid, unit, user_unit, invocation_id, exe } = facts;
    let text = |fact: &Option<String>| fact.as_deref().map(clean);
    Facts {
        uid: *uid,
        gid: *gid,
        groups: groups.clone(),
        pid: *pid,
        unit: text(unit),
        user_unit: text(user_unit),
        invocation_id: text(invocation_id),
        exe: text(exe),
    }
}

fn explained(of: &str, rule: &ExplainedRule) -> Explained {
    let condition = |condition: &ExplainedCondition| Condition {
        condition: clean(&condition.condition),
        holds: condition.holds,
        fact: clean(&condition.fact),
    };
    Explained {
        of: clean(of),
        rule: clean(&rule.rule),
        matches: rule.matches,
        conditions: rule.conditions.iter().map(condition).collect(),
    }
}

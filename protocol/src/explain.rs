//! The reply to an explain request.
//!
//! These types are the wire format, under the rules of the requests.

use serde::{Deserialize, Serialize};

/// Why the subject may read a token or may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedReply {
    /// Whether the subject may read the token.
    pub allowed: bool,
    /// The rule that allows it, as in the audit trail; or why no rule does.
    pub reason: String,
    /// The known facts about the subject.
    pub facts: SubjectFacts,
    /// Why the subject is an operator, if it is one.
    pub operator: Option<String>,
    /// The rules of the token, and of its scopes, resources and audiences. Empty to anyone but an operator.
    pub lists: Vec<ExplainedList>,
    /// The number of groups and rules that did not fit into the reply.
    pub omitted: u32,
}

/// The known facts about the subject of a decision. A fact that cannot be proved is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectFacts {
    /// The user; `None` where only the unit is known.
    pub uid: Option<u32>,
    /// The group; `None` for a user that the host does not know.
    pub gid: Option<u32>,
    /// The supplementary groups.
    pub groups: Vec<u32>,
    /// The process.
    pub pid: Option<u32>,
    /// The systemd system unit of the process.
    pub unit: Option<String>,
    /// The unit of its user's own service manager.
    pub user_unit: Option<String>,
    /// The invocation of the system unit.
    pub invocation_id: Option<String>,
    /// The executable.
    pub exe: Option<String>,
}

/// A list of rules of which one must match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedList {
    /// The owner of the rules: `token`, or a term such as `scope transfer`.
    pub of: String,
    /// The rules, in the order of the configuration.
    pub rules: Vec<ExplainedRule>,
}

/// A rule, and whether it matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedRule {
    /// The rule, as in the audit trail.
    pub rule: String,
    /// Whether the rule matches: all of its conditions hold.
    pub matches: bool,
    /// The conditions; the rule `any` has none.
    pub conditions: Vec<ExplainedCondition>,
}

/// A condition of a rule, and whether it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedCondition {
    /// The condition.
    pub condition: String,
    /// Whether the condition holds.
    pub holds: bool,
    /// The fact that decides, in words.
    pub fact: String,
}

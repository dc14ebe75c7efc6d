//! Why somebody may have a token or may not.
//!
//! These types are a part of the wire format, under the same rules as the other messages.

use serde::{Deserialize, Serialize};

use crate::{TokenName, Variant};

/// Asks why somebody may have a token or may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// Which token.
    pub name: TokenName,
    /// In which form.
    pub variant: Variant,
    /// Who.
    pub subject: Subject,
}

/// Whom a decision is about. All but the caller itself are for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// 0: the caller, as this connection shows it.
    Caller,
    /// 1: a user by name or number, of whom user and groups are taken and nothing else.
    User(String),
    /// 2: the process with this id, as it is now.
    Process(u32),
}

/// Why somebody may have a token or may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedReply {
    /// Whether it may.
    pub allowed: bool,
    /// What lets it, as in the audit trail; or why nothing does.
    pub reason: String,
    /// What was known of it.
    pub facts: SubjectFacts,
    /// What makes it an operator, if it is one.
    pub operator: Option<String>,
    /// The lists of rules that count: that of the token, and those of its scopes, resources and audiences. For
    /// operators; empty to anybody else.
    pub lists: Vec<ExplainedList>,
    /// How many groups and rules found no place in the reply.
    pub omitted: u32,
}

/// What is known of whom a decision is about. What cannot be proved is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectFacts {
    /// The user.
    pub uid: u32,
    /// The group; `None` for a user whom the host does not know.
    pub gid: Option<u32>,
    /// The supplementary groups.
    pub groups: Vec<u32>,
    /// The process.
    pub pid: Option<u32>,
    /// The systemd system unit that the process runs in.
    pub unit: Option<String>,
    /// The unit of its user's own service manager.
    pub user_unit: Option<String>,
    /// The invocation of the system unit.
    pub invocation_id: Option<String>,
    /// The executable.
    pub exe: Option<String>,
}

/// A list of rules, one of which must match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedList {
    /// Whose rules these are: `token`, or a term such as `scope transfer`.
    pub of: String,
    /// The rules, in the order of the configuration.
    pub rules: Vec<ExplainedRule>,
}

/// A rule, and how it fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedRule {
    /// The rule, as in the audit trail.
    pub rule: String,
    /// Whether it matches: all of its conditions hold.
    pub matches: bool,
    /// Its conditions; the rule `any` has none.
    pub conditions: Vec<ExplainedCondition>,
}

/// A condition of a rule, and how it fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedCondition {
    /// The condition.
    pub condition: String,
    /// Whether it holds.
    pub holds: bool,
    /// The fact that makes it hold or not, in words.
    pub fact: String,
}

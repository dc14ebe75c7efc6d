//! Looks up the users and groups that rules name. Answers come from the host's name service at the moment
//! of the question, so a user made after the daemon started is known, and a number given to somebody else
//! is not mistaken for its former owner.

use std::time::Duration;

use nix::unistd::{Group, User};

use crate::policy::access::{Principal, ResolvedRule, Rule};

/// How long the name service may take. What it has not answered by then is not known.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Looks up all names in `rules`. A name that is unknown, or about which the service cannot be asked,
/// matches nobody.
pub async fn resolve(rules: &[Rule]) -> Vec<ResolvedRule> {
    if !rules.iter().any(has_name) {
        return rules.iter().cloned().map(|rule| ResolvedRule { id: number(&rule), rule }).collect();
    }
    let names = rules.to_vec();
    // The name service may ask a network, so it is asked on a thread where waiting hurts nobody else.
    let lookup = tokio::task::spawn_blocking(move || names.into_iter().map(look_up).collect::<Vec<_>>());
    if let Ok(Ok(resolved)) = tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
        return resolved;
    }
    tracing::warn!("the host's name service does not answer; rules with names match nobody for now");
    rules.iter().cloned().map(|rule| ResolvedRule { id: number(&rule), rule }).collect()
}

fn has_name(rule: &Rule) -> bool {
    matches!(rule, Rule::User(Principal::Name(_)) | Rule::Group(Principal::Name(_)))
}

fn number(rule: &Rule) -> Option<u32> {
    match rule {
        Rule::User(Principal::Id(id)) | Rule::Group(Principal::Id(id)) => Some(*id),
        Rule::User(Principal::Name(_)) | Rule::Group(Principal::Name(_)) | Rule::Unit(_) => None,
    }
}

fn look_up(rule: Rule) -> ResolvedRule {
    let id = match &rule {
        Rule::User(user) => uid(user),
        Rule::Group(group) => gid(group),
        Rule::Unit(_) => None,
    };
    ResolvedRule { rule, id }
}

/// The number of a user, if the host knows it. May block on the name service.
pub fn uid(user: &Principal) -> Option<u32> {
    match user {
        Principal::Id(id) => Some(*id),
        Principal::Name(name) => User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()),
    }
}

/// The number of a group, if the host knows it. May block on the name service.
pub fn gid(group: &Principal) -> Option<u32> {
    match group {
        Principal::Id(id) => Some(*id),
        Principal::Name(name) => Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_numbers_and_unknown_names() {
        let name = |text: &str| Principal::Name(text.to_owned());
        let rules = [
            Rule::User(name("root")),
            Rule::User(Principal::Id(4711)),
            Rule::Group(name("root")),
            Rule::Group(name("no-such-group-here")),
            Rule::Unit("a.service".into()),
        ];
        let ids: Vec<_> = resolve(&rules).await.into_iter().map(|resolved| resolved.id).collect();
        assert_eq!(ids, [Some(0), Some(4711), Some(0), None, None]);
    }
}

//! Readers of `allow` lists and of the users, groups and units in them.

use super::fault::{PrincipalKind, did_you_mean, one_of, quoted};
use super::section::Field;
use super::values;
use crate::policy::access::{Principal, Rule};

/// Suffixes of the units that processes run in.
const UNIT_SUFFIXES: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// A list of rules.
pub(super) fn list(field: &Field<'_>) -> Option<Vec<Rule>> {
    values::list(field, "an array such as [\"user:billing\", \"group:payments\"]", rule)
}

fn rule(field: &Field<'_>) -> Option<Rule> {
    const EXPECTED: &str = "expected \"user:NAME\", \"group:NAME\" or \"unit:NAME\"";
    let text = field.text()?;
    match text.split_once(':') {
        Some(("user", name)) => parse_principal(field, name, PrincipalKind::User).map(Rule::User),
        Some(("group", name)) => parse_principal(field, name, PrincipalKind::Group).map(Rule::Group),
        Some(("unit", name)) => unit(field, name).map(Rule::Unit),
        Some((kind, _)) => {
            let hint = did_you_mean(kind, ["user", "group", "unit"]);
            field.fault(format!("found {}, {EXPECTED}{hint}", quoted(text)));
            None
        }
        None => {
            field.fault(format!("found {}, {EXPECTED}", quoted(text)));
            None
        }
    }
}

/// A group by name or number.
pub(super) fn group(field: &Field<'_>) -> Option<Principal> {
    parse_principal(field, field.text()?, PrincipalKind::Group)
}

fn parse_principal(field: &Field<'_>, name: &str, kind: PrincipalKind) -> Option<Principal> {
    let usable = |c: char| c.is_alphanumeric() || "._-@$\\+".contains(c);
    let problem = if name.is_empty() {
        format!("the name of the {kind} is missing after the \":\"")
    } else if name.bytes().all(|byte| byte.is_ascii_digit()) {
        // The highest number means "none" to the kernel.
        match name.parse().ok().filter(|id| *id != u32::MAX) {
            Some(id) => return Some(Principal::Id(id)),
            None => {
                format!("found {}, which is above the highest {kind} number, {}", quoted(name), u32::MAX - 1)
            }
        }
    } else if name.starts_with('-') || !name.chars().all(usable) {
        format!("found {}, which cannot be the name of a {kind}", quoted(name))
    } else {
        field.sink().mention(field.place, &field.path, kind, name);
        return Some(Principal::Name(name.to_owned()));
    };
    field.fault(problem);
    None
}

fn unit(field: &Field<'_>, name: &str) -> Option<String> {
    let stem = UNIT_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
    let usable = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let shown = quoted(name);
    let problem = if name.contains(['*', '?', '[']) {
        format!("found {shown}; a unit is given by its exact name, without patterns")
    } else if stem.is_none() {
        format!(
            "found {shown}, expected a unit that processes run in, which ends in {}",
            one_of(UNIT_SUFFIXES)
        )
    } else if stem.is_some_and(|stem| stem.is_empty() || !stem.chars().all(usable)) || name.len() > 255 {
        format!("found {shown}, which cannot be the name of a unit")
    } else if stem.is_some_and(|stem| stem.ends_with('@')) {
        format!("found {shown}, a template; name an instance of it, such as \"name@instance.service\"")
    } else {
        return Some(name.to_owned());
    };
    field.fault(problem);
    None
}

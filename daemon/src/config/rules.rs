//! Readers of `allow` lists: rules, and the users, groups, units and executables in them.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use super::fault::{did_you_mean, one_of, quoted};
use super::mentions::{Mention, PrincipalKind};
use super::section::Field;
use super::values;
use crate::access::{Condition, Conditions, Principal, Rule, UnitPattern};

/// Suffixes of the units that processes run in.
const UNIT_SUFFIXES: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// What can be written before the colon of a rule.
const KINDS: [&str; 4] = ["user", "group", "unit", "exe"];

/// The keys of a rule with several conditions.
const CONDITIONS: [&str; 5] = ["user", "group", "unit", "user_unit", "exe"];

/// What people write who mean `any`.
const OTHER_WORDS_FOR_ANY: [&str; 6] = ["*", "all", "anyone", "anybody", "everyone", "everybody"];

const EXPECTED: &str = "expected \"user:NAME\", \"group:NAME\", \"unit:NAME\", \"exe:/PATH\", \"any\" or a table of \
                        conditions such as { user = \"billing\", unit = \"billing.service\" }";

/// A list of rules. What is of no effect in it is warned of.
pub(super) fn list(field: &Field<'_>) -> Option<Vec<Rule>> {
    let rules = values::list(field, "an array such as [\"user:billing\", \"group:payments\"]", |item| {
        Some((item.place.clone(), rule(item)?))
    })?;
    let mut given = HashSet::new();
    let listed: HashSet<&Rule> = rules.iter().map(|(_, rule)| rule).collect();
    for (place, rule) in &rules {
        let wider = rule.wider().find(|wider| listed.contains(wider));
        let message = match wider {
            _ if !given.insert(rule) => format!("{} is listed twice", quoted(&rule.to_string())),
            Some(wider) => {
                format!("{} adds nothing to {}", quoted(&rule.to_string()), quoted(&wider.to_string()))
            }
            None => continue,
        };
        field.sink().warn(place, Some(field.path.clone()), message);
    }
    let rules: Vec<Rule> = rules.into_iter().map(|(_, rule)| rule).collect();
    Some(rules)
}

fn rule(field: &Field<'_>) -> Option<Rule> {
    if field.as_table().is_some() {
        return conditions(field).map(Rule::All);
    }
    let Some(text) = field.as_text() else {
        field.wrong_type("a rule, which is a string or a table");
        return None;
    };
    match text.split_once(':') {
        None if text == "any" => Some(Rule::Any),
        Some((kind, value)) if KINDS.contains(&kind) => {
            let condition = condition(field, kind, value)?;
            if matches!(condition, Condition::Exe(_)) {
                warn_of_injection(field);
            }
            Some(Rule::of(condition))
        }
        Some(("user_unit", _)) => fault(field, user_unit_alone()),
        Some((kind, _)) => {
            fault(field, format!("found {}, {EXPECTED}{}", quoted(text), did_you_mean(kind, KINDS)))
        }
        None if OTHER_WORDS_FOR_ANY.contains(&text) => {
            fault(field, format!("found {}; for every process of this host write \"any\"", quoted(text)))
        }
        None => fault(field, format!("found {}, {EXPECTED}", quoted(text))),
    }
}

/// A table of conditions, all of which must hold.
fn conditions(field: &Field<'_>) -> Option<Conditions> {
    let table = field.as_table()?;
    let is_there = |key: &str| table.iter().any(|(name, _)| *name == key);
    let read = |(name, field): &(&str, Field<'_>)| {
        if CONDITIONS.contains(name) {
            return condition(field, name, field.text()?);
        }
        let hint = did_you_mean(name, CONDITIONS);
        fault(field, format!("unknown condition; expected {}{hint}", one_of(CONDITIONS)))
    };
    let read = values::all(table.iter().map(read))?;
    if is_there("user_unit") && !is_there("user") {
        return fault(field, user_unit_alone());
    }
    if table.len() == 1 && is_there("exe") {
        warn_of_injection(field);
    }
    let conditions = Conditions::new(read);
    if conditions.is_none() {
        field.fault(format!("an empty table, expected one or more of {}", CONDITIONS.join(", ")));
    }
    conditions
}

fn condition(field: &Field<'_>, kind: &str, value: &str) -> Option<Condition> {
    match kind {
        "user" | "group" => mention(field, Mention::Principal),
        "unit" | "user_unit" => mention(field, Mention::Unit),
        _ => (),
    }
    match kind {
        "user" => parse_principal(field, value, PrincipalKind::User).map(Condition::User),
        "group" => parse_principal(field, value, PrincipalKind::Group).map(Condition::Group),
        "unit" => unit(field, value).map(Condition::Unit),
        "user_unit" => unit(field, value).map(Condition::UserUnit),
        _ => exe(field, value).map(Condition::Exe),
    }
}

fn mention(field: &Field<'_>, mention: Mention) {
    field.sink().mention(mention, field.place, &field.path);
}

fn user_unit_alone() -> &'static str {
    "any user can give a unit of its own manager any name, so this proves nothing alone; expected a table that \
     names the user too: { user = \"NAME\", user_unit = \"NAME.service\" }"
}

/// An executable is no identity of whoever runs it.
fn warn_of_injection(field: &Field<'_>) {
    let message = "whoever may run this executable can make it do anything, as with LD_PRELOAD, so this lets in \
                   every such user; add whose process it is: { user = \"NAME\", exe = \"/PATH\" }";
    field.sink().warn(field.place, Some(field.path.clone()), message);
}

/// A group by name or number.
pub(super) fn group(field: &Field<'_>) -> Option<Principal> {
    parse_principal(field, field.text()?, PrincipalKind::Group)
}

fn parse_principal(field: &Field<'_>, name: &str, kind: PrincipalKind) -> Option<Principal> {
    let usable = |c: char| c.is_alphanumeric() || "._-@$\\+".contains(c);
    if name.is_empty() {
        return fault(field, format!("the name of the {kind} is missing"));
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        // The highest number means "none" to the kernel.
        return match name.parse().ok().filter(|id| *id != u32::MAX) {
            Some(id) => Some(Principal::Id(id)),
            None => fault(
                field,
                format!("found {}, which is above the highest {kind} number, {}", quoted(name), u32::MAX - 1),
            ),
        };
    }
    if name.starts_with('-') || !name.chars().all(usable) {
        return fault(field, format!("found {}, which cannot be the name of a {kind}", quoted(name)));
    }
    mention(field, Mention::Name(kind, name.to_owned()));
    Some(Principal::Name(name.to_owned()))
}

fn unit(field: &Field<'_>, name: &str) -> Option<UnitPattern> {
    let shown = quoted(name);
    let Some((stem, suffix)) =
        UNIT_SUFFIXES.iter().find_map(|suffix| Some((name.strip_suffix(suffix)?, *suffix)))
    else {
        let suffixes = one_of(UNIT_SUFFIXES);
        let message =
            format!("found {shown}, expected a unit that processes run in, which ends in {suffixes}");
        return fault(field, message);
    };
    let usable = |stem: &str| {
        let is_usable = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        !stem.is_empty() && stem.chars().all(is_usable) && name.len() <= 255
    };
    let template = stem.strip_suffix('*').filter(|template| {
        let is_template =
            |template: &str| !template.is_empty() && !template.contains('@') && usable(template);
        template.strip_suffix('@').is_some_and(is_template)
    });
    if let Some(template) = template {
        return Some(UnitPattern::Instances { template: template.to_owned(), suffix: suffix.to_owned() });
    }
    let problem = if stem.contains(['*', '?', '[']) {
        format!(
            "found {shown}; the one pattern there is means all instances of a template: \"name@*{suffix}\""
        )
    } else if !usable(stem) {
        format!("found {shown}, which cannot be the name of a unit")
    } else if let Some(name) = stem.strip_suffix('@') {
        format!(
            "found {shown}, a template; name an instance of it, such as \"{name}@instance{suffix}\", or all of \
             them with \"{name}@*{suffix}\""
        )
    } else {
        return Some(UnitPattern::Exact(name.to_owned()));
    };
    fault(field, problem)
}

/// The path of an executable, as the kernel has it.
fn exe(field: &Field<'_>, path: &str) -> Option<PathBuf> {
    let is_plain = Path::new(path).components().collect::<PathBuf>().as_os_str() == path
        && Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let problem = if path.chars().any(char::is_control) {
        "has a control character, which the path of a program has not".to_owned()
    } else if !path.starts_with('/') {
        format!("found {}, expected the absolute path of a program, which begins with \"/\"", quoted(path))
    } else if path.len() == 1 || path.ends_with('/') {
        format!("found {}, a folder; expected the path of a program", quoted(path))
    } else if path.contains(['*', '?', '[']) {
        format!("found {}; a program is given by its exact path, without patterns", quoted(path))
    } else if !is_plain {
        format!("found {}; the kernel names a program without \".\", \"..\" and \"//\"", quoted(path))
    } else {
        mention(field, Mention::Executable(PathBuf::from(path)));
        return Some(PathBuf::from(path));
    };
    fault(field, problem)
}

/// Reports a fault, which leaves nothing to read.
fn fault<T>(field: &Field<'_>, message: impl Into<String>) -> Option<T> {
    field.fault(message);
    None
}

//! Readers of `allow` lists: rules, and the users, groups, units and executables in them.

use std::path::PathBuf;

use super::fault::{did_you_mean, one_of, quoted};
use super::section::Field;
use super::values;
use crate::access::{Condition, Principal, Rule, UnitPattern};

/// Suffixes of the units that processes run in.
const UNIT_SUFFIXES: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The keys of a rule that is a table. All but `user_unit` can also stand before the colon of a rule that is a string.
const CONDITIONS: [&str; 5] = ["user", "group", "unit", "exe", "user_unit"];

const EXPECTED: &str = "expected \"user:NAME\", \"group:NAME\", \"unit:NAME\", \"exe:/PATH\", \"any\" or a table of \
                        conditions such as { user = \"billing\", unit = \"billing.service\" }";

const USER_UNIT_ALONE: &str = "any user can give a unit of its own manager any name, so this proves nothing alone; \
                               expected a table that names the user too: { user = \"NAME\", user_unit = \"NAME.service\" }";

/// Reads a list of rules. Warns of a rule that is listed twice, or that another rule includes.
pub(super) fn list(field: &Field<'_>) -> Option<Vec<Rule>> {
    let items = field.list("an array such as [\"user:billing\", \"group:payments\"]")?;
    let rules = values::all(items.iter().map(rule))?;
    for (index, (item, rule)) in items.iter().zip(&rules).enumerate() {
        let shown = quoted(&rule.to_string());
        if rules.iter().take(index).any(|other| other == rule) {
            item.warn(format!("{shown} is listed twice"));
        } else if let Some(wider) = rules.iter().find(|wider| *wider != rule && wider.includes(rule)) {
            item.warn(format!("{shown} adds nothing to {}", quoted(&wider.to_string())));
        }
    }
    Some(rules)
}

fn rule(field: &Field<'_>) -> Option<Rule> {
    let conditions = if field.is_table() {
        let reader = |name: &str, field: &Field<'_>| condition(field, name, field.text()?);
        field.read_table("a table", "condition", &CONDITIONS, reader)?
    } else {
        let text = field.text_or("a rule, which is a string or a table")?;
        let parts = text.split_once(':');
        match parts {
            None if text == "any" => return Some(Rule::ANY),
            Some(("user_unit", _)) => return field.fault(USER_UNIT_ALONE),
            Some((kind, value)) if CONDITIONS.contains(&kind) => vec![condition(field, kind, value)?],
            _ => {
                let hint = parts.map(|(kind, _)| did_you_mean(kind, CONDITIONS)).unwrap_or_default();
                return field.fault(format!("found {}, {EXPECTED}{hint}", quoted(text)));
            }
        }
    };
    let has_user = conditions.iter().any(|condition| matches!(condition, Condition::User(_)));
    let has_user_unit = conditions.iter().any(|condition| matches!(condition, Condition::UserUnit(_)));
    field.ensure(has_user || !has_user_unit, USER_UNIT_ALONE)?;
    if let [Condition::Exe(_)] = conditions.as_slice() {
        field.warn(
            "a user who may run this executable can make it do anything, as with LD_PRELOAD, so this lets in every \
             such user; add the user: { user = \"NAME\", exe = \"/PATH\" }",
        );
    }
    let message = || format!("an empty table, expected one or more of {}", CONDITIONS.join(", "));
    Rule::all(conditions).or_else(|| field.fault(message()))
}

fn condition(field: &Field<'_>, kind: &str, value: &str) -> Option<Condition> {
    match kind {
        "user" => principal(field, value, "user").map(Condition::User),
        "group" => principal(field, value, "group").map(Condition::Group),
        "unit" => unit(field, value).map(Condition::Unit),
        "user_unit" => unit(field, value).map(Condition::UserUnit),
        _ => executable(field, value).map(Condition::Exe),
    }
}

/// A group by name or number.
pub(super) fn group(field: &Field<'_>) -> Option<Principal> {
    principal(field, field.text()?, "group")
}

fn principal(field: &Field<'_>, name: &str, kind: &'static str) -> Option<Principal> {
    field.ensure(!name.is_empty(), format!("the name of the {kind} is missing"))?;
    field.mention(kind, name);
    let found = format!("found {}", quoted(name));
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        // The highest number means "none" to the kernel.
        let id = name.parse().ok().filter(|id| *id != u32::MAX).map(Principal::Id);
        let message = || format!("{found}, which is above the highest {kind} number, {}", u32::MAX - 1);
        return id.or_else(|| field.fault(message()));
    }
    let is_usable = |c: char| c.is_alphanumeric() || "._-@$\\+".contains(c);
    let is_name = !name.starts_with('-') && name.chars().all(is_usable);
    field.ensure(is_name, format!("{found}, which cannot be the name of a {kind}"))?;
    Some(Principal::Name(name.to_owned()))
}

fn unit(field: &Field<'_>, name: &str) -> Option<UnitPattern> {
    field.mention("unit", name);
    let found = format!("found {}", quoted(name));
    let split = UNIT_SUFFIXES.iter().find_map(|suffix| Some((name.strip_suffix(suffix)?, *suffix)));
    let Some((stem, suffix)) = split else {
        let suffixes = one_of(UNIT_SUFFIXES);
        return field
            .fault(format!("{found}, expected a unit that processes run in, which ends in {suffixes}"));
    };
    let is_usable = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let is_usable = |stem: &str| !stem.is_empty() && stem.chars().all(is_usable) && name.len() <= 255;
    if let Some(template) = stem.strip_suffix("@*").filter(|name| !name.contains('@') && is_usable(name)) {
        return Some(UnitPattern::Instances { template: format!("{template}@"), suffix: suffix.to_owned() });
    }
    if stem.contains(['*', '?', '[']) {
        let only = format!("\"name@*{suffix}\"");
        return field
            .fault(format!("{found}; the only pattern stands for all instances of a template: {only}"));
    }
    field.ensure(is_usable(stem), format!("{found}, which cannot be the name of a unit"))?;
    match stem.strip_suffix('@') {
        Some(name) => field.fault(format!(
            "{found}, a template; name an instance of it, such as \"{name}@instance{suffix}\", or all of them with \
             \"{name}@*{suffix}\""
        )),
        None => Some(UnitPattern::Exact(name.to_owned())),
    }
}

/// The path of an executable, as the kernel has it.
fn executable(field: &Field<'_>, path: &str) -> Option<PathBuf> {
    field.mention("exe", path);
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    let is_plain = path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_part));
    let is_exact = !path.contains(['*', '?', '[']) && !path.chars().any(char::is_control);
    let message = format!(
        "found {}, expected the absolute path of a program, which begins with \"/\", without patterns, \".\", \"..\" \
         and \"//\"",
        quoted(path)
    );
    field.ensure(is_plain && is_exact, message)?;
    Some(PathBuf::from(path))
}

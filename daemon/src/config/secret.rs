//! Reads where a secret is kept. A secret that was written into the configuration itself must not be shown,
//! so no fault here repeats a value.

use super::fault::{near_miss, quoted};
use super::section::Field;
use super::values;
use crate::secret_source::SecretSource;

const KINDS: [&str; 4] = ["credential", "file", "env", "command"];

const EXPECTED: &str = "{ credential = \"NAME\" }, { file = \"/PATH\" }, { env = \"NAME\" } or { command = [\"PROGRAM\", \"ARGUMENT\"] }";

/// Sources that may overlap. During a rotation there are two, and each is tried in one go.
const SOURCES_MAX: usize = 4;

/// One source, or an array of sources for one secret that is being replaced, in order of preference.
pub(super) fn sources(field: &Field<'_>) -> Option<Vec<SecretSource>> {
    let Some(items) = field.as_list() else { return Some(vec![source(field)?]) };
    if items.is_empty() || items.len() > SOURCES_MAX {
        let found = items.len();
        field.fault(format!(
            "an array of {found} sources, expected 1 to {SOURCES_MAX}, the preferred one first: [{EXPECTED}]"
        ));
        return None;
    }
    let mut sources = Vec::new();
    for (item, source) in items.iter().zip(values::all(items.iter().map(source))?) {
        if sources.contains(&source) {
            item.fault("the same source is listed twice; remove one of the two");
            return None;
        }
        sources.push(source);
    }
    Some(sources)
}

/// `{ credential = ".." }` and its like.
pub(super) fn source(field: &Field<'_>) -> Option<SecretSource> {
    if field.as_text().is_some() {
        field.fault(format!("a secret is not written here; say where it is kept: {EXPECTED}"));
        return None;
    }
    let kinds = field.table(EXPECTED)?;
    let unknown: Vec<&str> =
        kinds.iter().map(|(name, _)| *name).filter(|name| !KINDS.contains(name)).collect();
    if let Some(name) = unknown.first() {
        // A name that is near to none may be a slip with the secret in it.
        let hint = near_miss(name, KINDS).map(|meant| format!("; did you mean {}?", quoted(meant)));
        field
            .fault(format!("unknown kind of secret source{}; expected {EXPECTED}", hint.unwrap_or_default()));
        return None;
    }
    match kinds.as_slice() {
        [("credential", value)] => credential(value).map(SecretSource::Credential),
        [("file", value)] => values::path(value).map(SecretSource::File),
        [("env", value)] => variable(value).map(SecretSource::Environment),
        [("command", value)] => command(value).map(SecretSource::Command),
        [] => {
            field.fault(format!("an empty table; expected {EXPECTED}"));
            None
        }
        several => {
            field.fault(format!("{} sources for one secret; expected one: {EXPECTED}", several.len()));
            None
        }
    }
}

fn credential(field: &Field<'_>) -> Option<String> {
    let name = field.text()?;
    if name.is_empty() || name == "." || name == ".." || name.len() > 255 || name.contains(['/', '\0']) {
        field.fault("expected the name of a systemd credential, which is a file name without \"/\"");
        return None;
    }
    Some(name.to_owned())
}

fn variable(field: &Field<'_>) -> Option<String> {
    let name = field.text()?;
    if name.is_empty() || name.contains(['=', '\0']) {
        field.fault("expected the name of an environment variable, which is not empty and has no \"=\"");
        return None;
    }
    Some(name.to_owned())
}

fn command(field: &Field<'_>) -> Option<Vec<String>> {
    const EXPECTED: &str =
        "an array of a program and its arguments, such as [\"pass\", \"show\", \"x\"]; there is no shell";
    let words = values::list(field, EXPECTED, argument)?;
    if words.first().is_none_or(String::is_empty) {
        field.fault(format!("names no program; expected {EXPECTED}"));
        return None;
    }
    Some(words)
}

fn argument(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.contains('\0') {
        field.fault("has a NUL character, which no argument can have");
        return None;
    }
    Some(text.to_owned())
}

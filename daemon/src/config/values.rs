//! Readers of single values: texts, words, durations, numbers, paths, scopes, lists.

use std::path::PathBuf;
use std::time::Duration;

use super::TermSet;
use super::fault::{did_you_mean, one_of, quoted};
use super::section::Field;

/// Nothing in this configuration lasts longer than a year; a larger number is a slip.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// What token, provider and preset names are made of, as `TokenName` decides.
pub(super) const NAME_RULE: &str =
    "1 to 255 letters, digits and . _ - @ : +, beginning with a letter or a digit";

/// Any text of at least one character and without control characters.
pub(super) fn line(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.is_empty() {
        field.fault("empty; expected a text");
        return None;
    }
    if text.chars().any(char::is_control) {
        field.fault("has a control character, such as a newline; expected a text on one line");
        return None;
    }
    Some(text.to_owned())
}

/// One of a few words.
pub(super) fn word<T: Copy>(field: &Field<'_>, words: &[(&str, T)]) -> Option<T> {
    let text = field.text()?;
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    if found.is_none() {
        let names = || words.iter().map(|(word, _)| *word);
        let hint = did_you_mean(text, names());
        field.fault(format!("found {}, expected {}{hint}", quoted(text), one_of(names())));
    }
    found
}

/// A span of time as people write it.
pub(super) fn duration(field: &Field<'_>) -> Option<Duration> {
    const EXPECTED: &str = "a duration with a unit, such as \"5m\", \"1h 30m\" or \"0s\"";
    if let Some(number) = field.as_integer() {
        field.fault(format!("expected {EXPECTED}, found an integer; for seconds write \"{number}s\""));
        return None;
    }
    let text = field.as_text();
    let Some(text) = text else {
        field.wrong_type(EXPECTED);
        return None;
    };
    if text.contains('M') {
        field.fault(format!("found {}, where \"M\" means months; write \"m\" for minutes", quoted(text)));
        return None;
    }
    let Ok(duration) = humantime::parse_duration(text) else {
        field.fault(format!("found {}, expected {EXPECTED}", quoted(text)));
        return None;
    };
    if duration > DURATION_MAX {
        field
            .fault(format!("found {}, which is longer than a year (366 days); check the unit", quoted(text)));
        return None;
    }
    Some(duration)
}

/// A lifetime, which is a duration of a second at least.
pub(super) fn lifetime(field: &Field<'_>) -> Option<Duration> {
    let lifetime = duration(field)?;
    if lifetime < Duration::from_secs(1) {
        field.fault("a token that lives less than a second cannot be used; expected \"1s\" or more");
        return None;
    }
    Some(lifetime)
}

/// A whole number within bounds.
pub(super) fn count(field: &Field<'_>, bounds: std::ops::RangeInclusive<usize>) -> Option<usize> {
    let Some(number) = field.as_integer() else {
        field.wrong_type("an integer");
        return None;
    };
    let count = usize::try_from(number).ok().filter(|count| bounds.contains(count));
    if count.is_none() {
        field.fault(format!("found {number}, expected {} to {}", bounds.start(), bounds.end()));
    }
    count
}

/// An absolute path.
pub(super) fn path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    if text.contains('\0') {
        field.fault("has a NUL character, which no path can have");
        return None;
    }
    if !text.starts_with('/') {
        field.fault("expected an absolute path, which begins with \"/\"");
        return None;
    }
    Some(PathBuf::from(text))
}

/// A path that a socket can be bound to.
pub(super) fn socket_path(field: &Field<'_>) -> Option<PathBuf> {
    /// `sun_path` has 108 bytes, one of which ends it.
    const SOCKET_PATH_MAX: usize = 107;
    let path = path(field)?;
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        field.fault(format!("a path of {length} bytes, but a socket's path has at most {SOCKET_PATH_MAX}"));
        return None;
    }
    Some(path)
}

/// A scope: terms in one string, or an array of them.
pub(super) fn scope(field: &Field<'_>) -> Option<TermSet> {
    let fields = field.as_list();
    let terms: Option<Vec<Vec<String>>> = match &fields {
        Some(items) => all(items.iter().map(scope_item)),
        None if field.as_text().is_some() => Some(vec![scope_terms(field)?]),
        None => {
            field.wrong_type("a string of terms with spaces between, or an array of strings");
            None
        }
    };
    Some(terms?.into_iter().flatten().collect())
}

fn scope_item(field: &Field<'_>) -> Option<Vec<String>> {
    scope_term(field).map(|term| vec![term])
}

/// A single term of a scope.
pub(super) fn scope_term(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.is_empty() || text.contains(' ') {
        field.fault(format!("found {}, expected one scope term in each string of an array", quoted(text)));
        return None;
    }
    scope_terms(field)?.pop()
}

fn scope_terms(field: &Field<'_>) -> Option<Vec<String>> {
    let text = field.text()?;
    let allowed = |c: char| matches!(c, '\x21' | '\x23'..='\x5b' | '\x5d'..='\x7e');
    if let Some(bad) = text.chars().find(|c| *c != ' ' && !allowed(*c)) {
        field.fault(format!("has {bad:?}, which a scope cannot have (RFC 6749 section 3.3)"));
        return None;
    }
    Some(text.split(' ').filter(|term| !term.is_empty()).map(str::to_owned).collect())
}

/// One or several values that are sent as they are, as `resource` and `audience`.
pub(super) fn terms(field: &Field<'_>) -> Option<TermSet> {
    strings(field, line).map(TermSet::from_iter)
}

/// One string or an array of them.
pub(super) fn strings<T>(field: &Field<'_>, reader: impl Fn(&Field<'_>) -> Option<T>) -> Option<Vec<T>> {
    if field.as_text().is_some() {
        return Some(vec![reader(field)?]);
    }
    list(field, "a string or an array of strings", reader)
}

/// An array, with every item read.
pub(super) fn list<T>(
    field: &Field<'_>,
    expected: &str,
    reader: impl Fn(&Field<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let Some(items) = field.as_list() else {
        field.wrong_type(expected);
        return None;
    };
    all(items.iter().map(reader))
}

/// All values, or none if one is missing; but each is asked for, so that each fault is found.
pub(super) fn all<T>(values: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let values: Vec<Option<T>> = values.collect();
    values.into_iter().collect()
}

//! Headers of API calls, and form fields of token requests: what a token adds by name to what its preset gives.

use std::collections::BTreeMap;

use http::header;

use super::fault::quoted;
use super::section::Field;
use super::{HeaderSettings, HeaderValue, secret, values};

/// Form fields that have a key of their own, or that the daemon writes itself.
const RESERVED_PARAMS: [&str; 10] = [
    "grant_type",
    "client_id",
    "client_secret",
    "scope",
    "resource",
    "audience",
    "username",
    "password",
    "client_assertion",
    "client_assertion_type",
];

/// Headers by their names in lower case.
pub(super) type Headers = BTreeMap<String, HeaderSettings>;

/// `headers` of a token: fixed values and secrets.
pub(super) fn headers(field: &Field<'_>) -> Option<Headers> {
    by_name(field, |field| match field.as_table() {
        Some(_) => secret::source(field).map(HeaderValue::Secret),
        None => fixed_value(field, "a string, or a table that says where a secret is kept")
            .map(HeaderValue::Fixed),
    })
}

/// `headers` of a preset, which knows no secrets.
pub(super) fn fixed_headers(field: &Field<'_>) -> Option<Headers> {
    by_name(field, |field| fixed_value(field, "a string").map(HeaderValue::Fixed))
}

fn by_name(field: &Field<'_>, value: impl Fn(&Field<'_>) -> Option<HeaderValue>) -> Option<Headers> {
    let mut fields = field.table("a table such as { Accept = \"application/json\" }")?;
    fields.sort_by_key(|(_, field)| field.place.line);
    let mut headers = Headers::new();
    let mut seen = Vec::new();
    let mut faulty = false;
    for (name, field) in fields {
        let lower = name.to_ascii_lowercase();
        if seen.contains(&lower) {
            field.fault("given twice, as case has no meaning in the name of a header; keep one");
            faulty = true;
            continue;
        }
        seen.push(lower.clone());
        let value = if check_name(name, &field) { value(&field) } else { None };
        match value {
            Some(value) => drop(headers.insert(lower, HeaderSettings { name: name.to_owned(), value })),
            None => faulty = true,
        }
    }
    (!faulty).then_some(headers)
}

/// `caller_headers`: names alone.
pub(super) fn caller_headers(field: &Field<'_>) -> Option<Vec<String>> {
    let names = values::list(field, "an array of header names, such as [\"Requestor-ID\"]", |field| {
        let name = field.text()?;
        check_name(name, field).then(|| name.to_owned())
    })?;
    for (index, name) in names.iter().enumerate() {
        if names.iter().take(index).any(|other| other.eq_ignore_ascii_case(name)) {
            field.fault(format!("names {} twice; keep one", quoted(name)));
            return None;
        }
    }
    Some(names)
}

fn check_name(name: &str, field: &Field<'_>) -> bool {
    if header::HeaderName::from_bytes(name.as_bytes()).is_err() {
        field.fault(format!("{} cannot be the name of a header (RFC 9110 section 5.1)", quoted(name)));
        return false;
    }
    if name.eq_ignore_ascii_case(header::AUTHORIZATION.as_str()) {
        field.fault("the Authorization header is written by the daemon; remove this one");
        return false;
    }
    true
}

/// The value may be a secret after all, so it is not repeated.
pub(super) fn fixed_value(field: &Field<'_>, expected: &str) -> Option<String> {
    let Some(text) = field.as_text() else {
        field.wrong_type(expected);
        return None;
    };
    let is_value = !text.is_empty() && text.is_ascii() && header::HeaderValue::from_str(text).is_ok();
    if text.trim() != text || !is_value {
        field.fault("cannot be the value of a header; expected visible ASCII, not empty and without spaces at either end");
        return None;
    }
    Some(text.to_owned())
}

/// `params`: further form fields.
pub(super) fn params(field: &Field<'_>) -> Option<BTreeMap<String, String>> {
    let fields = field.table("a table such as { acr_values = \"tenant:acme\" }")?;
    values::all(fields.iter().map(|(name, field)| param(name, field))).map(BTreeMap::from_iter)
}

fn param(name: &str, field: &Field<'_>) -> Option<(String, String)> {
    if name.is_empty() {
        field.fault("a form field needs a name");
        return None;
    }
    if RESERVED_PARAMS.contains(&name) {
        let hint = match super::home_of(name) {
            Some(home) => format!("it is set by the key {} of {home}", quoted(name)),
            None => "the daemon writes it itself".to_owned(),
        };
        field.fault(format!("{} is no further form field: {hint}", quoted(name)));
        return None;
    }
    Some((name.to_owned(), field.text()?.to_owned()))
}

//! Readers of `headers`, `caller_headers`, `params` and `accept`.

use std::collections::{BTreeMap, BTreeSet};

use http::header;

use super::fault::quoted;
use super::section::Field;
use super::{HeaderSettings, HeaderValue, values};

/// Form fields that have a key of their own, or that the daemon writes itself.
const RESERVED_PARAMS: &str = "grant_type client_id client_secret scope resource audience username password \
                               client_assertion client_assertion_type";

/// `headers` of a token: fixed values and secrets, in order of their names.
pub(super) fn headers(field: &Field<'_>) -> Option<Vec<HeaderSettings>> {
    by_name(field, |field| {
        if field.is_table() {
            return values::secret_source(field).map(HeaderValue::Secret);
        }
        fixed_value(field, "a string, or a table that says where a secret is kept").map(HeaderValue::Fixed)
    })
}

/// `headers` of a preset, which has no secrets.
pub(super) fn fixed_headers(field: &Field<'_>) -> Option<Vec<HeaderSettings>> {
    by_name(field, |field| fixed_value(field, "a string").map(HeaderValue::Fixed))
}

fn by_name(
    field: &Field<'_>,
    value: impl Fn(&Field<'_>) -> Option<HeaderValue>,
) -> Option<Vec<HeaderSettings>> {
    let mut fields = field.table("a table such as { Accept = \"application/json\" }")?;
    fields.sort_by_key(|(_, field)| field.item.place.line);
    let mut seen = BTreeSet::new();
    let headers = values::all(fields.iter().map(|(name, field)| {
        let message = "given twice, as case has no meaning in the name of a header; keep one";
        field.ensure(seen.insert(name.to_ascii_lowercase()), message)?;
        check_name(name, field)?;
        Some(HeaderSettings { name: (*name).to_owned(), value: value(field)? })
    }));
    let mut headers = headers?;
    headers.sort_by_key(|header| header.name.to_ascii_lowercase());
    Some(headers)
}

/// `caller_headers`: only names.
pub(super) fn caller_headers(field: &Field<'_>) -> Option<Vec<String>> {
    let names = values::list(field, "an array of header names, such as [\"Requestor-ID\"]", |field| {
        let name = field.text()?;
        check_name(name, field)?;
        Some(name.to_owned())
    })?;
    let mut seen = BTreeSet::new();
    let twice = names.iter().find(|name| !seen.insert(name.to_ascii_lowercase()));
    field.ensure(
        twice.is_none(),
        format!("names {} twice; keep one", quoted(twice.map_or("", |name| name))),
    )?;
    Some(names)
}

fn check_name(name: &str, field: &Field<'_>) -> Option<()> {
    let is_name = header::HeaderName::from_bytes(name.as_bytes()).is_ok();
    field
        .ensure(is_name, format!("{} cannot be the name of a header (RFC 9110 section 5.1)", quoted(name)))?;
    let is_ours = name.eq_ignore_ascii_case(header::AUTHORIZATION.as_str());
    field.ensure(!is_ours, "the Authorization header is written by the daemon; remove this one")
}

/// The value of a header. It may be a secret by mistake, so no fault repeats it.
fn fixed_value(field: &Field<'_>, expected: &str) -> Option<String> {
    let text = field.text_or(expected)?;
    let is_visible = text.is_ascii() && header::HeaderValue::from_str(text).is_ok();
    let is_trimmed = !text.is_empty() && text.trim() == text;
    let message =
        "cannot be the value of a header; expected visible ASCII, not empty and without spaces at either end";
    field.ensure(is_visible && is_trimmed, message)?;
    Some(text.to_owned())
}

/// `accept`: the value of a header.
pub(super) fn accept(field: &Field<'_>) -> Option<String> {
    fixed_value(field, "a string")
}

/// `params`: further form fields.
pub(super) fn params(field: &Field<'_>) -> Option<BTreeMap<String, String>> {
    let fields = field.table("a table such as { acr_values = \"tenant:acme\" }")?;
    values::all(fields.iter().map(|(name, field)| {
        field.ensure(!name.is_empty(), "a form field needs a name")?;
        if RESERVED_PARAMS.split(' ').any(|reserved| reserved == *name) {
            let hint = match super::home_of(name) {
                Some(home) => format!("it is set by the key {} of {home}", quoted(name)),
                None => "the daemon writes it itself".to_owned(),
            };
            return field.fault(format!("{} cannot be set here: {hint}", quoted(name)));
        }
        Some(((*name).to_owned(), field.text()?.to_owned()))
    }))
    .map(BTreeMap::from_iter)
}

//! Readers of single values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use http::header;
use url::Url;

use super::fault::{did_you_mean, one_of, quoted};
use super::files::Value;
use super::section::Field;
use super::{HeaderSettings, HeaderValue, TermKind, TermSet};
use crate::secret_source::SecretSource;

/// A longer duration is probably a mistake.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// The longest path of a socket: `sun_path` has 108 bytes, and a NUL ends it.
const SOCKET_PATH_MAX: usize = 107;

/// Sources of one secret that may overlap. During a rotation there are two, and each is tried in turn.
const SOURCES_MAX: usize = 4;

/// Form fields that have a key of their own, or that the daemon writes itself.
const RESERVED_PARAMS: &str = "grant_type client_id client_secret scope resource audience username password \
                               client_assertion client_assertion_type assertion subject_token subject_token_type actor_token \
                               requested_token_type";

/// Any text of at least one character and without control characters.
pub(super) fn line(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    field.ensure(!text.is_empty(), "empty; expected a text")?;
    let message = "has a control character, such as a newline; expected a text on one line";
    field.ensure(!text.chars().any(char::is_control), message)?;
    Some(text.to_owned())
}

pub(super) fn word(words: &[&'static str]) -> impl Fn(&Field<'_>) -> Option<&'static str> {
    move |field| {
        let text = field.text()?;
        words.iter().copied().find(|word| *word == text).or_else(|| {
            let (expected, hint) = (one_of(words), did_you_mean(text, words));
            field.fault(format!("found {}, expected {expected}{hint}", quoted(text)))
        })
    }
}

pub(super) fn boolean(field: &Field<'_>) -> Option<bool> {
    let Value::Boolean(value) = field.item.value else { return field.wrong_type("true or false") };
    Some(value)
}

pub(super) fn duration(field: &Field<'_>) -> Option<Duration> {
    const EXPECTED: &str = "a duration with a unit, such as \"5m\", \"1h 30m\" or \"0s\"";
    if let Value::Integer(number) = field.item.value {
        return field
            .fault(format!("expected {EXPECTED}, found an integer; for seconds write \"{number}s\""));
    }
    let text = field.text_or(EXPECTED)?;
    let found = format!("found {}", quoted(text));
    field
        .ensure(!text.contains('M'), format!("{found}, where \"M\" means months; write \"m\" for minutes"))?;
    let Ok(duration) = humantime::parse_duration(text) else {
        return field.fault(format!("{found}, expected {EXPECTED}"));
    };
    let message = format!("{found}, which is longer than a year (366 days); check the unit");
    field.ensure(duration <= DURATION_MAX, message)?;
    Some(duration)
}

/// A duration of at least a second.
pub(super) fn lifetime(field: &Field<'_>) -> Option<Duration> {
    let lifetime = duration(field)?;
    let message = "less than a second is too short to use a token; expected \"1s\" or more";
    field.ensure(lifetime >= Duration::from_secs(1), message)?;
    Some(lifetime)
}

pub(super) fn count<T: TryFrom<i128> + PartialOrd + Display>(
    bounds: RangeInclusive<T>,
) -> impl Fn(&Field<'_>) -> Option<T> {
    move |field| {
        let Value::Integer(number) = field.item.value else { return field.wrong_type("an integer") };
        let count = T::try_from(number).ok().filter(|count| bounds.contains(count));
        let message = || format!("found {number}, expected {} to {}", bounds.start(), bounds.end());
        count.or_else(|| field.fault(message()))
    }
}

pub(super) fn path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    field.ensure(!text.contains('\0'), "has a NUL character, which no path can have")?;
    field.ensure(text.starts_with('/'), "expected an absolute path, which begins with \"/\"")?;
    Some(PathBuf::from(text))
}

/// The path of a file that a check tries to read.
pub(super) fn readable_path(field: &Field<'_>, kind: &'static str) -> Option<PathBuf> {
    let path = path(field)?;
    field.mention(kind, field.text()?);
    Some(path)
}

/// A path to which a socket can be bound.
pub(super) fn socket_path(field: &Field<'_>) -> Option<PathBuf> {
    let path = path(field)?;
    let length = path.as_os_str().len();
    let message = format!("a path of {length} bytes, but a socket's path has at most {SOCKET_PATH_MAX}");
    field.ensure(length <= SOCKET_PATH_MAX, message)?;
    Some(path)
}

/// Terms of a kind: one, or an array of them. A scope in one string has spaces between its terms.
pub(super) fn terms(field: &Field<'_>, kind: TermKind) -> Option<TermSet> {
    if kind == TermKind::Scope && field.is_text() {
        return Some(scope(field)?.split(' ').filter(|term| !term.is_empty()).map(str::to_owned).collect());
    }
    strings(field, |field| term(field, kind)).map(TermSet::from_iter)
}

/// One string or an array of them.
pub(super) fn strings(
    field: &Field<'_>,
    reader: impl Fn(&Field<'_>) -> Option<String>,
) -> Option<Vec<String>> {
    let is_text = field.is_text();
    if is_text { Some(vec![reader(field)?]) } else { list(field, "a string or an array of strings", reader) }
}

/// One term of a kind. Resources and audiences are sent as they are.
pub(super) fn term(field: &Field<'_>, kind: TermKind) -> Option<String> {
    if kind != TermKind::Scope {
        return line(field);
    }
    let text = scope(field)?;
    let message = format!("found {}, expected one scope term in each string of an array", quoted(text));
    field.ensure(!text.is_empty() && !text.contains(' '), message)?;
    Some(text.to_owned())
}

fn scope<'a>(field: &Field<'a>) -> Option<&'a str> {
    let text = field.text()?;
    let allowed = |c: char| matches!(c, ' ' | '\x21' | '\x23'..='\x5b' | '\x5d'..='\x7e');
    match text.chars().find(|c| !allowed(*c)) {
        Some(bad) => field.fault(format!("has {bad:?}, which a scope cannot have (RFC 6749 section 3.3)")),
        None => Some(text),
    }
}

/// An array, with every item read.
pub(super) fn list<T>(
    field: &Field<'_>,
    expected: &str,
    reader: impl FnMut(&Field<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    all(field.list(expected)?.iter().map(reader))
}

/// All values, or `None` if one is missing. Every value is read first, so that every fault is reported.
pub(super) fn all<T>(values: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let values: Vec<Option<T>> = values.collect();
    values.into_iter().collect()
}

/// A URL to which secrets are sent, so it is encrypted unless it stays on this host.
pub(super) fn secure_url(field: &Field<'_>) -> Option<Url> {
    let url = http_url(field)?;
    let message = format!(
        "http:// to {} would send the client secret unencrypted; expected https:// (http:// is only for \
         loopback hosts)",
        quoted(url.host_str().unwrap_or_default())
    );
    field.ensure(super::is_secure_endpoint(&url), message)?;
    Some(url)
}

/// An issuer: a URL without a query (RFC 8414 section 2).
pub(super) fn issuer(field: &Field<'_>) -> Option<Url> {
    let url = secure_url(field)?;
    let message = "an issuer has no query (RFC 8414); remove the \"?\" and the text after it";
    field.ensure(url.query().is_none(), message)?;
    Some(url)
}

/// A proxy: a URL without a path. It may be `http://`, because the requests through it are encrypted end to end.
pub(super) fn proxy(field: &Field<'_>) -> Option<Url> {
    let url = http_url(field)?;
    let message = "expected only scheme, host and port of a proxy, such as \"http://proxy.example:3128\"";
    field.ensure(url.path() == "/" && url.query().is_none(), message)?;
    Some(url)
}

/// The text of a URL may hold a password, so no fault repeats it.
fn http_url(field: &Field<'_>) -> Option<Url> {
    const EXPECTED: &str = "expected a URL such as \"https://host.example/path\"";
    let text = field.text()?;
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => return field.fault(format!("not a URL ({error}); {EXPECTED}")),
    };
    let has_user = !url.username().is_empty() || url.password().is_some();
    for (is_wrong, problem) in [
        (text.chars().any(|c| c.is_whitespace() || c.is_control()), "has white space"),
        (!matches!(url.scheme(), "https" | "http"), "has a scheme other than https and http"),
        (has_user, "has a user name or password before the host, which logs would show"),
        (url.port() == Some(0), "has port 0, at which no server can listen"),
        (url.fragment().is_some(), "has a fragment, which is never sent"),
    ] {
        field.ensure(!is_wrong, format!("{problem}; {EXPECTED}"))?;
    }
    Some(url)
}

const SOURCE: &str = "{ credential = \"NAME\" }, { file = \"/PATH\" }, { env = \"NAME\" } or { command = [\"PROGRAM\", \"ARGUMENT\"] }";

/// One source, or an array of sources for one secret that is being replaced, in order of preference.
pub(super) fn secret_sources(field: &Field<'_>) -> Option<Vec<SecretSource>> {
    let Value::List(items) = &field.item.value else { return Some(vec![secret_source(field)?]) };
    let found = items.len();
    let message = format!(
        "an array of {found} sources, expected 1 to {SOURCES_MAX}, the preferred one first: [{SOURCE}]"
    );
    field.ensure((1..=SOURCES_MAX).contains(&found), message)?;
    let mut sources = Vec::new();
    for (item, source) in field.list(SOURCE)?.iter().zip(list(field, SOURCE, secret_source)?) {
        item.ensure(!sources.contains(&source), "the same source is listed twice; remove one of the two")?;
        sources.push(source);
    }
    Some(sources)
}

/// Where a secret is kept. The secret itself may stand here by mistake, so no fault repeats a value.
pub(super) fn secret_source(field: &Field<'_>) -> Option<SecretSource> {
    const KINDS: [&str; 4] = ["credential", "file", "env", "command"];
    const COMMAND: &str =
        "an array of a program and its arguments, such as [\"pass\", \"show\", \"x\"]; there is no shell";
    let message = format!("a secret is not written here; say where it is kept: {SOURCE}");
    field.ensure(!field.is_text(), message)?;
    match field.table(SOURCE)?.as_slice() {
        [("credential", value)] => {
            let name = value.text()?;
            let is_name =
                !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0']);
            let message = "expected the name of a systemd credential, which is a file name without \"/\"";
            value.ensure(is_name, message)?;
            value.mention("credential", name);
            Some(SecretSource::Credential(name.to_owned()))
        }
        [("file", value)] => readable_path(value, "file").map(SecretSource::File),
        [("env", value)] => {
            let name = value.text()?;
            let message = "expected the name of an environment variable, which is not empty and has no \"=\"";
            value.ensure(!name.is_empty() && !name.contains(['=', '\0']), message)?;
            Some(SecretSource::Environment(name.to_owned()))
        }
        [("command", value)] => {
            let words = list(value, COMMAND, |word| {
                let text = word.text()?;
                word.ensure(!text.contains('\0'), "has a NUL character, which no argument can have")?;
                Some(text.to_owned())
            })?;
            let has_program = words.first().is_some_and(|program| !program.is_empty());
            value.ensure(has_program, format!("names no program; expected {COMMAND}"))?;
            Some(SecretSource::Command(words))
        }
        [] => field.fault(format!("an empty table; expected {SOURCE}")),
        several => {
            if let Some((name, _)) = several.iter().find(|(name, _)| !KINDS.contains(name)) {
                // A name that resembles no kind may be the secret itself, so it is not repeated.
                let hint = did_you_mean(name, KINDS);
                return field.fault(format!("unknown kind of secret source{hint}; expected {SOURCE}"));
            }
            field.fault(format!("{} sources for one secret; expected one: {SOURCE}", several.len()))
        }
    }
}

/// `headers`: fixed values and secrets, in byte order of their names.
pub(super) fn headers(field: &Field<'_>) -> Option<Vec<HeaderSettings>> {
    let fields = field.table("a table such as { Accept = \"application/json\" }")?;
    let mut seen = BTreeSet::new();
    all(fields.iter().map(|(name, field)| {
        let message = "given twice, as case has no meaning in the name of a header; keep one";
        field.ensure(seen.insert(name.to_ascii_lowercase()), message)?;
        check_header_name(name, field)?;
        let value = if field.is_table() {
            HeaderValue::Secret(secret_source(field)?)
        } else {
            HeaderValue::Fixed(header_value(field, "a string, or a table that says where a secret is kept")?)
        };
        Some(HeaderSettings { name: (*name).to_owned(), value })
    }))
}

pub(super) fn caller_headers(field: &Field<'_>) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    list(field, "an array of header names, such as [\"Requestor-ID\"]", |field| {
        let name = field.text()?;
        check_header_name(name, field)?;
        let is_new = seen.insert(name.to_ascii_lowercase());
        field.ensure(is_new, format!("names {} twice; keep one", quoted(name)))?;
        Some(name.to_owned())
    })
}

fn check_header_name(name: &str, field: &Field<'_>) -> Option<()> {
    let message = format!("{} cannot be the name of a header (RFC 9110 section 5.1)", quoted(name));
    field.ensure(header::HeaderName::from_bytes(name.as_bytes()).is_ok(), message)?;
    let is_ours = name.eq_ignore_ascii_case(header::AUTHORIZATION.as_str());
    field.ensure(!is_ours, "the Authorization header is written by the daemon; remove this one")
}

/// The value of a header. It may be a secret by mistake, so no fault repeats it.
pub(super) fn header_value(field: &Field<'_>, expected: &str) -> Option<String> {
    let text = field.text_or(expected)?;
    let message =
        "cannot be the value of a header; expected visible ASCII, not empty and without spaces at either end";
    field.ensure(is_field_value(text), message)?;
    Some(text.to_owned())
}

/// A field value of RFC 9110 section 5.5, without the obsolete bytes and without white space at its ends.
pub fn is_field_value(text: &str) -> bool {
    !text.is_empty() && text.trim() == text && text.is_ascii() && header::HeaderValue::from_str(text).is_ok()
}

pub(super) fn params(field: &Field<'_>) -> Option<BTreeMap<String, String>> {
    let fields = field.table("a table such as { acr_values = \"tenant:acme\" }")?;
    all(fields.iter().map(|(name, field)| {
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

//! `grant_type`, and the keys of `[token.NAME]` that it needs.

use super::fault::{did_you_mean, one_of, quoted};
use super::section::{Field, Section};
use super::{Grant, TokenExchange, UserPassword, values};

const CLIENT_CREDENTIALS: &str = "client_credentials";
const PASSWORD: &str = "password";

/// The grant types, each with the keys that it needs. Of those of extensions that are no URI (RFC 6749 section 4.5), only the one
/// of Zoom is known.
const GRANT_TYPES: [(&str, &[&str]); 5] = [
    (CLIENT_CREDENTIALS, &[]),
    (PASSWORD, &["username", "password"]),
    (Grant::JWT_BEARER, &["assertion"]),
    (Grant::TOKEN_EXCHANGE, &["subject_token"]),
    ("account_credentials", &[]),
];

/// The keys that belong to grant types.
const KEYS: [(&str, &str); 6] = [
    ("username", PASSWORD),
    ("password", PASSWORD),
    ("assertion", Grant::JWT_BEARER),
    ("subject_token", Grant::TOKEN_EXCHANGE),
    ("subject_token_type", Grant::TOKEN_EXCHANGE),
    ("requested_token_type", Grant::TOKEN_EXCHANGE),
];

/// The type of a token that is a JWT (RFC 8693 section 3).
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// A grant type: a known one, or the URI of an extension.
fn grant_type(field: &Field<'_>) -> Option<String> {
    let text = values::line(field)?;
    let known = GRANT_TYPES.map(|(name, _)| name);
    // Extensions differ in their last word, so only a slip of the finger is taken for one.
    let resembles = |known: &&str| strsim::damerau_levenshtein(&text, known) <= 2;
    if known.contains(&&*text) || (text.contains(':') && !known.iter().any(resembles)) {
        return Some(text);
    }
    let hint = did_you_mean(&text, known);
    field.fault(format!(
        "found {}, expected {}, or the URI of an extension{hint}",
        quoted(&text),
        one_of(known)
    ))
}

pub(super) fn grant_types(field: &Field<'_>) -> Option<Vec<String>> {
    values::list(field, "an array such as [\"client_credentials\"]", grant_type)
}

pub(super) fn read(section: &Section<'_>) -> Option<Grant> {
    let username = section.read("username", values::line);
    let password = section.read("password", values::secret_source);
    let assertion = section.read("assertion", values::secret_source);
    let subject_token = section.read("subject_token", values::secret_source);
    let subject_token_type = section.read_or("subject_token_type", JWT.to_owned(), values::line);
    let requested_token_type = section.read("requested_token_type", values::line);
    let grant_type = section.read_or("grant_type", CLIENT_CREDENTIALS.to_owned(), grant_type)?;
    let offered = section.read("grant_types", grant_types);
    if let Some(offered) = offered.filter(|offered| !offered.contains(&grant_type)) {
        let (name, offered) = (quoted(&grant_type), one_of(offered));
        let message = format!("{name} is not offered by the provider's preset, only {offered}");
        return section.fault_if_complete("grant_type", message);
    }
    let needed = GRANT_TYPES.iter().find(|(name, _)| *name == grant_type).map_or(&[][..], |(_, keys)| *keys);
    let missing: Vec<&str> = needed.iter().copied().filter(|key| !section.has(key)).collect();
    if !missing.is_empty() {
        let message = format!("{} also needs {}", quoted(&grant_type), missing.join(" and "));
        return section.fault_if_complete("grant_type", message);
    }
    let is_extension = GRANT_TYPES.iter().all(|(name, _)| *name != grant_type);
    let is_stray = |key: &str, owner: &str| {
        section.has(key) && owner != grant_type && !(is_extension && key == "assertion")
    };
    if let Some((key, owner)) = KEYS.into_iter().find(|(key, owner)| is_stray(key, owner)) {
        let message = format!("belongs to grant_type = {}; set that, or remove the key", quoted(owner));
        return section.fault_if_complete(key, message);
    }
    Some(match &*grant_type {
        CLIENT_CREDENTIALS => Grant::ClientCredentials,
        PASSWORD => Grant::Password(Box::new(UserPassword { username: username?, password: password? })),
        Grant::JWT_BEARER => Grant::JwtBearer(Box::new(assertion?)),
        Grant::TOKEN_EXCHANGE => Grant::TokenExchange(Box::new(TokenExchange {
            subject_token: subject_token?,
            subject_token_type: subject_token_type?,
            requested_token_type,
        })),
        _ => Grant::Other { grant_type, assertion: assertion.map(Box::new) },
    })
}

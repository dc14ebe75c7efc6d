//! `[token.NAME]`: the token request, and who may have the token.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokend_protocol::TokenName;

use super::fault::{Sink, join, one_of, quoted};
use super::preset;
use super::provider::Provider;
use super::section::{Field, Section};
use super::{CredentialSettings, Grant, TermKind, Terms, TokenSettings, headers, rules, values, variants};

/// A grant type, without its credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrantType {
    ClientCredentials,
    Password,
}

/// Reads all sections, and warns of providers that no token uses.
pub(super) fn read_all(
    sections: BTreeMap<String, Section<'_>>,
    providers: &BTreeMap<String, Provider>,
    sink: &Sink,
) -> BTreeMap<TokenName, TokenSettings> {
    let read = |(name, section): (String, _)| Some((read(section, providers), name.parse().ok()?));
    let read = sections.into_iter().filter_map(read);
    let tokens = read.filter_map(|(settings, name)| Some((name, settings?))).collect();
    for provider in providers.values().filter(|provider| !provider.is_used.get()) {
        sink.warn(&provider.place, &provider.path, "no token uses this provider");
    }
    tokens
}

/// Reads every key before it gives up, so that every fault is found.
fn read(mut section: Section<'_>, providers: &BTreeMap<String, Provider>) -> Option<TokenSettings> {
    let unknown = |name: &str| format!("no provider {}; add [{}]", quoted(name), join("provider", name));
    let provider = section.read("provider", |field| field.find(providers, unknown));
    section.missing::<()>("provider", "name one of the [provider.NAME] sections");
    let has_headers = section.has("headers") && !section.has("caller_headers");
    let clash_key = if has_headers { "headers" } else { "caller_headers" };
    if let Some(provider) = provider {
        provider.is_used.set(true);
        preset::fill(&mut section, &provider.token_defaults);
    }
    let (grant, terms, params) = (grant(&section), terms(&section), params(&section));
    let headers = section.read("headers", headers::headers).unwrap_or_default();
    let caller_headers = section.read("caller_headers", headers::caller_headers).unwrap_or_default();
    let is_fixed = |name: &&String| headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if let Some(name) = caller_headers.iter().find(is_fixed) {
        let message = format!("{} is among both headers and caller_headers; keep it in one", quoted(name));
        section.conflict::<()>(clash_key, message);
    }
    let allow = section.read("allow", rules::list).unwrap_or_default();
    let refresh_before = section.read("refresh_before", values::duration);
    let default_lifetime = section.read("default_lifetime", values::lifetime);
    let idle_timeout = variants::idle_timeout(&section);
    let variants = section.read("variants", variants::settings).unwrap_or_default();
    let provider = provider?;
    let base = provider.credential.clone()?;
    let default_lifetime = default_lifetime.unwrap_or(base.default_lifetime);
    Some(TokenSettings {
        provider: Arc::clone(&provider.name),
        credential: Arc::new(CredentialSettings { grant: grant?, terms, params, default_lifetime, ..base }),
        max_requests_per_minute: provider.max_requests_per_minute,
        refresh_before,
        idle_timeout,
        variants,
        headers,
        caller_headers,
        allow,
    })
}

/// `scope`, `resource` and `audience`.
pub(super) fn terms(section: &Section<'_>) -> Terms {
    let mut terms = Terms::default();
    for kind in TermKind::ALL {
        section.set(kind.as_str(), terms.of_mut(kind), |field| values::terms(field, kind));
    }
    terms
}

const GRANT_TYPES: [(&str, GrantType); 2] =
    [("client_credentials", GrantType::ClientCredentials), ("password", GrantType::Password)];

/// `grant_types` of a preset.
pub(super) fn grant_types(field: &Field<'_>) -> Option<Vec<GrantType>> {
    values::list(field, "an array such as [\"client_credentials\"]", values::word(&GRANT_TYPES))
}

/// `required_params` of a preset.
pub(super) fn required_params(field: &Field<'_>) -> Option<Vec<String>> {
    values::strings(field, values::line)
}

fn grant(section: &Section<'_>) -> Option<Grant> {
    let grant_type = section.read("grant_type", values::word(&GRANT_TYPES));
    let username = section.read("username", values::line);
    let password = section.read("password", values::secret_source);
    if grant_type.is_none() && section.has("grant_type") {
        return None;
    }
    let grant_type = grant_type.unwrap_or(GrantType::ClientCredentials);
    let name_of = |grant: GrantType| {
        GRANT_TYPES.into_iter().find(|(_, other)| *other == grant).map_or("", |(name, _)| name)
    };
    let offered = section.read("grant_types", grant_types);
    if let Some(offered) = offered.filter(|offered| !offered.contains(&grant_type)) {
        let offered = one_of(offered.into_iter().map(name_of));
        let name = quoted(name_of(grant_type));
        let message = format!("{name} is not offered by the provider's preset, only {offered}");
        return section.conflict("grant_type", message);
    }
    match grant_type {
        GrantType::Password => {
            let mut missing = vec!["username", "password"];
            missing.retain(|key| !section.has(key));
            if !missing.is_empty() {
                let message = format!("\"password\" also needs {}", missing.join(" and "));
                return section.conflict("grant_type", message);
            }
            Some(Grant::Password { username: username?, password: password? })
        }
        GrantType::ClientCredentials => {
            if let Some(key) = ["username", "password"].into_iter().find(|key| section.has(key)) {
                let message =
                    "belongs to grant_type = \"password\"; set that, or remove username and password";
                return section.conflict(key, message);
            }
            Some(Grant::ClientCredentials)
        }
    }
}

/// The form fields. Those that the preset requires must be there.
fn params(section: &Section<'_>) -> BTreeMap<String, String> {
    let params = section.read("params", headers::params);
    let is_faulty = params.is_none() && section.has("params");
    let params = params.unwrap_or_default();
    let mut missing = section.read("required_params", required_params).unwrap_or_default();
    missing.retain(|name| !params.contains_key(name));
    if !missing.is_empty() && !is_faulty {
        let required = one_of(missing.iter().map(String::as_str)).replace(" or ", " and ");
        let message = format!("missing {required}, which the provider's preset requires");
        section.conflict::<()>("params", message);
    }
    params
}

//! `[token.NAME]`: the token request, and who may have the token.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::TokenName;

use super::fault::{Sink, did_you_mean, join, one_of, quoted};
use super::files::Raw;
use super::preset;
use super::provider::Provider;
use super::section::{Field, Section};
use super::{
    CredentialSettings, Grant, HeaderSettings, TermKind, TokenSettings, headers, rules, values, variants,
};

/// The lifetime of a token if the reply has none: that of the shortest-lived tokens seen in practice, so that an expired
/// token is hardly ever handed out. It costs a dozen requests in an hour.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// A grant type, without its credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrantType {
    ClientCredentials,
    Password,
}

/// Reads all sections, and warns of providers that no token uses.
pub(super) fn read_all(
    sections: BTreeMap<String, Raw>,
    providers: &BTreeMap<String, Provider>,
    sink: &Sink,
) -> BTreeMap<TokenName, TokenSettings> {
    let mut tokens = BTreeMap::new();
    for (name, raw) in sections {
        if let (Some(settings), Ok(name)) = (read(&name, raw, providers, sink), name.parse()) {
            tokens.insert(name, settings);
        }
    }
    for (name, provider) in providers.iter().filter(|(_, provider)| !provider.is_used.get()) {
        sink.warn(&provider.place, &join("provider", name), "no token uses this provider");
    }
    tokens
}

/// Reads every key before it gives up, so that every fault is found.
fn read(
    name: &str,
    mut raw: Raw,
    providers: &BTreeMap<String, Provider>,
    sink: &Sink,
) -> Option<TokenSettings> {
    let own = Section::new(join("token", name), &raw, sink);
    let provider = own.read("provider", |field| find_provider(field, providers));
    if !own.has("provider") {
        own.missing::<()>("provider", "name one of the [provider.NAME] sections");
    }
    let is_own = |key: &str| raw.table.contains_key(key);
    let clash_key = if is_own("caller_headers") || !is_own("headers") { "caller_headers" } else { "headers" };
    if let Some(provider) = provider {
        provider.is_used.set(true);
        preset::fill(&mut raw.table, &provider.token_defaults, &raw.place);
    }
    let section = &Section::new(join("token", name), &raw, sink);
    let grant = grant(section);
    let [scope, resource, audience] = TermKind::ALL
        .map(|kind| section.read(kind.as_str(), |field| values::terms(field, kind)).unwrap_or_default());
    let params = params(section);
    let headers = section.read("headers", headers::headers).unwrap_or_default();
    let caller_headers = section.read("caller_headers", headers::caller_headers).unwrap_or_default();
    refuse_clash(section, clash_key, &headers, &caller_headers);
    let allow = section.read("allow", rules::list).unwrap_or_default();
    let refresh_before = section.read("refresh_before", values::duration);
    let default_lifetime = section.read("default_lifetime", values::lifetime);
    let idle_timeout = variants::idle_timeout(section);
    let variants = section.read("variants", variants::settings).unwrap_or_default();
    let provider = provider?;
    let credential = CredentialSettings {
        endpoint: provider.endpoint.clone()?,
        client_id: provider.client_id.clone()?,
        authentication: provider.authentication.clone()?,
        grant: grant?,
        scope,
        resource,
        audience,
        params,
        accept: provider.accept.clone(),
        ca_file: provider.ca_file.clone(),
        proxy: provider.proxy.clone(),
        default_lifetime: default_lifetime.or(provider.default_lifetime).unwrap_or(DEFAULT_LIFETIME),
    };
    Some(TokenSettings {
        provider: Arc::clone(&provider.name),
        credential: Arc::new(credential),
        max_requests_per_minute: provider.max_requests_per_minute,
        refresh_before,
        idle_timeout,
        variants,
        headers,
        caller_headers,
        allow,
    })
}

/// Reports a header that both the configuration and the caller would set.
fn refuse_clash(section: &Section<'_>, key: &str, headers: &[HeaderSettings], caller_headers: &[String]) {
    let is_fixed =
        |name: &&String| headers.iter().any(|header| header.name.eq_ignore_ascii_case(name.as_str()));
    if let Some(name) = caller_headers.iter().find(is_fixed) {
        let message = format!("{} is among both headers and caller_headers; keep it in one", quoted(name));
        section.conflict::<()>(key, message);
    }
}

fn find_provider<'p>(field: &Field<'_>, providers: &'p BTreeMap<String, Provider>) -> Option<&'p Provider> {
    let name = field.text()?;
    let found = providers.get(name);
    if found.is_none() {
        let hint = did_you_mean(name, providers.keys().map(String::as_str));
        let message = format!("no provider {}; add [{}]{hint}", quoted(name), join("provider", name));
        field.sink.conflict(&field.item.place, &field.path, message);
    }
    found
}

const GRANT_TYPES: [(&str, GrantType); 2] =
    [("client_credentials", GrantType::ClientCredentials), ("password", GrantType::Password)];

/// `grant_type` of a token.
fn grant_type(field: &Field<'_>) -> Option<GrantType> {
    values::word(field, &GRANT_TYPES)
}

/// `grant_types` of a preset.
pub(super) fn grant_types(field: &Field<'_>) -> Option<Vec<GrantType>> {
    values::list(field, "an array such as [\"client_credentials\"]", grant_type)
}

fn grant(section: &Section<'_>) -> Option<Grant> {
    let grant_type = section.read("grant_type", grant_type);
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
            let missing = ["username", "password"].into_iter().filter(|key| !section.has(key));
            let missing: Vec<&str> = missing.collect();
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
    let required =
        section.read("required_params", |field| values::strings(field, values::line)).unwrap_or_default();
    let missing = required.iter().filter(|name| !params.contains_key(*name)).map(String::as_str);
    let missing: Vec<&str> = missing.collect();
    if !missing.is_empty() && !is_faulty {
        let required = one_of(missing).replace(" or ", " and ");
        let message = format!("missing {required}, which the provider's preset requires");
        section.conflict::<()>("params", message);
    }
    params
}

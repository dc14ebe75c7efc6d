//! `[token.NAME]`: what is asked for, and who may have it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::TokenName;

use super::document::Value;
use super::fault::{Place, Sink, did_you_mean, one_of, quoted, segment};
use super::files::{Named, Raw};
use super::headers::{self, Headers};
use super::preset::{self, GrantType, Preset};
use super::provider::{self, Provider};
use super::section::{Field, Section, Setting};
use super::{CredentialSettings, Grant, HeaderSettings, TokenSettings, rules, secret, values, variants};
use crate::secret_source::SecretSource;

/// The keys of `[token.NAME]`.
pub(super) const KEYS: &[&str] = &[
    "provider",
    "grant_type",
    "scope",
    "resource",
    "audience",
    "params",
    "username",
    "password",
    "headers",
    "caller_headers",
    "allow",
    "refresh_before",
    "default_lifetime",
    "warm",
    "idle_timeout",
    "variants",
];

const DEFAULT_ACCEPT: &str = "application/json";

/// A reply that tells no lifetime is trusted for as long as the shortest-lived tokens seen in practice live: what
/// is handed out is then hardly ever expired, at the price of a dozen requests in an hour.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// The providers, by name, and what has been seen of their use.
#[derive(Debug)]
pub(super) struct Providers {
    pub(super) by_name: BTreeMap<String, Provider>,
    pub(super) some_lost: bool,
}

/// Reads all sections, and warns of providers that none of them uses.
pub(super) fn read_all(
    named: &Named,
    providers: &Providers,
    sink: &Sink,
) -> BTreeMap<TokenName, TokenSettings> {
    let mut used = BTreeSet::new();
    let mut tokens = BTreeMap::new();
    for (name, raw) in &named.sections {
        // The section itself may be among those that were lost.
        let excused = if named.some_lost && raw.is_headless() { KEYS } else { &[] };
        let reader = Reader::new(name, raw, excused, providers, sink);
        used.extend(reader.provider.value().map(|provider| Arc::clone(&provider.name)));
        let settings = reader.read();
        match name.parse::<TokenName>() {
            Ok(name) => drop(settings.map(|settings| tokens.insert(name, settings))),
            Err(error) => sink.fault(&raw.place, Some(path(name)), error.to_string()),
        }
    }
    for (name, provider) in &providers.by_name {
        if !used.contains(name.as_str()) {
            sink.warn(
                &provider.place,
                Some(format!("provider.{}", segment(name))),
                "no token uses this provider",
            );
        }
    }
    tokens
}

/// Keys of providers that were written into a token, by the provider that the token names.
pub(super) fn misplaced<'a>(tokens: &'a Named) -> BTreeMap<&'a str, BTreeSet<&'static str>> {
    let mut found: BTreeMap<&'a str, BTreeSet<&'static str>> = BTreeMap::new();
    for raw in tokens.sections.values() {
        let Some(Value::Text(provider)) = raw.entries.get("provider").map(|entry| &entry.node.value) else {
            continue;
        };
        let belongs_there = |key: &&&str| !KEYS.contains(*key) && raw.entries.contains_key(**key);
        found.entry(provider).or_default().extend(provider::KEYS.iter().filter(belongs_there));
    }
    found
}

fn path(name: &str) -> String {
    format!("token.{}", segment(name))
}

/// A section with its provider.
struct Reader<'a> {
    section: Section<'a>,
    provider: Setting<&'a Provider>,
    preset: Setting<&'a Preset>,
}

impl<'a> Reader<'a> {
    fn new(
        name: &str,
        raw: &'a Raw,
        excused: &[&'static str],
        providers: &'a Providers,
        sink: &'a Sink,
    ) -> Self {
        let mut section = Section::new(path(name), raw, KEYS, sink);
        section.excuse(excused.iter().copied());
        let provider = section.read("provider", |field| {
            let name = field.text()?;
            let found = providers.by_name.get(name);
            if found.is_none() && !providers.some_lost {
                let names = || providers.by_name.keys().map(String::as_str);
                let hint = did_you_mean(name, names());
                let header = format!("[provider.{}]", segment(name));
                field.fault(format!("no provider {}; add {header}{hint}", quoted(name)));
            }
            found
        });
        if provider.is_absent() {
            section.missing("provider", "name one of the [provider.NAME] sections");
        }
        let preset = match provider.value() {
            None => Setting::Faulty,
            Some(provider) => match &provider.preset {
                Setting::Set(preset, place) => Setting::Set(preset.as_ref(), place.clone()),
                Setting::Absent => Setting::Absent,
                Setting::Faulty => Setting::Faulty,
            },
        };
        Self { section, provider, preset }
    }

    /// Reads every key before it gives up, so that every fault is found.
    fn read(&self) -> Option<TokenSettings> {
        let section = &self.section;
        let grant = self.grant();
        let scope = self.layered("scope", values::scope, |preset| &preset.scope).or_default(Default::default);
        let resource =
            self.layered("resource", values::terms, |preset| &preset.resource).or_default(Default::default);
        let audience =
            self.layered("audience", values::terms, |preset| &preset.audience).or_default(Default::default);
        let params = self.params();
        let (headers, caller_headers) = self.headers();
        let allow = section.read("allow", rules::list).or_default(Vec::new);
        let refresh_before =
            self.layered("refresh_before", values::duration, |preset| &preset.refresh_before);
        let default_lifetime = self.default_lifetime();
        let idle_timeout = variants::idle_timeout(section);
        let variants = section.read("variants", variants::settings);
        let variants_place = variants.place().cloned();
        let variants = variants.or_default(Default::default);
        let provider = *self.provider.value()?;
        let credential = CredentialSettings {
            endpoint: provider.endpoint.value()?.clone(),
            client_id: provider.client_id.value()?.clone(),
            authentication: provider.authentication.value()?.clone(),
            grant: grant?,
            scope: scope?,
            resource: resource?,
            audience: audience?,
            params: params?,
            accept: self.accept(provider)?,
            ca_file: provider.ca_file.clone().map(Some).or_default(|| None)?,
            proxy: provider.proxy.clone().map(Some).or_default(|| None)?,
            default_lifetime: default_lifetime?,
        };
        if let Some((place, variants)) = variants_place.as_ref().zip(variants.as_ref()) {
            variants::warn_of_unruled_form(section, place, variants, &credential);
        }
        Some(TokenSettings {
            provider: Arc::clone(&provider.name),
            credential: Arc::new(credential),
            max_requests_per_minute: provider
                .max_requests_per_minute
                .clone()
                .map(Some)
                .or_default(|| None)?,
            refresh_before: refresh_before.map(Some).or_default(|| None)?,
            idle_timeout: idle_timeout?,
            variants: variants?,
            headers: headers?,
            caller_headers: caller_headers?,
            allow: allow?,
        })
    }

    /// What the preset says, where there is a preset and it is good.
    fn preset_setting<T: Clone>(&self, pick: impl FnOnce(&Preset) -> &Setting<T>) -> Setting<T> {
        match &self.preset {
            Setting::Set(preset, _) => pick(preset).clone(),
            Setting::Absent => Setting::Absent,
            Setting::Faulty => Setting::Faulty,
        }
    }

    /// A key of this section, or else of the preset.
    fn layered<T: Clone>(
        &self,
        key: &str,
        reader: impl FnOnce(&Field<'_>) -> Option<T>,
        pick: impl FnOnce(&Preset) -> &Setting<T>,
    ) -> Setting<T> {
        self.section.read(key, reader).or(self.preset_setting(pick))
    }

    fn accept(&self, provider: &Provider) -> Option<String> {
        let below = self.preset_setting(|preset| &preset.accept);
        provider.accept.clone().or(below).or_default(|| DEFAULT_ACCEPT.to_owned())
    }

    fn default_lifetime(&self) -> Option<Duration> {
        let own = self.section.read("default_lifetime", values::lifetime);
        let provider =
            self.provider.value().map_or(Setting::Faulty, |provider| provider.default_lifetime.clone());
        own.or(provider)
            .or(self.preset_setting(|preset| &preset.default_lifetime))
            .or_default(|| DEFAULT_LIFETIME)
    }

    fn grant(&self) -> Option<Grant> {
        let section = &self.section;
        let grant_type = section.read("grant_type", preset::grant_type);
        let username = section.read("username", values::line);
        let password = section.read("password", secret::source);
        let place = grant_type.place().unwrap_or(section.place).clone();
        let kind = grant_type.or_default(|| GrantType::ClientCredentials)?;
        let offered = self.preset_setting(|preset| &preset.grant_types);
        if let Some(offered) = offered.into_value().filter(|offered| !offered.contains(&kind)) {
            let offered = one_of(offered.into_iter().map(GrantType::name));
            let message =
                format!("{} is not offered by the provider's preset, only {offered}", quoted(kind.name()));
            section.fault_at(&place, "grant_type", message);
            return None;
        }
        if kind == GrantType::Password {
            self.report_missing_user(&place, &username, &password);
            return Some(Grant::Password {
                username: username.into_value()?,
                password: password.into_value()?,
            });
        }
        let surplus = [("username", username.place()), ("password", password.place())];
        if let Some((key, place)) = surplus.into_iter().find_map(|(key, place)| Some((key, place?))) {
            section.fault_at(
                place,
                key,
                "belongs to grant_type = \"password\"; set that, or remove user name and password",
            );
            return None;
        }
        Some(Grant::ClientCredentials)
    }

    fn report_missing_user(
        &self,
        place: &Place,
        username: &Setting<String>,
        password: &Setting<SecretSource>,
    ) {
        let missing: Vec<&str> = [("username", username.is_absent()), ("password", password.is_absent())]
            .into_iter()
            .filter_map(|(name, absent)| absent.then_some(name))
            .collect();
        if !missing.is_empty() {
            let message = format!("\"password\" also needs {}", missing.join(" and "));
            self.section.fault_at(place, "grant_type", message);
        }
    }

    /// Own form fields over those of the preset, by name; then those that the preset demands must be there.
    fn params(&self) -> Option<BTreeMap<String, String>> {
        let own = self.section.read("params", headers::params);
        let place = own.place().unwrap_or(self.section.place).clone();
        let own = own.or_default(BTreeMap::new);
        let preset = self.preset_setting(|preset| &preset.params).or_default(BTreeMap::new);
        let required = self.preset_setting(|preset| &preset.required_params).or_default(Vec::new);
        let (mut params, own, required) = (preset?, own?, required?);
        params.extend(own);
        let missing: Vec<&str> =
            required.iter().filter(|name| !params.contains_key(*name)).map(String::as_str).collect();
        if !missing.is_empty() {
            let demands = one_of(missing).replace(" or ", " and ");
            self.section.fault_at(
                &place,
                "params",
                format!("missing {demands}, which the provider's preset demands"),
            );
            return None;
        }
        Some(params)
    }

    /// Own headers over those of the preset, by name, in order of the names; and the caller's.
    fn headers(&self) -> (Option<Vec<HeaderSettings>>, Option<Vec<String>>) {
        let own = self.section.read("headers", headers::headers);
        let own_place = own.place().cloned();
        let preset = self.preset_setting(|preset| &preset.headers).or_default(Headers::new);
        let callers = self.section.read("caller_headers", headers::caller_headers);
        let callers_place = callers.place().cloned();
        let callers = callers.or(self.preset_setting(|preset| &preset.caller_headers)).or_default(Vec::new);
        let merged = own.or_default(Headers::new).zip(preset).map(|(own, mut headers)| {
            headers.extend(own);
            headers
        });
        let both = merged.as_ref().zip(callers.as_ref()).and_then(|(headers, callers)| {
            callers.iter().find(|name| headers.contains_key(&name.to_ascii_lowercase()))
        });
        if let Some(name) = both {
            let (place, key) = match (callers_place, own_place) {
                (Some(place), _) => (place, "caller_headers"),
                (None, Some(place)) => (place, "headers"),
                (None, None) => (self.section.place.clone(), "caller_headers"),
            };
            let message =
                format!("{} is among both headers and caller_headers; keep it in one", quoted(name));
            self.section.fault_at(&place, key, message);
            return (None, None);
        }
        (merged.map(|headers| headers.into_values().collect()), callers)
    }
}

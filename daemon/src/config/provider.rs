//! `[provider.NAME]`: where tokens are asked for, and as which client.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::url::Url;
use tokend_protocol::TokenName;

use super::fault::{Place, Sink, did_you_mean, one_of, quoted, segment};
use super::files::Raw;
use super::preset::{self, Method, Preset, PresetEndpoint, Presets};
use super::section::{Section, Setting};
use super::{BasicEncoding, ClientAuthentication, Endpoint, secret, url, values};
use crate::secret_source::SecretSource;

/// The keys of `[provider.NAME]`.
pub(super) const KEYS: &[&str] = &[
    "preset",
    "environment",
    "token_endpoint",
    "issuer",
    "client_id",
    "client_secret",
    "token_endpoint_auth_method",
    "client_secret_basic_encoding",
    "ca_file",
    "proxy",
    "accept",
    "default_lifetime",
    "max_requests_per_minute",
];

/// The environment of a preset that is meant where none is said.
const DEFAULT_ENVIRONMENT: &str = "production";

/// A provider, as far as its section is good.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) name: Arc<str>,
    pub(super) place: Place,
    pub(super) preset: Setting<Arc<Preset>>,
    pub(super) endpoint: Setting<Endpoint>,
    pub(super) client_id: Setting<String>,
    pub(super) authentication: Setting<ClientAuthentication>,
    pub(super) accept: Setting<String>,
    pub(super) ca_file: Setting<PathBuf>,
    pub(super) proxy: Setting<Url>,
    pub(super) default_lifetime: Setting<Duration>,
    pub(super) max_requests_per_minute: Setting<u32>,
}

impl Provider {
    /// Reads a section, and reports all that is wrong with it.
    ///
    /// `misplaced` are keys that belong here and were found in a token: they are reported there.
    pub(super) fn read(
        name: &str,
        raw: &Raw,
        misplaced: Option<&BTreeSet<&'static str>>,
        presets: &Presets,
        sink: &Sink,
    ) -> Self {
        let path = format!("provider.{}", segment(name));
        if name.parse::<TokenName>().is_err() {
            let message = format!("{} cannot be the name of a provider: {}", quoted(name), values::NAME_RULE);
            sink.fault(&raw.place, Some(path.clone()), message);
        }
        let mut section = Section::new(path, raw, KEYS, sink);
        section.excuse(misplaced.into_iter().flatten().copied());
        let preset = section.read("preset", |field| presets.find(field));
        let endpoint = endpoint(&section, &preset);
        let client_id = section.read("client_id", values::line);
        if client_id.is_absent() {
            section.missing("client_id", "the provider issues it together with the client secret");
        }
        let proxy = section.read("proxy", url::proxy);
        refuse_open_proxy(&section, &endpoint, &proxy);
        Self {
            name: Arc::from(name),
            place: raw.place.clone(),
            endpoint,
            client_id,
            authentication: authentication(&section, &preset),
            accept: section.read("accept", preset::accept),
            ca_file: section.read("ca_file", values::path),
            proxy,
            default_lifetime: section.read("default_lifetime", values::lifetime),
            max_requests_per_minute: section
                .read("max_requests_per_minute", |field| values::count(field, 1..=60_000))
                .map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
            preset,
        }
    }

    /// Reports a proxy where every connection goes through an egress socket.
    pub(super) fn refuse_proxy_with_egress(&self, sink: &Sink) {
        if let Some(place) = self.proxy.place() {
            let key = format!("provider.{}.proxy", segment(&self.name));
            let message = "a proxy is never used together with egress_dir, through which every connection goes; remove one \
                           of the two";
            sink.fault(place, Some(key), message);
        }
    }
}

/// What the operator set, or what the preset knows for the environment.
fn endpoint(section: &Section<'_>, preset: &Setting<Arc<Preset>>) -> Setting<Endpoint> {
    const SET_IT: &str = "set token_endpoint, or issuer for its discovery";
    let explicit = preset::endpoint(section);
    let environment = environment(section, preset);
    if let Setting::Set(endpoint, place) = explicit {
        return Setting::Set(endpoint, place);
    }
    if explicit.is_faulty() || environment.is_faulty() {
        return Setting::Faulty;
    }
    let message = match (preset, environment) {
        (Setting::Faulty, _) => return Setting::Faulty,
        (Setting::Set(..), Setting::Set(PresetEndpoint::Known(endpoint), place)) => {
            return Setting::Set(endpoint, place);
        }
        (Setting::Set(preset, _), _) => {
            format!("the preset {} does not know the endpoint: {SET_IT}", quoted(&preset.name))
        }
        (Setting::Absent, _) => SET_IT.to_owned(),
    };
    section.missing("token_endpoint", &message);
    Setting::Faulty
}

/// The endpoint of the environment that the operator chose, or else of the usual one. It is checked even where
/// an explicit endpoint makes it superfluous.
fn environment(section: &Section<'_>, preset: &Setting<Arc<Preset>>) -> Setting<PresetEndpoint> {
    let chosen = section.read("environment", |field| field.text().map(str::to_owned));
    match (preset, chosen) {
        (Setting::Set(preset, _), chosen) => preset_environment(section, preset, chosen),
        (Setting::Absent, Setting::Set(_, place)) => {
            section.fault_at(&place, "environment", "environments are those of a preset, and none is set");
            Setting::Faulty
        }
        (Setting::Absent, Setting::Absent) => Setting::Absent,
        _ => Setting::Faulty,
    }
}

fn preset_environment(
    section: &Section<'_>,
    preset: &Preset,
    chosen: Setting<String>,
) -> Setting<PresetEndpoint> {
    let Some(known) = preset.environments.clone().or_default(BTreeMap::new) else { return Setting::Faulty };
    let names = || known.keys().map(String::as_str);
    let preset = quoted(&preset.name);
    match chosen {
        Setting::Faulty => Setting::Faulty,
        Setting::Set(name, place) => {
            if let Some(endpoint) = known.get(&name) {
                return Setting::Set(endpoint.clone(), place);
            }
            let choice =
                if known.is_empty() { "none at all".to_owned() } else { format!("only {}", one_of(names())) };
            let hint = did_you_mean(&name, names());
            let message = format!("the preset {preset} has no {}, {choice}{hint}", quoted(&name));
            section.fault_at(&place, "environment", message);
            Setting::Faulty
        }
        Setting::Absent => match known.get(DEFAULT_ENVIRONMENT) {
            Some(endpoint) => Setting::Set(endpoint.clone(), section.place.clone()),
            None if known.is_empty() || section.has("token_endpoint") || section.has("issuer") => {
                Setting::Absent
            }
            None => {
                section.missing("environment", &format!("the preset {preset} has {}", one_of(names())));
                Setting::Faulty
            }
        },
    }
}

fn authentication(section: &Section<'_>, preset: &Setting<Arc<Preset>>) -> Setting<ClientAuthentication> {
    let (preset_method, preset_encoding) = match preset {
        Setting::Set(preset, _) => (preset.method.clone(), preset.encoding.clone()),
        Setting::Absent => (Setting::Absent, Setting::Absent),
        Setting::Faulty => (Setting::Faulty, Setting::Faulty),
    };
    let method = section.read("token_endpoint_auth_method", preset::method).or(preset_method);
    let encoding = section.read("client_secret_basic_encoding", preset::encoding);
    let secrets = section.read("client_secret", secret::sources);
    let Some(method) = agreed_method(section, &method, &secrets) else { return Setting::Faulty };
    if let Some(place) = encoding.place().filter(|_| method != Method::SecretBasic) {
        let message = "has a meaning only with token_endpoint_auth_method = \"client_secret_basic\"";
        section.fault_at(place, "client_secret_basic_encoding", message);
        return Setting::Faulty;
    }
    match (method, secrets, encoding.or(preset_encoding).or_default(|| BasicEncoding::Form)) {
        (Method::None, _, _) => Setting::Set(ClientAuthentication::None, section.place.clone()),
        (Method::SecretPost, Setting::Set(secrets, place), _) => {
            Setting::Set(ClientAuthentication::SecretPost { secrets }, place)
        }
        (Method::SecretBasic, Setting::Set(secrets, place), Some(encoding)) => {
            Setting::Set(ClientAuthentication::SecretBasic { secrets, encoding }, place)
        }
        _ => Setting::Faulty,
    }
}

/// The method, where it and the secret go together. A secret that is missing is a fault unless the method is
/// `none`, because a client without one is rare and a forgotten secret is not.
fn agreed_method(
    section: &Section<'_>,
    method: &Setting<Method>,
    secrets: &Setting<Vec<SecretSource>>,
) -> Option<Method> {
    match (method, secrets) {
        (Setting::Set(Method::None, _), Setting::Set(_, place)) => {
            let message = "contradicts token_endpoint_auth_method = \"none\"; remove the secret, or choose another method";
            section.fault_at(place, "client_secret", message);
            None
        }
        (Setting::Set(Method::None, _), _) => Some(Method::None),
        (Setting::Faulty, _) => None,
        (_, Setting::Absent) => {
            let message = "say where it is kept, such as { credential = \"NAME\" }, or set \
                           token_endpoint_auth_method = \"none\" for a client without one";
            section.missing("client_secret", message);
            None
        }
        (Setting::Set(method, _), _) => Some(*method),
        (Setting::Absent, _) => Some(Method::SecretBasic),
    }
}

/// A request over http:// is for this host alone; a proxy would read the secret in it.
fn refuse_open_proxy(section: &Section<'_>, endpoint: &Setting<Endpoint>, proxy: &Setting<Url>) {
    let Some(Endpoint::Token(url) | Endpoint::Issuer(url)) = endpoint.value() else { return };
    if let Some(place) = proxy.place().filter(|_| url.scheme() == "http") {
        section.fault_at(
            place,
            "proxy",
            "an http:// endpoint on this host is not reached through a proxy; remove it",
        );
    }
}

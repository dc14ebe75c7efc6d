//! Presets: what is known of a provider before an operator says anything. The shipped ones are data, read by the
//! same code as the `[preset.NAME]` sections of a configuration.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::TokenName;

use super::fault::{Sink, did_you_mean, one_of, quoted, segment};
use super::files::{Named, Raw, Sections};
use super::headers::{self, Headers};
use super::section::{Field, Section, Setting};
use super::{BasicEncoding, Endpoint, TermSet, url, values};

/// The keys of `[preset.NAME]`.
pub(super) const KEYS: &[&str] = &[
    "description",
    "documentation",
    "environment",
    "token_endpoint_auth_method",
    "client_secret_basic_encoding",
    "accept",
    "grant_types",
    "scope",
    "resource",
    "audience",
    "params",
    "required_params",
    "headers",
    "caller_headers",
    "refresh_before",
    "default_lifetime",
];

const ENVIRONMENT_KEYS: &[&str] = &["token_endpoint", "issuer"];

const SHIPPED: [(&str, &str); 5] = [
    ("presets/aritma-psd2.toml", include_str!("../../presets/aritma-psd2.toml")),
    ("presets/bnpparibas-cib.toml", include_str!("../../presets/bnpparibas-cib.toml")),
    ("presets/cube-connect.toml", include_str!("../../presets/cube-connect.toml")),
    ("presets/econnect-psb.toml", include_str!("../../presets/econnect-psb.toml")),
    ("presets/partner-api.toml", include_str!("../../presets/partner-api.toml")),
];

/// A client authentication method, without what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    SecretBasic,
    SecretPost,
    None,
}

/// A grant, without what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrantType {
    ClientCredentials,
    Password,
}

impl GrantType {
    const NAMES: [(&'static str, Self); 2] =
        [("client_credentials", Self::ClientCredentials), ("password", Self::Password)];

    /// The name in the configuration and on the wire.
    pub(super) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, grant)| *grant == self).map_or("", |(name, _)| name)
    }
}

/// The endpoint of one of a provider's environments.
#[derive(Clone, Debug)]
pub(super) enum PresetEndpoint {
    Known(Endpoint),
    /// Each customer has a host of its own.
    Customers,
}

/// What a preset fills in.
#[derive(Debug)]
pub(super) struct Preset {
    pub(super) name: String,
    pub(super) environments: Setting<BTreeMap<String, PresetEndpoint>>,
    pub(super) method: Setting<Method>,
    pub(super) encoding: Setting<BasicEncoding>,
    pub(super) accept: Setting<String>,
    pub(super) grant_types: Setting<Vec<GrantType>>,
    pub(super) scope: Setting<TermSet>,
    pub(super) resource: Setting<TermSet>,
    pub(super) audience: Setting<TermSet>,
    pub(super) params: Setting<BTreeMap<String, String>>,
    pub(super) required_params: Setting<Vec<String>>,
    pub(super) headers: Setting<Headers>,
    pub(super) caller_headers: Setting<Vec<String>>,
    pub(super) refresh_before: Setting<Duration>,
    pub(super) default_lifetime: Setting<Duration>,
}

/// All presets, shipped and configured.
#[derive(Debug)]
pub(super) struct Presets {
    by_name: BTreeMap<String, Arc<Preset>>,
    some_lost: bool,
}

impl Presets {
    /// The shipped presets, and those of the configuration.
    pub(super) fn read(configured: &Named, sink: &Sink) -> Self {
        let mut shipped = Sections::default();
        for (file, text) in SHIPPED {
            shipped.add_text(&Arc::from(Path::new(file)), text, sink);
        }
        let mut presets = Self { by_name: BTreeMap::new(), some_lost: configured.some_lost };
        for (name, raw) in &shipped.presets.sections {
            presets.add(name, raw, &[], sink);
        }
        // What a preset lacks may be in the part that was lost.
        let excused = if configured.some_lost { KEYS } else { &[] };
        for (name, raw) in &configured.sections {
            if presets.by_name.contains_key(name) {
                let message = format!("{} is a shipped preset; give yours another name", quoted(name));
                sink.fault(&raw.place, Some(path(name)), message);
            } else {
                presets.add(name, raw, excused, sink);
            }
        }
        presets
    }

    fn add(&mut self, name: &str, raw: &Raw, excused: &[&'static str], sink: &Sink) {
        self.by_name.insert(name.to_owned(), Arc::new(Preset::read(name, raw, excused, sink)));
    }

    /// The preset that `field` names.
    pub(super) fn find(&self, field: &Field<'_>) -> Option<Arc<Preset>> {
        let name = field.text()?;
        let found = self.by_name.get(name).cloned();
        if found.is_none() && !self.some_lost {
            let names = || self.by_name.keys().map(String::as_str);
            let hint = did_you_mean(name, names());
            field.fault(format!("no preset {}, only {}{hint}", quoted(name), one_of(names())));
        }
        found
    }
}

fn path(name: &str) -> String {
    format!("preset.{}", segment(name))
}

impl Preset {
    fn read(name: &str, raw: &Raw, excused: &[&'static str], sink: &Sink) -> Self {
        if name.parse::<TokenName>().is_err() {
            let message = format!("{} cannot be the name of a preset: {}", quoted(name), values::NAME_RULE);
            sink.fault(&raw.place, Some(path(name)), message);
        }
        let mut section = Section::new(path(name), raw, KEYS, sink);
        section.excuse(excused.iter().copied());
        for text in ["description", "documentation"] {
            let _: Setting<String> = section.read(text, values::line);
        }
        Self {
            name: name.to_owned(),
            environments: section.read("environment", environments),
            method: section.read("token_endpoint_auth_method", method),
            encoding: section.read("client_secret_basic_encoding", encoding),
            accept: section.read("accept", accept),
            grant_types: section.read("grant_types", |field| {
                values::list(field, "an array such as [\"client_credentials\"]", grant_type)
            }),
            scope: section.read("scope", values::scope),
            resource: section.read("resource", values::terms),
            audience: section.read("audience", values::terms),
            params: section.read("params", headers::params),
            required_params: section.read("required_params", |field| values::strings(field, values::line)),
            headers: section.read("headers", headers::fixed_headers),
            caller_headers: section.read("caller_headers", headers::caller_headers),
            refresh_before: section.read("refresh_before", values::duration),
            default_lifetime: section.read("default_lifetime", values::lifetime),
        }
    }
}

fn environments(field: &Field<'_>) -> Option<BTreeMap<String, PresetEndpoint>> {
    let tables = field.table("tables such as [preset.NAME.environment.production]")?;
    let environments = tables.iter().map(|(name, field)| Some(((*name).to_owned(), environment(field)?)));
    values::all(environments).map(BTreeMap::from_iter)
}

fn environment(field: &Field<'_>) -> Option<PresetEndpoint> {
    let raw = field.raw()?;
    let section = Section::new(field.path.clone(), &raw, ENVIRONMENT_KEYS, field.sink());
    endpoint(&section).map(PresetEndpoint::Known).or_default(|| PresetEndpoint::Customers)
}

/// `token_endpoint` or `issuer`, of a provider or of a preset's environment.
pub(super) fn endpoint(section: &Section<'_>) -> Setting<Endpoint> {
    let token_endpoint = section.read("token_endpoint", url::token_endpoint).map(Endpoint::Token);
    let issuer = section.read("issuer", url::issuer).map(Endpoint::Issuer);
    if let (Setting::Set(_, token_place), Setting::Set(_, place)) = (&token_endpoint, &issuer) {
        let other = format!("{}:{}", token_place.file.display(), token_place.line);
        section.fault_at(place, "issuer", format!("contradicts token_endpoint ({other}); keep one of them"));
        return Setting::Faulty;
    }
    token_endpoint.or(issuer)
}

/// `token_endpoint_auth_method`.
pub(super) fn method(field: &Field<'_>) -> Option<Method> {
    const METHODS: [(&str, Method); 3] = [
        ("client_secret_basic", Method::SecretBasic),
        ("client_secret_post", Method::SecretPost),
        ("none", Method::None),
    ];
    values::word(field, &METHODS)
}

/// `client_secret_basic_encoding`.
pub(super) fn encoding(field: &Field<'_>) -> Option<BasicEncoding> {
    values::word(field, &[("form", BasicEncoding::Form), ("raw", BasicEncoding::Raw)])
}

/// `grant_type`.
pub(super) fn grant_type(field: &Field<'_>) -> Option<GrantType> {
    values::word(field, &GrantType::NAMES)
}

/// `accept`: the value of a header.
pub(super) fn accept(field: &Field<'_>) -> Option<String> {
    let text = headers::fixed_value(field, "a string")?;
    if text.is_empty() {
        field.fault("empty; expected media types such as \"application/json\"");
        return None;
    }
    Some(text)
}

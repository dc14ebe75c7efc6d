//! `[provider.NAME]`: the token endpoint and the client.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::url::Url;

use super::document::{Item, Table, Value};
use super::fault::{Place, Sink, did_you_mean, join, one_of, quoted};
use super::files::Raw;
use super::preset::{self, Preset, Presets};
use super::section::{Field, Section};
use super::{BasicEncoding, ClientAuthentication, DaemonSettings, Endpoint, headers, values};

const DEFAULT_ACCEPT: &str = "application/json";

/// The environment of a preset unless a section names another.
const DEFAULT_ENVIRONMENT: &str = "production";

/// A client authentication method, without its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    SecretBasic,
    SecretPost,
    None,
}

/// A provider. Settings that are missing or faulty are `None`.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) name: Arc<str>,
    pub(super) place: Place,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) client_id: Option<String>,
    pub(super) authentication: Option<ClientAuthentication>,
    pub(super) accept: String,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) proxy: Option<Url>,
    pub(super) default_lifetime: Option<Duration>,
    pub(super) max_requests_per_minute: Option<u32>,
    /// What the preset fills in for its tokens.
    pub(super) token_defaults: Table,
    /// Whether a token uses it.
    pub(super) is_used: Cell<bool>,
}

impl Provider {
    /// Reads a section, and reports all that is wrong with it.
    pub(super) fn read(
        name: &str,
        mut raw: Raw,
        presets: &Presets,
        daemon: &DaemonSettings,
        sink: &Sink,
    ) -> Self {
        let path = join("provider", name);
        let preset = Section::new(path.clone(), &raw, sink).read("preset", |field| presets.find(field));
        raw.is_incomplete |= raw.table.contains_key("preset") && preset.is_none();
        let environment = environment(&Section::new(path.clone(), &raw, sink), preset).cloned();
        if let Some(preset) = preset {
            let mut defaults = preset.provider.clone();
            defaults.extend(environment.unwrap_or_default());
            if raw.table.get("token_endpoint_auth_method").is_some_and(|method| !is_basic(method)) {
                defaults.remove("client_secret_basic_encoding");
            }
            preset::fill(&mut raw.table, &defaults, &raw.place);
        }
        let section = Section::new(path, &raw, sink);
        let endpoint = endpoint(&section);
        if !section.has("client_id") {
            section.missing::<()>("client_id", "the provider issues it together with the client secret");
        }
        let proxy = section.read("proxy", values::proxy);
        let is_plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.url().scheme() == "http");
        if is_plain && proxy.is_some() {
            // The proxy would read the secret in the request.
            let message = "an http:// endpoint on this host is not reached through a proxy; remove it";
            section.conflict::<()>("proxy", message);
        }
        if proxy.is_some() && daemon.egress_dir.is_some() {
            let message = "contradicts egress_dir, through which every connection goes; remove one of them";
            section.conflict::<()>("proxy", message);
        }
        Self {
            name: Arc::from(name),
            place: raw.place.clone(),
            endpoint,
            client_id: section.read("client_id", values::line),
            authentication: authentication(&section),
            accept: section.read("accept", headers::accept).unwrap_or_else(|| DEFAULT_ACCEPT.to_owned()),
            ca_file: section.read("ca_file", values::ca_file),
            proxy,
            default_lifetime: section.read("default_lifetime", values::lifetime),
            max_requests_per_minute: section
                .read("max_requests_per_minute", |field| values::count(field, 1..=60_000)),
            token_defaults: preset.map(|preset| preset.token.clone()).unwrap_or_default(),
            is_used: Cell::new(false),
        }
    }
}

/// The endpoint of the preset's environment that a provider's section chooses, as keys. Nothing if the section has an
/// endpoint of its own, or if there is none, which is reported.
fn environment<'p>(section: &Section<'_>, preset: Option<&'p Preset>) -> Option<&'p Table> {
    const SET_IT: &str = "set token_endpoint, or issuer for its discovery";
    let has_endpoint = section.has("token_endpoint") || section.has("issuer");
    let Some(preset) = preset else {
        if section.has("environment") && !section.has("preset") {
            return section.conflict("environment", "environments are those of a preset, and none is set");
        }
        return if has_endpoint { None } else { section.missing("token_endpoint", SET_IT) };
    };
    let known = &preset.environments;
    let names = || one_of(known.keys().map(String::as_str));
    let (shown, chosen) = (quoted(&preset.name), section.read("environment", Field::text));
    let keys = match chosen {
        Some(name) if !known.contains_key(name) => {
            let choice =
                if known.is_empty() { "none at all".to_owned() } else { format!("only {}", names()) };
            let hint = did_you_mean(name, known.keys().map(String::as_str));
            let message = format!("the preset {shown} has no {}, {choice}{hint}", quoted(name));
            return section.conflict("environment", message);
        }
        None if section.has("environment") => return None,
        None if !known.contains_key(DEFAULT_ENVIRONMENT) && !known.is_empty() && !has_endpoint => {
            return section.missing("environment", &format!("the preset {shown} has {}", names()));
        }
        chosen => known.get(chosen.unwrap_or(DEFAULT_ENVIRONMENT)).filter(|keys| !keys.is_empty()),
    };
    match keys {
        None if !has_endpoint => {
            let message = format!("the preset {shown} does not know the endpoint: {SET_IT}");
            section.missing("token_endpoint", &message)
        }
        keys => keys.filter(|_| !has_endpoint),
    }
}

/// `token_endpoint` or `issuer`, of a provider or of a preset's environment.
pub(super) fn endpoint(section: &Section<'_>) -> Option<Endpoint> {
    let token_endpoint = section.read("token_endpoint", values::secure_url).map(Endpoint::Token);
    let issuer = section.read("issuer", values::issuer).map(Endpoint::Issuer);
    if token_endpoint.is_some() && issuer.is_some() {
        let other = section.place_of("token_endpoint");
        let message =
            format!("contradicts token_endpoint ({}:{}); keep one of them", other.file.display(), other.line);
        return section.conflict("issuer", message);
    }
    token_endpoint.or(issuer)
}

/// The client authentication. A missing secret is a fault unless the method is `none`: a client without one is rare,
/// and a forgotten secret is not.
fn authentication(section: &Section<'_>) -> Option<ClientAuthentication> {
    let encoding = section.read("client_secret_basic_encoding", encoding);
    let secrets = section.read("client_secret", values::secret_sources);
    let method = section.read("token_endpoint_auth_method", method);
    let method = match method {
        None if section.has("token_endpoint_auth_method") => return None,
        method => method.unwrap_or(Method::SecretBasic),
    };
    if method == Method::None && secrets.is_some() {
        let message =
            "contradicts token_endpoint_auth_method = \"none\"; remove the secret, or choose another method";
        return section.conflict("client_secret", message);
    }
    if method != Method::None && !section.has("client_secret") {
        let message = "say where it is kept, such as { credential = \"NAME\" }, or set \
                       token_endpoint_auth_method = \"none\" for a client without one";
        return section.missing("client_secret", message);
    }
    if method != Method::SecretBasic && encoding.is_some() {
        let message = "has a meaning only with token_endpoint_auth_method = \"client_secret_basic\"";
        return section.conflict("client_secret_basic_encoding", message);
    }
    match method {
        Method::None => Some(ClientAuthentication::None),
        Method::SecretPost => Some(ClientAuthentication::SecretPost { secrets: secrets? }),
        Method::SecretBasic => {
            let encoding = encoding.unwrap_or(BasicEncoding::Form);
            Some(ClientAuthentication::SecretBasic { secrets: secrets?, encoding })
        }
    }
}

/// Whether a preset's `client_secret_basic_encoding` has a meaning with this method.
fn is_basic(method: &Item) -> bool {
    matches!(&method.value, Value::Text(method) if method == "client_secret_basic")
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

//! `[provider.NAME]`: the token endpoint and the client.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::document::{Item, Table, Value};
use super::fault::{Place, one_of, quoted};
use super::preset::{self, Preset};
use super::section::{Field, Section};
use super::{
    BasicEncoding, ClientAuthentication, CredentialSettings, DaemonSettings, Endpoint, Grant, Terms, headers,
    values,
};

/// The environment of a preset unless a section names another.
const DEFAULT_ENVIRONMENT: &str = "production";

/// The lifetime of a token if the reply has none: that of the shortest-lived tokens seen in practice, so that an expired
/// token is hardly ever handed out. It costs a dozen requests in an hour.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// A client authentication method, without its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    SecretBasic,
    SecretPost,
    None,
}

/// Values of `token_endpoint_auth_method`.
pub(super) const METHODS: [(&str, Method); 3] = [
    ("client_secret_basic", Method::SecretBasic),
    ("client_secret_post", Method::SecretPost),
    ("none", Method::None),
];

/// Values of `client_secret_basic_encoding`.
pub(super) const ENCODINGS: [(&str, BasicEncoding); 2] =
    [("form", BasicEncoding::Form), ("raw", BasicEncoding::Raw)];

/// A provider.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) name: Arc<str>,
    /// Its key in faults, as in `provider.psb`, and its place.
    pub(super) path: String,
    pub(super) place: Place,
    /// The settings that its tokens share. The grant, terms and parameters are those of each token. `None` if faulty.
    pub(super) credential: Option<CredentialSettings>,
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
        mut section: Section<'_>,
        presets: &BTreeMap<String, Preset>,
        daemon: &DaemonSettings,
    ) -> Self {
        let preset = section.read("preset", |field| {
            let only = || one_of(presets.keys().map(String::as_str));
            field.find(presets, |name| format!("no preset {}, only {}", quoted(name), only()))
        });
        section.is_incomplete |= section.has("preset") && preset.is_none();
        let environment = environment(&section, preset);
        if let Some(preset) = preset {
            let mut defaults = preset.provider.clone();
            defaults.extend(environment.cloned().unwrap_or_default());
            let is_basic =
                |item: &Item| matches!(&item.value, Value::Text(text) if text == "client_secret_basic");
            if section.table.get("token_endpoint_auth_method").is_some_and(|method| !is_basic(method)) {
                defaults.remove("client_secret_basic_encoding");
            }
            preset::fill(&mut section, &defaults);
        }
        Self {
            name: Arc::from(name),
            credential: credential(&section, daemon),
            max_requests_per_minute: section.read("max_requests_per_minute", values::count(1..=60_000)),
            token_defaults: preset.map(|preset| preset.token.clone()).unwrap_or_default(),
            is_used: Cell::new(false),
            path: section.path,
            place: section.place,
        }
    }
}

/// Reads every key before it gives up, so that every fault is found.
fn credential(section: &Section<'_>, daemon: &DaemonSettings) -> Option<CredentialSettings> {
    let endpoint = endpoint(section);
    section.missing::<()>("client_id", "the provider issues it together with the client secret");
    let client_id = section.read("client_id", values::line);
    let authentication = authentication(section);
    let accept = section.read("accept", headers::accept);
    let ca_file = section.read("ca_file", values::ca_file);
    let default_lifetime = section.read("default_lifetime", values::lifetime);
    let proxy = section.read("proxy", values::proxy);
    if proxy.is_some() && endpoint.as_ref().is_some_and(|endpoint| endpoint.url().scheme() == "http") {
        // The proxy would read the secret in the request.
        let message = "an http:// endpoint on this host is not reached through a proxy; remove the proxy";
        section.conflict::<()>("proxy", message);
    }
    if proxy.is_some() && daemon.egress_dir.is_some() {
        let message = "contradicts egress_dir, through which every connection goes; remove one of them";
        section.conflict::<()>("proxy", message);
    }
    Some(CredentialSettings {
        endpoint: endpoint?,
        client_id: client_id?,
        authentication: authentication?,
        grant: Grant::ClientCredentials,
        terms: Terms::default(),
        params: BTreeMap::new(),
        accept: accept.unwrap_or_else(|| "application/json".to_owned()),
        ca_file,
        proxy,
        default_lifetime: default_lifetime.unwrap_or(DEFAULT_LIFETIME),
    })
}

/// The endpoint keys of the preset's environment that a provider's section chooses. `None` if the section has an endpoint of
/// its own. A provider without any endpoint is reported.
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
    let (shown, names) = (quoted(&preset.name), one_of(known.keys().map(String::as_str)));
    let keys = if section.has("environment") {
        let only = if known.is_empty() { "none at all".to_owned() } else { format!("only {names}") };
        let unknown = |name: &str| format!("the preset {shown} has no {}, {only}", quoted(name));
        section.read("environment", |field: &Field<'_>| field.find(known, unknown))?
    } else if let Some(keys) = known.get(DEFAULT_ENVIRONMENT) {
        keys
    } else if has_endpoint || known.is_empty() {
        const { &Table::new() }
    } else {
        return section.missing("environment", &format!("the preset {shown} has {names}"));
    };
    match (has_endpoint, keys.is_empty()) {
        (true, _) => None,
        (false, false) => Some(keys),
        (false, true) => {
            let message = format!("the preset {shown} does not know the endpoint: {SET_IT}");
            section.missing("token_endpoint", &message)
        }
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
    let encoding = section.read("client_secret_basic_encoding", values::word(&ENCODINGS));
    let secrets = section.read("client_secret", values::secret_sources);
    let mut method = Method::SecretBasic;
    if section.has("token_endpoint_auth_method") {
        method = section.read("token_endpoint_auth_method", values::word(&METHODS))?;
    }
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

//! `[provider.NAME]`: the token endpoint and the client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::fault::{Place, one_of, quoted};
use super::files::Table;
use super::preset::{self, Preset};
use super::section::Section;
use super::{ClientSettings, DaemonSettings, Endpoint, client_authentication, values};

/// The lifetime of a token if the reply has none: that of the shortest-lived tokens seen in practice, so that an expired
/// token is hardly ever handed out. It costs a dozen requests in an hour.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(5 * 60);

pub(super) struct Provider {
    pub(super) name: Arc<str>,
    pub(super) place: Place,
    /// `None` if faulty.
    pub(super) client: Option<Arc<ClientSettings>>,
    pub(super) default_lifetime: Duration,
    pub(super) max_requests_per_minute: Option<u32>,
    /// Defaults of the preset for its tokens.
    pub(super) token_defaults: Table,
}

pub(super) fn read(
    name: &str,
    mut section: Section<'_>,
    presets: &BTreeMap<String, Preset>,
    daemon: &DaemonSettings,
) -> Provider {
    let preset = section.find("preset", presets, |name| {
        let only = one_of(presets.keys());
        format!("no preset {}, only {only}", quoted(name))
    });
    section.may_lack_keys |= section.has("preset") && preset.is_none();
    let environment = environment(&section, preset);
    client_authentication::infer_method(&mut section, preset.map(|preset| &preset.provider));
    if let Some(preset) = preset {
        let mut defaults = preset.provider.clone();
        defaults.extend(environment.cloned().unwrap_or_default());
        client_authentication::drop_unused(&section, &mut defaults);
        preset::fill(&mut section, &defaults);
    }
    Provider {
        name: Arc::from(name),
        client: client(&section, daemon).map(Arc::new),
        default_lifetime: section.read("default_lifetime", values::lifetime).unwrap_or(DEFAULT_LIFETIME),
        max_requests_per_minute: section.read("max_requests_per_minute", values::count(1..=60_000)),
        token_defaults: preset.map(|preset| preset.token.clone()).unwrap_or_default(),
        place: section.place,
    }
}

/// Reads every key before it gives up, so that every fault is found.
fn client(section: &Section<'_>, daemon: &DaemonSettings) -> Option<ClientSettings> {
    let endpoint = endpoint(section);
    section.missing::<()>("client_id", "the provider issues it together with the client secret");
    let client_id = section.read("client_id", values::line);
    let authentication = client_authentication::read(section, endpoint.as_ref());
    let tls = client_authentication::tls(section);
    let accept = section.read("accept", |field| values::header_value(field, "a string"));
    let ca_file = section.read("ca_file", |field| values::readable_path(field, "ca_file"));
    let token_type = section.read("token_type", values::line);
    let proxy = section.read("proxy", values::proxy);
    if proxy.is_some() && endpoint.as_ref().is_some_and(|endpoint| endpoint.url().scheme() == "http") {
        // The proxy would read the secret in the request.
        let message = "an http:// endpoint on this host is not reached through a proxy; remove the proxy";
        section.fault_if_complete::<()>("proxy", message);
    }
    if proxy.is_some() && daemon.egress_dir.is_some() {
        let message = "contradicts egress_dir, through which every connection goes; remove one of them";
        section.fault_if_complete::<()>("proxy", message);
    }
    Some(ClientSettings {
        endpoint: endpoint?,
        client_id: client_id?,
        authentication: authentication?,
        tls,
        accept: accept.unwrap_or_else(|| "application/json".to_owned()),
        ca_file,
        proxy,
        token_type,
    })
}

/// The endpoint keys of the preset's environment that a provider's section chooses. `None` if the section has an endpoint of
/// its own. A provider without any endpoint is reported.
fn environment<'p>(section: &Section<'_>, preset: Option<&'p Preset>) -> Option<&'p Table> {
    const SET_IT: &str = "set token_endpoint, or issuer for its discovery";
    let has_endpoint = section.has("token_endpoint") || section.has("issuer");
    let Some(preset) = preset else {
        if section.has("environment") && !section.has("preset") {
            return section
                .fault_if_complete("environment", "environments are those of a preset, and none is set");
        }
        return if has_endpoint { None } else { section.missing("token_endpoint", SET_IT) };
    };
    let known = &preset.environments;
    let (shown, names) = (quoted(&preset.name), one_of(known.keys()));
    let mut endpoint_keys = known.get("production");
    if section.has("environment") {
        let only = if known.is_empty() { "none at all".to_owned() } else { format!("only {names}") };
        let unknown = |name: &str| format!("the preset {shown} has no {}, {only}", quoted(name));
        endpoint_keys = Some(section.find("environment", known, unknown)?);
    }
    match endpoint_keys {
        _ if has_endpoint => None,
        Some(keys) if !keys.is_empty() => Some(keys),
        None if !known.is_empty() => {
            section.missing("environment", &format!("the preset {shown} has {names}"))
        }
        _ => {
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
        let message = format!("contradicts token_endpoint ({other}); keep one of them");
        return section.fault_if_complete("issuer", message);
    }
    token_endpoint.or(issuer)
}

#![doc = include_str!("../CONFIGURATION.md")]
//!
//! # In this module
//! Reads configuration files into checked settings. [`load`] finds every fault of all files in one go. It reads
//! no secret, except that a check tries private keys, and no fault repeats one that was written into the configuration by mistake.

mod client_authentication;
mod fault;
mod files;
mod grant;
mod host;
mod host_check;
mod ownership;
mod preset;
mod provider;
mod rules;
mod section;
mod settings;
mod token;
mod values;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokend_protocol::TokenName;
use url::{Host, Url};

use crate::access::{Abilities, Condition, Rule};

pub use client_authentication::JWT_BEARER;
use fault::Sink;
pub use fault::{Fault, Place};
pub use host_check::{mismatch, read_certificates, trust_ca_file};
pub use preset::{ShippedPreset, shipped_presets};
use section::Section;
pub use settings::{
    AdminSettings, AssertionAudience, AssertionSettings, BasicEncoding, ClientAuthentication, ClientSettings,
    CredentialSettings, DaemonSettings, Endpoint, Grant, HeaderSettings, HeaderValue, PrivateKeySettings,
    TermKind, TermRules, TermSet, Terms, TlsSettings, TokenExchange, TokenSettings, UserPassword,
    VariantSettings,
};
pub use values::is_field_value;

/// The kinds of sections, each with its header and its keys.
const KINDS: [(&str, &str, &str); 5] = [
    (
        "token",
        "[token.NAME]",
        "provider grant_type scope resource audience params username password assertion subject_token \
         subject_token_type requested_token_type headers caller_headers allow \
         refresh_before default_lifetime scope_required warm idle_timeout variants",
    ),
    (
        "provider",
        "[provider.NAME]",
        "preset environment token_endpoint issuer client_id client_secret token_endpoint_auth_method \
         client_secret_basic_encoding private_key private_key_passphrase private_key_id signing_alg \
         assertion_audience client_certificate client_assertion client_assertion_type ca_file proxy accept token_type default_lifetime max_requests_per_minute",
    ),
    (
        "daemon",
        "[daemon]",
        "socket http_socket credential_socket socket_group state_dir state_key egress_dir \
         max_connections max_connections_per_uid max_in_flight_per_uid max_request_bytes_per_uid max_waiting_per_uid max_watches_per_uid \
         max_watched_tokens_per_uid max_unread_bytes_per_uid \
         max_variants_per_uid max_provider_calls_per_minute_per_uid",
    ),
    ("admin", "[admin]", "allow root"),
    (
        "preset",
        "[preset.NAME]",
        "description documentation environment token_endpoint_auth_method client_secret_basic_encoding signing_alg \
         assertion_audience client_assertion_type accept token_type grant_types scope resource audience params required_params headers caller_headers refresh_before \
         default_lifetime",
    ),
];

/// The files of a configuration, and settings of the command line that replace theirs.
#[derive(Clone, Debug)]
pub struct Source {
    /// The main file. Drop-ins are read from `PATH.d/*.toml`.
    pub path: PathBuf,
    /// Replaces `egress_dir` of `[daemon]`. An empty path means none.
    pub egress_dir: Option<PathBuf>,
}

/// A configuration without faults, and warnings about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub config: Config,
    /// In order of files and lines.
    pub warnings: Vec<Fault>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub daemon: DaemonSettings,
    pub admin: AdminSettings,
    /// Each with the settings of its provider and preset.
    pub tokens: BTreeMap<TokenName, TokenSettings>,
}

impl Config {
    /// The users, groups and executables that rules name, each once.
    pub fn names_in_rules(&self) -> Vec<Condition> {
        let of_terms = self.tokens.values().flat_map(|token| &token.variants.rules);
        let of_terms = of_terms.flat_map(|term| &term.allow);
        let of_tokens = self.tokens.values().flat_map(|token| &token.allow);
        let rules = of_tokens.chain(of_terms).chain(&self.admin.allow);
        rules.flat_map(Rule::to_resolve).collect::<HashSet<_>>().into_iter().cloned().collect()
    }
}

/// Reads the configuration with its drop-ins, or finds every fault in them, in order of files and lines. Warns of rules
/// that this process lacks the abilities for. Asks no name service, so the daemon starts and reloads without one.
pub fn load(source: &Source, abilities: Abilities) -> Result<Loaded, Vec<Fault>> {
    let sink = Sink::default();
    let config = read(source, &files::read(&source.path, &[], &sink), &sink);
    host_check::warn_of_inabilities(abilities, &sink);
    sink.finish(config)
}

/// As [`load`], for `tokend check`: also reports files that this process's user cannot read, and warns of rules that
/// match nobody on this host at present. It may hang as long as the name service or a file system does.
pub fn load_and_look_up(source: &Source, abilities: Abilities) -> Result<Loaded, Vec<Fault>> {
    load_with_drafts(source, &[], abilities)
}

/// As [`load_and_look_up`], as if these files of the configuration were written already.
pub fn load_with_drafts(
    source: &Source,
    drafts: &[(PathBuf, String)],
    abilities: Abilities,
) -> Result<Loaded, Vec<Fault>> {
    let sink = Sink::default();
    let config = read(source, &files::read(&source.path, drafts, &sink), &sink);
    host_check::warn_of_inabilities(abilities, &sink);
    host_check::look_up(&sink);
    sink.finish(config)
}

/// The first section of this provider or token in other files than `own`, or else the first use of this credential there.
pub fn first_conflict(
    source: &Source,
    own: &Path,
    name: &TokenName,
    credential: Option<&str>,
) -> Option<Fault> {
    let sink = Sink::default();
    let mut texts = files::read(&source.path, &[], &sink);
    texts.retain(|(file, _)| **file != *own);
    let sections = files::sections(&texts, &sink);
    let named = ["provider", "token"].iter().find_map(|kind| sections.get(kind)?.get(name.as_str()));
    if let Some(Section { place, path, .. }) = named {
        let message = "the name is in use; remove this section, or choose another name".to_owned();
        return Some(Fault { place: place.clone(), key: path.clone(), message });
    }
    read(source, &texts, &sink);
    let (place, key) = sink.mentions.borrow().get(&("credential", credential?.to_owned()))?.clone();
    let message = "the name of the credential is in use; choose another name for the token".to_owned();
    Some(Fault { place, key, message })
}

/// Reads the configuration in `text`, as if it were in the file `path`.
pub fn parse(path: &Path, text: &str) -> Result<Loaded, Vec<Fault>> {
    let sink = Sink::default();
    let source = Source { path: path.to_owned(), egress_dir: None };
    let config = read(&source, &[(Arc::from(path), text.to_owned())], &sink);
    sink.finish(config)
}

/// Reads all sections. A faulty setting gets a placeholder, because [`Sink::finish`] then refuses the configuration.
fn read(source: &Source, texts: &[(Arc<Path>, String)], sink: &Sink) -> Config {
    let mut sections = files::sections(texts, sink);
    let mut take = |kind: &str| sections.remove(kind).unwrap_or_default();
    let presets = preset::read_all(take("preset"), sink);
    let place = Place { file: Arc::from(source.path.as_path()), line: None, column: None };
    let (path, table) = (String::new(), BTreeMap::new());
    let absent = Section { path, place: place.clone(), table, may_lack_keys: false, sink };
    let mut daemon = host::daemon(take("daemon").get("").unwrap_or(&absent));
    if let Some(path) = &source.egress_dir {
        daemon.egress_dir = Some(path.clone()).filter(|path| !path.as_os_str().is_empty());
    }
    let admin = host::admin(take("admin").get("").unwrap_or(&absent));
    let provider = |(name, section): (String, _)| {
        let provider = provider::read(&name, section, &presets, &daemon);
        (name, provider)
    };
    let providers = take("provider").into_iter().map(provider).collect();
    let tokens = token::read_all(take("token"), &providers, sink);
    if tokens.is_empty() {
        sink.warn(&place, "", "no [token.NAME] section, so there is nothing to hand out");
    }
    Config { daemon, admin, tokens }
}

/// Whether secrets may be sent to a URL: by TLS, or without leaving this host.
pub fn is_secure_endpoint(url: &Url) -> bool {
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback)
}

/// The keys of a kind of section.
fn keys_of(kind: &str) -> impl Iterator<Item = &'static str> {
    let keys = KINDS.into_iter().find(|(other, ..)| *other == kind).map_or("", |(_, _, keys)| keys);
    keys.split_whitespace()
}

/// The header of the kind of section that has a key.
fn home_of(name: &str) -> Option<&'static str> {
    let home = KINDS.into_iter().find(|(kind, ..)| keys_of(kind).any(|key| key == name));
    home.map(|(_, header, _)| header)
}

#[cfg(test)]
mod tests;

#![doc = include_str!("../CONFIGURATION.md")]
//!
//! # In this module
//! What an operator wrote, checked once and then trusted. [`load`] finds every fault of all files in one go. It must
//! never read a secret's value, nor repeat one that was written into the configuration by mistake.

mod document;
mod fault;
mod files;
mod headers;
mod host;
mod mentions;
mod preset;
mod provider;
mod rules;
mod secret;
mod section;
mod settings;
mod syntax;
mod token;
mod url;
mod values;
mod variants;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::url::Url;
use tokend_protocol::TokenName;

use crate::access::{Named, Rule};

use crate::access::Abilities;

use fault::Sink;
pub use fault::{Fault, Faults};
use files::Sections;
use mentions::Asker;
use preset::Presets;
use provider::Provider;
pub use settings::{
    AdminSettings, BasicEncoding, ClientAuthentication, CredentialSettings, DaemonSettings, Endpoint, Grant,
    HeaderSettings, HeaderValue, TermKind, TermRules, TermSet, TokenSettings, VariantSettings,
};
use token::Providers;

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The main file. Drop-ins are read from `PATH.d/*.toml`.
    pub path: PathBuf,
    /// Replaces `egress_dir` of `[daemon]`. An empty path means none.
    pub egress_dir: Option<PathBuf>,
}

/// A configuration that can be used, with what an operator should look at nevertheless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// In order of files and lines.
    pub warnings: Vec<Fault>,
}

/// A whole, checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[daemon]`.
    pub daemon: DaemonSettings,
    /// `[admin]`.
    pub admin: AdminSettings,
    /// `[token.NAME]`, each with what its provider and preset contribute.
    pub tokens: BTreeMap<TokenName, TokenSettings>,
}

impl Config {
    /// The users, groups and executables that rules name, each once.
    pub fn names_in_rules(&self) -> Vec<Named> {
        let of_terms = self.tokens.values().flat_map(|token| &token.variants.rules);
        let of_terms = of_terms.flat_map(|term| &term.allow);
        let of_tokens = self.tokens.values().flat_map(|token| &token.allow);
        let rules = of_tokens.chain(of_terms).chain(&self.admin.allow);
        rules.flat_map(Rule::names).collect::<HashSet<_>>().into_iter().collect()
    }
}

/// Reads a configuration, or finds every fault in them, and warns of rules
/// that this process lacks the abilities for. Reads files and nothing else, so that the daemon starts and reloads
/// whatever the host's name service does.
pub fn load(source: &Source, abilities: Abilities) -> Result<Loaded, Faults> {
    let sink = Sink::default();
    let config = read(source, &sink);
    sink.mentions().warn_of_inabilities(abilities, Asker::Daemon, &sink);
    sink.finish().map(|warnings| Loaded { config, warnings })
}

/// As [`load`], for whoever checks a configuration; with a warning also for each rule that matches nobody on this host
/// as it is. It may hang as long as the host's name service does.
pub fn load_and_look_up(source: &Source, abilities: Abilities) -> Result<Loaded, Faults> {
    let sink = Sink::default();
    let config = read(source, &sink);
    if !sink.has_faults() {
        let mentions = sink.mentions();
        mentions.warn_of_unknown(&sink);
        mentions.warn_of_inabilities(abilities, Asker::of_a_check(), &sink);
    }
    sink.finish().map(|warnings| Loaded { config, warnings })
}

/// Reads the configuration in `text`, as if it were in the file `path`.
pub fn parse(path: &Path, text: &str) -> Result<Loaded, Faults> {
    let sink = Sink::default();
    let mut sections = Sections::default();
    sections.add_text(&Arc::from(path), text, &sink);
    let source = Source { path: path.to_owned(), egress_dir: None };
    let config = check(&sections, &source, &sink);
    sink.finish().map(|warnings| Loaded { config, warnings })
}

fn read(source: &Source, sink: &Sink) -> Config {
    let sections = Sections::read(&source.path, sink);
    check(&sections, source, sink)
}

fn check(sections: &Sections, source: &Source, sink: &Sink) -> Config {
    let presets = Presets::read(&sections.presets, sink);
    let misplaced = token::misplaced(&sections.tokens);
    let read = |(name, raw): (&String, _)| {
        (name.clone(), Provider::read(name, raw, misplaced.get(name.as_str()), &presets, sink))
    };
    let providers = Providers {
        by_name: sections.providers.sections.iter().map(read).collect(),
        some_lost: sections.providers.some_lost,
    };
    let daemon = host::daemon(sections.daemon.as_ref(), source.egress_dir.as_deref(), sink);
    if daemon.egress_dir.is_some() {
        providers.by_name.values().for_each(|provider| provider.refuse_proxy_with_egress(sink));
    }
    let config = Config {
        daemon,
        admin: host::admin(sections.admin.as_ref(), sink),
        tokens: token::read_all(&sections.tokens, &providers, sink),
    };
    if config.tokens.is_empty() {
        sink.warn_of_file(&source.path, "no [token.NAME] section, so there is nothing to hand out");
    }
    config
}

/// Whether secrets may travel to a URL: by TLS, or without leaving this host.
pub fn is_secure_endpoint(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && url::is_loopback(url))
}

/// Whether some section has a key of this name.
fn is_known_key(name: &str) -> bool {
    home_of(name).is_some()
}

/// The section that a key belongs in.
fn home_of(name: &str) -> Option<&'static str> {
    let homes = [
        (token::KEYS, "[token.NAME]"),
        (provider::KEYS, "[provider.NAME]"),
        (host::DAEMON_KEYS, "[daemon]"),
        (host::ADMIN_KEYS, "[admin]"),
        (preset::KEYS, "[preset.NAME]"),
    ];
    homes.into_iter().find(|(keys, _)| keys.contains(&name)).map(|(_, home)| home)
}

#[cfg(test)]
mod tests;

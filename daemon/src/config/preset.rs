//! Presets: what is known of a provider beforehand. A preset is written in the keys of `[provider.NAME]` and
//! `[token.NAME]`, and its keys are added to the tables of those sections before they are read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::document::{Item, Table, Value};
use super::fault::{Place, Sink, did_you_mean, join, one_of, quoted};
use super::files::{Raw, Sections};
use super::section::{Field, Section};
use super::{TermKind, headers, provider, token, values};

const SHIPPED: [(&str, &str); 5] = [
    ("presets/aritma-psd2.toml", include_str!("../../presets/aritma-psd2.toml")),
    ("presets/bnpparibas-cib.toml", include_str!("../../presets/bnpparibas-cib.toml")),
    ("presets/cube-connect.toml", include_str!("../../presets/cube-connect.toml")),
    ("presets/econnect-psb.toml", include_str!("../../presets/econnect-psb.toml")),
    ("presets/partner-api.toml", include_str!("../../presets/partner-api.toml")),
];

/// The defaults of a provider and its tokens.
#[derive(Debug, Default)]
pub(super) struct Preset {
    pub(super) name: String,
    /// The endpoint keys of each environment.
    pub(super) environments: BTreeMap<String, Table>,
    /// Keys of `[provider.NAME]`.
    pub(super) provider: Table,
    /// Keys of `[token.NAME]`, with `grant_types` and `required_params`.
    pub(super) token: Table,
}

/// Presets by name, shipped and configured.
#[derive(Debug)]
pub(super) struct Presets(BTreeMap<String, Preset>);

impl Presets {
    /// Reads the shipped presets, and those of the configuration.
    pub(super) fn read(configured: BTreeMap<String, Raw>, sink: &Sink) -> Self {
        let mut presets = BTreeMap::new();
        for (file, text) in SHIPPED {
            for (name, raw) in Sections::of_text(&Arc::from(Path::new(file)), text, sink).take("preset") {
                presets.insert(name.clone(), Preset::read(name, raw, sink));
            }
        }
        for (name, raw) in configured {
            if presets.contains_key(&name) {
                let message = format!("{} is a shipped preset; give yours another name", quoted(&name));
                sink.fault(&raw.place, &join("preset", &name), message);
            } else {
                presets.insert(name.clone(), Preset::read(name, raw, sink));
            }
        }
        Self(presets)
    }

    /// The preset that `field` names.
    pub(super) fn find(&self, field: &Field<'_>) -> Option<&Preset> {
        let name = field.text()?;
        let found = self.0.get(name);
        if found.is_none() {
            let names = || self.0.keys().map(String::as_str);
            let message = format!(
                "no preset {}, only {}{}",
                quoted(name),
                one_of(names()),
                did_you_mean(name, names())
            );
            field.sink.conflict(&field.item.place, &field.path, message);
        }
        found
    }
}

impl Preset {
    fn read(name: String, raw: Raw, sink: &Sink) -> Self {
        let before = sink.fault_count();
        let section = Section::new(join("preset", &name), &raw, sink);
        section.read("description", values::line);
        section.read("documentation", values::line);
        section.read("token_endpoint_auth_method", provider::method);
        section.read("client_secret_basic_encoding", provider::encoding);
        section.read("accept", headers::accept);
        section.read("grant_types", token::grant_types);
        for kind in TermKind::ALL {
            section.read(kind.as_str(), |field| values::terms(field, kind));
        }
        section.read("params", headers::params);
        section.read("required_params", |field| values::strings(field, values::line));
        section.read("headers", headers::fixed_headers);
        section.read("caller_headers", headers::caller_headers);
        section.read("refresh_before", values::duration);
        section.read("default_lifetime", values::lifetime);
        let environments = section.read("environment", environments).unwrap_or_default();
        if raw.is_incomplete || sink.fault_count() > before {
            // Without its defaults, keys that it fills in would seem to be missing.
            sink.set_incomplete();
            return Self { name, ..Self::default() };
        }
        let is_provider_key =
            |(key, _): &(String, Item)| super::keys_of("provider").any(|other| other == key);
        let (mut provider, token): (Table, Table) = raw.table.into_iter().partition(is_provider_key);
        provider.remove("environment");
        Self { name, environments, provider, token }
    }
}

fn environments(field: &Field<'_>) -> Option<BTreeMap<String, Table>> {
    let tables = field.table("tables such as [preset.NAME.environment.production]")?;
    let environments = values::all(tables.iter().map(|(name, field)| {
        let Value::Table(table) = &field.item.value else { return field.wrong_type("a table") };
        for (key, field) in field.table("a table")? {
            let is_known = matches!(key, "token_endpoint" | "issuer");
            field.ensure(is_known, "unknown key; expected \"token_endpoint\" or \"issuer\"")?;
        }
        let raw = Raw { place: field.item.place.clone(), table: table.clone(), is_incomplete: false };
        provider::endpoint(&Section::new(field.path.clone(), &raw, field.sink));
        Some(((*name).to_owned(), table.clone()))
    }));
    environments.map(BTreeMap::from_iter)
}

/// Adds the keys that `own` lacks, with the place of the operator's section. `params` and `headers` are merged by name.
pub(super) fn fill(own: &mut Table, defaults: &Table, place: &Place) {
    for (key, item) in defaults {
        let merged = match (own.get_mut(key), &item.value) {
            (None, value) => Item { place: place.clone(), value: value.clone() },
            (Some(Item { place, value: Value::Table(own) }), Value::Table(defaults))
                if matches!(key.as_str(), "params" | "headers") =>
            {
                let is_same = |a: &str, b: &str| a == b || (key == "headers" && a.eq_ignore_ascii_case(b));
                let absent = defaults.iter().filter(|(name, _)| !own.keys().any(|own| is_same(own, name)));
                let absent: Vec<_> = absent.map(|(name, item)| (name.clone(), item.clone())).collect();
                let merged = own.clone().into_iter().chain(absent).collect();
                Item { place: place.clone(), value: Value::Table(merged) }
            }
            (Some(_), _) => continue,
        };
        own.insert(key.clone(), merged);
    }
}

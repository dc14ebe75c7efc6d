//! Presets: the documented settings of a provider. A preset is written in the keys of `[provider.NAME]` and
//! `[token.NAME]`, and its keys are added to the tables of those sections before they are read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::fault::{Sink, quoted};
use super::files::{self, Item, Table, Value};
use super::section::{Field, Section};
use super::{client_authentication, grant, keys_of, provider, token, values};

const SHIPPED: [(&str, &str); 5] = [
    ("presets/aritma-psd2.toml", include_str!("../../presets/aritma-psd2.toml")),
    ("presets/bnpparibas-cib.toml", include_str!("../../presets/bnpparibas-cib.toml")),
    ("presets/cube-connect.toml", include_str!("../../presets/cube-connect.toml")),
    ("presets/econnect-psb.toml", include_str!("../../presets/econnect-psb.toml")),
    ("presets/partner-api.toml", include_str!("../../presets/partner-api.toml")),
];

/// The defaults of a provider and its tokens.
#[derive(Default)]
pub(super) struct Preset {
    pub(super) name: String,
    /// The endpoint keys of each environment.
    pub(super) environments: BTreeMap<String, Table>,
    /// Keys of `[provider.NAME]`.
    pub(super) provider: Table,
    /// Keys of `[token.NAME]`, with `grant_types` and `required_params`.
    pub(super) token: Table,
}

/// Reads the shipped presets, and those of the configuration.
pub(super) fn read_all<'a>(
    mut sections: BTreeMap<String, Section<'a>>,
    sink: &'a Sink,
) -> BTreeMap<String, Preset> {
    let shipped = SHIPPED.map(|(file, text)| (Arc::from(Path::new(file)), text.to_owned()));
    let shipped = files::sections(&shipped, sink).remove("preset").unwrap_or_default();
    for (name, section) in sections.iter().filter(|(name, _)| shipped.contains_key(*name)) {
        let message = format!("{} is a shipped preset; give yours another name", quoted(name));
        sink.fault(&section.place, &section.path, message);
    }
    // A shipped preset replaces one of the same name, which is already a fault.
    sections.extend(shipped);
    let read = |(name, section): (String, _)| (name.clone(), read(name, section));
    sections.into_iter().map(read).collect()
}

/// The settings that a shipped preset does not have, and the operator must give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShippedPreset {
    pub needs_endpoint: bool,
    pub required_params: Vec<String>,
}

/// The shipped presets by name.
pub fn shipped_presets() -> BTreeMap<String, ShippedPreset> {
    let presets = read_all(BTreeMap::new(), &Sink::default());
    let shipped = |preset: Preset| ShippedPreset {
        needs_endpoint: preset.environments.get("production").is_none_or(Table::is_empty),
        required_params: match preset.token.get("required_params").map(|item| &item.value) {
            Some(Value::List(names)) => {
                let text =
                    |name: &Item| if let Value::Text(name) = &name.value { Some(name.clone()) } else { None };
                names.iter().filter_map(text).collect()
            }
            _ => Vec::new(),
        },
    };
    presets.into_iter().map(|(name, preset)| (name, shipped(preset))).collect()
}

fn read(name: String, section: Section<'_>) -> Preset {
    let before = section.sink.faults.borrow().len();
    section.read("description", values::line);
    section.read("documentation", values::line);
    section.read("token_endpoint_auth_method", values::word(client_authentication::METHODS));
    section.read("client_secret_basic_encoding", values::word(client_authentication::ENCODINGS));
    section.read("signing_alg", client_authentication::alg);
    section.read("assertion_audience", client_authentication::audience);
    section.read("client_assertion_type", values::line);
    section.read("accept", |field| values::header_value(field, "a string"));
    section.read("token_type", values::line);
    section.read("grant_types", grant::grant_types);
    token::terms(&section);
    section.read("params", values::params);
    section.read("required_params", |field| values::strings(field, values::line));
    section.read("headers", values::headers);
    section.read("caller_headers", values::caller_headers);
    section.read("refresh_before", values::duration);
    section.read("default_lifetime", values::lifetime);
    let environments = section.read("environment", environments).unwrap_or_default();
    if section.may_lack_keys || section.sink.faults.borrow().len() > before {
        // The preset fills in nothing now, so absent keys must not be reported as missing.
        section.sink.is_incomplete.set(true);
        return Preset { name, ..Preset::default() };
    }
    let is_provider_key = |(key, _): &(String, Item)| keys_of("provider").any(|other| other == key);
    let (mut provider, token): (Table, Table) = section.table.into_iter().partition(is_provider_key);
    provider.remove("environment");
    Preset { name, environments, provider, token }
}

fn environments(field: &Field<'_>) -> Option<BTreeMap<String, Table>> {
    let tables = field.table("tables such as [preset.NAME.environment.production]")?;
    let environments = values::all(tables.iter().map(|(name, field)| {
        field.read_table("a table", "key", &["token_endpoint", "issuer"], |_, _| Some(()))?;
        let Value::Table(table) = field.item.value.clone() else { return None };
        let (path, place) = (field.path.clone(), field.item.place.clone());
        let section = Section { path, place, table, may_lack_keys: false, sink: field.sink };
        provider::endpoint(&section);
        Some(((*name).to_owned(), section.table))
    }));
    environments.map(BTreeMap::from_iter)
}

/// Adds the keys that a section lacks, with the place of the section. Tables (`params` and `headers`) are merged by name.
pub(super) fn fill(section: &mut Section<'_>, defaults: &Table) {
    for (key, default) in defaults {
        match (section.table.get_mut(key).map(|item| &mut item.value), &default.value) {
            (None, value) => {
                let item = Item { place: section.place.clone(), value: value.clone() };
                section.table.insert(key.clone(), item);
            }
            (Some(Value::Table(own)), Value::Table(defaults)) => {
                let is_same = |a: &str, b: &str| a == b || (key == "headers" && a.eq_ignore_ascii_case(b));
                let absent = defaults.iter().filter(|(name, _)| !own.keys().any(|own| is_same(own, name)));
                let absent: Vec<_> = absent.map(|(name, item)| (name.clone(), item.clone())).collect();
                own.extend(absent);
            }
            _ => {}
        }
    }
}

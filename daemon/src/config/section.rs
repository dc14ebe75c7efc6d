//! Typed reading of a section. Every reader reports at most one fault for what it is given, and says to its
//! caller whether a value is absent or faulty, so that no fault is followed by a second one about its effects.

use super::document::{Entry, Node, Value};
use super::fault::{Place, Sink, near_miss, quoted, segment};
use super::files::Raw;

/// What became of a key.
#[derive(Clone, Debug)]
pub(super) enum Setting<T> {
    /// It is not there.
    Absent,
    /// It is there (or misspelt), and a fault has been reported.
    Faulty,
    /// It is there and good.
    Set(T, Place),
}

impl<T> Setting<T> {
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    pub(super) fn is_faulty(&self) -> bool {
        matches!(self, Self::Faulty)
    }

    pub(super) fn value(&self) -> Option<&T> {
        match self {
            Self::Set(value, _) => Some(value),
            Self::Absent | Self::Faulty => None,
        }
    }

    pub(super) fn into_value(self) -> Option<T> {
        match self {
            Self::Set(value, _) => Some(value),
            Self::Absent | Self::Faulty => None,
        }
    }

    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::Set(_, place) => Some(place),
            Self::Absent | Self::Faulty => None,
        }
    }

    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Setting<U> {
        match self {
            Self::Set(value, place) => Setting::Set(change(value), place),
            Self::Absent => Setting::Absent,
            Self::Faulty => Setting::Faulty,
        }
    }

    /// This, or `below` where this is absent.
    pub(super) fn or(self, below: Self) -> Self {
        if self.is_absent() { below } else { self }
    }

    /// The value, or `default` where absent; none where faulty.
    pub(super) fn or_default(self, default: impl FnOnce() -> T) -> Option<T> {
        match self {
            Self::Set(value, _) => Some(value),
            Self::Absent => Some(default()),
            Self::Faulty => None,
        }
    }
}

/// A section whose keys are known, so that its unknown keys are reported.
#[derive(Debug)]
pub(super) struct Section<'a> {
    /// As in `token.psb`.
    pub(super) path: String,
    pub(super) place: &'a Place,
    pub(super) sink: &'a Sink,
    raw: &'a Raw,
    /// Known keys that are probably meant by unknown ones, or were written elsewhere.
    excused: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// Looks at the names of the keys, and reports those that are not `known`.
    pub(super) fn new(path: String, raw: &'a Raw, known: &[&'static str], sink: &'a Sink) -> Self {
        let mut section = Self { path, place: &raw.place, sink, raw, excused: Vec::new() };
        for (name, entry) in &raw.entries {
            if !known.contains(&name.as_str()) {
                section.refuse_key(name, entry, known);
            }
        }
        section
    }

    fn refuse_key(&mut self, name: &str, entry: &Entry, known: &[&'static str]) {
        let free = || known.iter().copied().filter(|key| !self.raw.entries.contains_key(*key));
        let meant = near_miss(name, free()).or_else(|| sounds_like(name, free()));
        self.excused.extend(meant);
        if matches!(entry.node.value, Value::Broken) {
            return;
        }
        let meant = meant.or_else(|| near_miss(name, known.iter().copied()));
        let hint = match (meant, super::home_of(name)) {
            (_, Some(home)) => format!("; {} belongs in {home}", quoted(name)),
            (Some(meant), None) => format!("; did you mean {}?", quoted(meant)),
            (None, None) => format!("; the keys here are {}", known.join(", ")),
        };
        self.sink.fault(&entry.place, Some(self.key_path(name)), format!("unknown key{hint}"));
    }

    /// Treats these keys as faulty where they are absent, because a fault elsewhere accounts for them.
    pub(super) fn excuse(&mut self, keys: impl IntoIterator<Item = &'static str>) {
        self.excused.extend(keys);
    }

    /// Whether a key of this name is there, good or bad.
    pub(super) fn has(&self, name: &str) -> bool {
        self.raw.entries.contains_key(name)
    }

    /// Reads a key by a reader that reports what it refuses.
    pub(super) fn read<T>(&self, name: &str, reader: impl FnOnce(&Field<'_>) -> Option<T>) -> Setting<T> {
        let Some(entry) = self.raw.entries.get(name) else {
            return if self.excused.contains(&name) { Setting::Faulty } else { Setting::Absent };
        };
        let field =
            Field { path: self.key_path(name), place: &entry.place, node: &entry.node, sink: self.sink };
        match reader(&field) {
            Some(value) => Setting::Set(value, entry.place.clone()),
            None => Setting::Faulty,
        }
    }

    /// Reports something about a key at a place of its own.
    pub(super) fn fault_at(&self, place: &Place, name: &str, message: impl Into<String>) {
        self.sink.fault(place, Some(self.key_path(name)), message);
    }

    /// Reports that a key is missing, at the section's header.
    pub(super) fn missing(&self, name: &str, message: &str) {
        self.fault_at(self.place, name, format!("missing; {message}"));
    }

    fn key_path(&self, name: &str) -> String {
        format!("{}.{}", self.path, segment(name))
    }
}

/// What other programs call some of the keys.
const OTHER_NAMES: [(&str, &str); 6] = [
    ("token_url", "token_endpoint"),
    ("token_uri", "token_endpoint"),
    ("consumer_key", "client_id"),
    ("consumer_secret", "client_secret"),
    ("auth_style", "token_endpoint_auth_method"),
    ("ttl", "default_lifetime"),
];

/// The key that someone who writes `name` may have in mind, as with `secret` for `client_secret`.
fn sounds_like<'k>(name: &str, keys: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let part = |key: &str| name.len() >= 4 && (key.contains(&name) || name.contains(key));
    keys.filter(|key| part(key) || OTHER_NAMES.contains(&(&name, *key)))
        .min_by_key(|key| strsim::damerau_levenshtein(&name, key))
}

/// A value with what is needed to report a fault in it.
#[derive(Debug)]
pub(super) struct Field<'a> {
    pub(super) path: String,
    pub(super) place: &'a Place,
    node: &'a Node,
    sink: &'a Sink,
}

impl<'a> Field<'a> {
    /// Reports a fault here.
    pub(super) fn fault(&self, message: impl Into<String>) {
        self.sink.fault(self.place, Some(self.path.clone()), message);
    }

    /// Reports that the value is of a wrong type.
    pub(super) fn wrong_type(&self, expected: &str) {
        if !self.is_broken() {
            self.fault(format!("expected {expected}, found {}", self.node.value.type_name()));
        }
    }

    /// Whether the value was reported as a syntax error.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.node.value, Value::Broken)
    }

    /// The text, if it is one. Nothing is reported.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        if let Value::Text(text) = &self.node.value { Some(text) } else { None }
    }

    /// The number, if it is one. Nothing is reported.
    pub(super) fn as_integer(&self) -> Option<i128> {
        if let Value::Integer(number) = self.node.value { Some(number) } else { None }
    }

    /// The items, if it is an array. Nothing is reported.
    pub(super) fn as_list(&self) -> Option<Vec<Field<'a>>> {
        let Value::List(items) = &self.node.value else { return None };
        let field =
            |node: &'a Node| Field { path: self.path.clone(), place: &node.place, node, sink: self.sink };
        Some(items.iter().map(field).collect())
    }

    /// The fields by key, if it is a table. Nothing is reported.
    pub(super) fn as_table(&self) -> Option<Vec<(&'a str, Field<'a>)>> {
        let Value::Table(table) = &self.node.value else { return None };
        let field = |(name, entry): (&'a String, &'a Entry)| {
            let path = format!("{}.{}", self.path, segment(name));
            (name.as_str(), Field { path, place: &entry.place, node: &entry.node, sink: self.sink })
        };
        Some(table.iter().map(field).collect())
    }

    /// The text; anything else is a fault.
    pub(super) fn text(&self) -> Option<&'a str> {
        let text = self.as_text();
        if text.is_none() {
            self.wrong_type("a string");
        }
        text
    }

    /// The fields by key; anything but a table is a fault.
    pub(super) fn table(&self, expected: &str) -> Option<Vec<(&'a str, Field<'a>)>> {
        let table = self.as_table();
        if table.is_none() {
            self.wrong_type(expected);
        }
        table
    }

    /// A table as a section of its own.
    pub(super) fn raw(&self) -> Option<Raw> {
        let Value::Table(entries) = &self.node.value else {
            self.wrong_type("a table");
            return None;
        };
        Some(Raw { place: self.place.clone(), entries: entries.clone() })
    }

    pub(super) fn sink(&self) -> &'a Sink {
        self.sink
    }
}

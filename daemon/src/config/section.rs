//! Typed reading of a section. A reader that finds a fault reports it and returns `None`, and its caller goes on with a
//! default: a configuration with a fault is never used. So every fault is found in one go.

use std::collections::BTreeMap;

use super::fault::{Place, Sink, did_you_mean, join, one_of};
use super::files::{Item, Table, Value};
use super::values;

/// A section, with its keys from all files.
pub(super) struct Section<'a> {
    /// As in `token.psb`.
    pub(super) path: String,
    /// Where it first appears.
    pub(super) place: Place,
    pub(super) table: Table,
    /// Whether a reported fault may explain why keys are missing.
    pub(super) may_lack_keys: bool,
    pub(super) sink: &'a Sink,
}

impl Section<'_> {
    /// Whether a key is there, good or bad.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Reads a key. `None` if it is absent, or if it is faulty, which is then reported.
    pub(super) fn read<T>(&self, key: &str, reader: impl FnOnce(&Field<'_>) -> Option<T>) -> Option<T> {
        reader(&Field { path: join(&self.path, key), item: self.table.get(key)?, sink: self.sink })
    }

    /// Reads a key that has a default. `None` if it is faulty, which is then reported.
    pub(super) fn read_or<T>(
        &self,
        key: &str,
        default: T,
        reader: impl FnOnce(&Field<'_>) -> Option<T>,
    ) -> Option<T> {
        if self.has(key) { self.read(key, reader) } else { Some(default) }
    }

    /// The value that a key names. Without one, `unknown` describes the fault.
    pub(super) fn find<'m, T>(
        &self,
        key: &str,
        known: &'m BTreeMap<String, T>,
        unknown: impl FnOnce(&str) -> String,
    ) -> Option<&'m T> {
        self.read(key, |field| {
            let name = field.text()?;
            known
                .get(name)
                .or_else(|| self.fault_if_complete(key, unknown(name) + &did_you_mean(name, known.keys())))
        })
    }

    /// Reports a fault, unless an unread part of the configuration may be its cause: at the key, or else at the section.
    pub(super) fn fault_if_complete<T>(&self, key: &str, message: impl Into<String>) -> Option<T> {
        self.sink.fault_if_complete(self.place_of(key), &join(&self.path, key), message);
        None
    }

    /// Reports a key that is missing, unless an unknown key may be a misspelling of it.
    pub(super) fn missing<T>(&self, key: &str, message: &str) -> Option<T> {
        if !self.has(key) && !self.may_lack_keys && !self.sink.misplaced.borrow().contains(key) {
            self.fault_if_complete::<T>(key, format!("missing; {message}"));
        }
        None
    }

    /// Where a key is; the section if it is absent.
    pub(super) fn place_of(&self, key: &str) -> &Place {
        self.table.get(key).map_or(&self.place, |item| &item.place)
    }
}

/// A value with what is needed to report a fault in it.
pub(super) struct Field<'a> {
    pub(super) path: String,
    pub(super) item: &'a Item,
    pub(super) sink: &'a Sink,
}

impl<'a> Field<'a> {
    /// Reports a fault here, which leaves no value.
    pub(super) fn fault<T>(&self, message: impl Into<String>) -> Option<T> {
        self.sink.fault(&self.item.place, &self.path, message);
        None
    }

    /// Reports a fault here unless `holds`.
    pub(super) fn ensure(&self, holds: bool, message: impl Into<String>) -> Option<()> {
        if holds { Some(()) } else { self.fault(message) }
    }

    pub(super) fn warn(&self, message: impl Into<String>) {
        self.sink.warn(&self.item.place, &self.path, message);
    }

    /// Remembers a name or path for the checks that need the host, with the place where it is first mentioned.
    pub(super) fn mention(&self, kind: &'static str, value: &str) {
        let place = || (self.item.place.clone(), self.path.clone());
        self.sink.mentions.borrow_mut().entry((kind, value.to_owned())).or_insert_with(place);
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self.item.value, Value::Text(_))
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.item.value, Value::Table(_))
    }

    pub(super) fn wrong_type<T>(&self, expected: &str) -> Option<T> {
        self.fault(format!("expected {expected}, found {}", self.item.value.type_name()))
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        self.text_or("a string")
    }

    /// The text; anything else is a fault that says what was expected.
    pub(super) fn text_or(&self, expected: &str) -> Option<&'a str> {
        if let Value::Text(text) = &self.item.value { Some(text) } else { self.wrong_type(expected) }
    }

    pub(super) fn list(&self, expected: &str) -> Option<Vec<Field<'a>>> {
        let Value::List(items) = &self.item.value else { return self.wrong_type(expected) };
        let field = |item| Field { path: self.path.clone(), item, sink: self.sink };
        Some(items.iter().map(field).collect())
    }

    pub(super) fn table(&self, expected: &str) -> Option<Vec<(&'a str, Field<'a>)>> {
        let Value::Table(table) = &self.item.value else { return self.wrong_type(expected) };
        let field = |(name, item): (&'a String, &'a Item)| {
            (name.as_str(), Field { path: join(&self.path, name), item, sink: self.sink })
        };
        Some(table.iter().map(field).collect())
    }

    /// Reads every field of a table that has only `known` keys. `what` is the word for a key.
    pub(super) fn read_table<T>(
        &self,
        expected: &str,
        what: &str,
        known: &[&str],
        mut reader: impl FnMut(&'a str, &Field<'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        values::all(self.table(expected)?.iter().map(|(name, field)| {
            if known.contains(name) {
                return reader(name, field);
            }
            let (expected, hint) = (one_of(known), did_you_mean(name, known));
            field.fault(format!("unknown {what}; expected {expected}{hint}"))
        }))
    }
}

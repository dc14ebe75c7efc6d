//! Typed reading of a section. A reader reports the fault of a value and then returns nothing; the caller goes on with
//! a default, because a configuration with a fault is never used. So every fault is found in one go.

use super::document::{Item, Table, Value};
use super::fault::{Place, Sink, join};
use super::files::Raw;

/// A section whose keys are known.
#[derive(Debug)]
pub(super) struct Section<'a> {
    /// As in `token.psb`.
    pub(super) path: String,
    pub(super) place: &'a Place,
    pub(super) sink: &'a Sink,
    table: &'a Table,
    is_incomplete: bool,
}

impl<'a> Section<'a> {
    pub(super) fn new(path: String, raw: &'a Raw, sink: &'a Sink) -> Self {
        Self { path, place: &raw.place, sink, table: &raw.table, is_incomplete: raw.is_incomplete }
    }

    /// Whether a key is there, good or bad.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Reads a key. Nothing where it is absent, or faulty and reported.
    pub(super) fn read<T>(&self, key: &str, reader: impl FnOnce(&Field<'a>) -> Option<T>) -> Option<T> {
        let item = self.table.get(key)?;
        reader(&Field { path: join(&self.path, key), item, sink: self.sink })
    }

    /// Reports that a key contradicts another, or something that is absent: at the key, or else at the section.
    pub(super) fn conflict<T>(&self, key: &str, message: impl Into<String>) -> Option<T> {
        self.sink.conflict(self.place_of(key), &join(&self.path, key), message);
        None
    }

    /// Reports that a key is missing, unless an unknown key may be the one.
    pub(super) fn missing<T>(&self, key: &str, message: &str) -> Option<T> {
        if !self.is_incomplete && !self.sink.misplaced().borrow().contains(key) {
            self.conflict::<T>(key, format!("missing; {message}"));
        }
        None
    }

    pub(super) fn warn(&self, key: &str, message: impl Into<String>) {
        self.sink.warn(self.place_of(key), &join(&self.path, key), message);
    }

    /// Where a key is; the section if it is absent.
    pub(super) fn place_of(&self, key: &str) -> &'a Place {
        self.table.get(key).map_or(self.place, |item| &item.place)
    }
}

/// A value with what is needed to report a fault in it.
#[derive(Debug)]
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

    /// Remembers a name or path for the checks that need the host.
    pub(super) fn mention(&self, kind: &'static str, value: &str) {
        self.sink.mention((kind, value.to_owned()), &self.item.place, &self.path);
    }

    /// Reports that the value is of a wrong type.
    pub(super) fn wrong_type<T>(&self, expected: &str) -> Option<T> {
        self.fault(format!("expected {expected}, found {}", self.item.value.type_name()))
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self.item.value, Value::Text(_))
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.item.value, Value::Table(_))
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        self.text_or("a string")
    }

    /// The text; anything else is a fault that says what was expected.
    pub(super) fn text_or(&self, expected: &str) -> Option<&'a str> {
        if let Value::Text(text) = &self.item.value { Some(text) } else { self.wrong_type(expected) }
    }

    /// The items of an array; anything else is a fault.
    pub(super) fn list(&self, expected: &str) -> Option<Vec<Field<'a>>> {
        let Value::List(items) = &self.item.value else { return self.wrong_type(expected) };
        let field = |item| Field { path: self.path.clone(), item, sink: self.sink };
        Some(items.iter().map(field).collect())
    }

    /// The fields of a table by key; anything else is a fault.
    pub(super) fn table(&self, expected: &str) -> Option<Vec<(&'a str, Field<'a>)>> {
        let Value::Table(table) = &self.item.value else { return self.wrong_type(expected) };
        let field = |(name, item): (&'a String, &'a Item)| {
            (name.as_str(), Field { path: join(&self.path, name), item, sink: self.sink })
        };
        Some(table.iter().map(field).collect())
    }
}

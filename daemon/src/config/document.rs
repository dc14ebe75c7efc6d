//! One file as a tree in which every value has its place.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Place, Sink};

/// A table, by key.
pub(super) type Table = BTreeMap<String, Item>;

/// A value with the place of its key, or with its own place if it is an item of an array.
#[derive(Clone, PartialEq)]
pub(super) struct Item {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A value.
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    /// Capped at the largest number that fits.
    Integer(i128),
    List(Vec<Item>),
    Table(Table),
    /// A value of a type that no key accepts. The text names the type, as in "a float".
    Other(&'static str),
}

impl Value {
    /// The type with its article, for "expected .., found ..".
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::List(_) => "an array",
            Self::Table(_) => "a table",
            Self::Other(name) => name,
        }
    }
}

/// Parses `text`, or reports its first syntax error: the parser may find more, but those are often its consequences.
/// Messages of the parser are fixed texts without any of the file.
pub(super) fn parse(file: &Arc<Path>, text: &str, sink: &Sink) -> Table {
    let after_newlines = text.match_indices('\n').map(|(index, _)| index + 1);
    let line_starts: Vec<usize> = std::iter::once(0).chain(after_newlines).collect();
    let place = |offset: usize| {
        let line = line_starts.partition_point(|start| *start <= offset);
        Place { file: Arc::clone(file), line: Some(line), column: None }
    };
    let error = match DeTable::parse(text) {
        Ok(root) => return table(root.get_ref(), &place),
        Err(error) => error,
    };
    let span = error.span().unwrap_or_default();
    let before = text.get(..span.start).filter(|before| before.len() < text.trim_end().len());
    let before = before.unwrap_or(text.trim_end());
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    let key = text.get(span).filter(|key| super::home_of(key).is_some()).unwrap_or_default();
    let place = Place { column: Some(column), ..place(before.len()) };
    sink.unreadable(&place, key, format!("syntax error: {}", error.message()));
    Table::new()
}

fn table(table: &DeTable<'_>, place: &dyn Fn(usize) -> Place) -> Table {
    let items = table.iter();
    items.map(|(key, value)| (key.get_ref().to_string(), item(key.span().start, value, place))).collect()
}

fn item(offset: usize, value: &Spanned<DeValue<'_>>, place: &dyn Fn(usize) -> Place) -> Item {
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => {
            Value::Integer(i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX))
        }
        DeValue::Float(_) => Value::Other("a float"),
        DeValue::Boolean(_) => Value::Other("a boolean"),
        DeValue::Datetime(_) => Value::Other("a date or time"),
        DeValue::Array(items) => {
            Value::List(items.iter().map(|value| item(value.span().start, value, place)).collect())
        }
        DeValue::Table(values) => Value::Table(table(values, place)),
    };
    Item { place: place(offset), value }
}

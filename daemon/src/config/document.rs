//! One file as a tree in which every key and value knows its place, so that faults found long after parsing
//! still name their line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Place, Sink, segment};
use super::syntax;

/// A table, by key.
pub(super) type Table = BTreeMap<String, Entry>;

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where the key is.
    pub(super) place: Place,
    pub(super) node: Node,
}

/// A value with its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    /// The greatest that fits, where it is greater.
    Integer(i128),
    Float,
    Boolean,
    Time,
    List(Vec<Node>),
    Table(Table),
    /// A syntax error was reported here. Nothing more is to be said about it.
    Broken,
}

impl Value {
    /// The type with its article, for "expected .., found ..".
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float => "a float",
            Self::Boolean => "a boolean",
            Self::Time => "a date or time",
            Self::List(_) => "an array",
            Self::Table(_) => "a table",
            Self::Broken => "a syntax error",
        }
    }
}

/// A parsed file.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) root: Table,
    /// Whether a section's header could not be read, so that any name may be defined here after all.
    pub(super) lost_sections: bool,
}

/// Parses `text`, and reports every syntax error in it.
pub(super) fn parse(file: &Arc<Path>, text: &str, sink: &Sink) -> Document {
    let healed = syntax::heal(text);
    let (root, _) = DeTable::parse_recoverable(&healed.text);
    let mut reader = Reader {
        file,
        line_starts: syntax::line_starts(&healed.text),
        broken: healed.broken.iter().map(|broken| broken.statement).collect(),
        names: BTreeMap::new(),
    };
    let mut root = reader.table(root.get_ref(), "");
    root.retain(|_, entry| !healed.lost_headers.contains(&entry.place.line));
    for broken in &healed.broken {
        let place = Place { file: Arc::clone(file), line: broken.line };
        sink.fault(&place, reader.names.remove(&broken.statement), broken.message.as_str());
    }
    for duplicate in &healed.duplicates {
        let place = Place { file: Arc::clone(file), line: duplicate.line };
        sink.fault(&place, Some(duplicate.key.clone()), duplicate.message.as_str());
    }
    Document { root, lost_sections: healed.incomplete || !healed.lost_headers.is_empty() }
}

struct Reader<'a> {
    file: &'a Arc<Path>,
    line_starts: Vec<usize>,
    broken: BTreeSet<usize>,
    /// The keys of broken statements, by line.
    names: BTreeMap<usize, String>,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, path: &str) -> Table {
        table.iter().map(|(key, value)| self.entry(key, value, path)).collect()
    }

    fn entry(
        &mut self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        path: &str,
    ) -> (String, Entry) {
        let name = key.get_ref().as_ref();
        let place = self.place(key.span().start);
        let path = if path.is_empty() { segment(name) } else { format!("{path}.{}", segment(name)) };
        let node = match value.get_ref() {
            // A table on a line that was broken is a section whose header was put right.
            DeValue::Table(_) => self.node(value, &path),
            _ if self.broken.contains(&place.line) => {
                // What stands before the fault may be a part of a secret, unless it is a key that is known.
                if super::is_known_key(name) {
                    self.names.insert(place.line, path);
                }
                Node { place: place.clone(), value: Value::Broken }
            }
            _ => self.node(value, &path),
        };
        (name.to_owned(), Entry { place, node })
    }

    fn node(&mut self, value: &Spanned<DeValue<'_>>, path: &str) -> Node {
        let place = self.place(value.span().start);
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.clone().into_owned()),
            DeValue::Integer(number) => {
                Value::Integer(i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX))
            }
            DeValue::Float(_) => Value::Float,
            DeValue::Boolean(_) => Value::Boolean,
            DeValue::Datetime(_) => Value::Time,
            DeValue::Array(items) => Value::List(items.iter().map(|item| self.node(item, path)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table, path)),
        };
        Node { place, value }
    }

    fn place(&self, offset: usize) -> Place {
        Place { file: Arc::clone(self.file), line: syntax::line_at(&self.line_starts, offset) }
    }
}

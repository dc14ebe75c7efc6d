//! The files of a configuration as trees, and the sections they make together: a drop-in replaces single keys of the files
//! before it, and every value remembers its file and line.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use tokend_protocol::TokenName;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Place, Sink, did_you_mean, join, quoted};
use super::ownership::warn_of_others;
use super::section::Section;
use super::{KINDS, home_of, keys_of};

/// The largest file that is read: tens of thousands of tokens, or all certificates of the world.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// The sections of all files, by kind and name. `[daemon]` and `[admin]` have an empty name.
pub(super) type Sections<'a> = BTreeMap<&'static str, BTreeMap<String, Section<'a>>>;

pub(super) type Table = BTreeMap<String, Item>;

/// A value with the place of its key, or with its own place if it is an item of an array.
#[derive(Clone, PartialEq)]
pub(super) struct Item {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    /// Capped at the largest number that fits.
    Integer(i128),
    Boolean(bool),
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
            Self::Boolean(_) => "a boolean",
            Self::List(_) => "an array",
            Self::Table(_) => "a table",
            Self::Other(name) => name,
        }
    }
}

/// The sections that the files make together. Of a key in several files the last one counts, as a whole.
pub(super) fn sections<'a>(texts: &[(Arc<Path>, String)], sink: &'a Sink) -> Sections<'a> {
    let mut sections = Sections::new();
    let items = texts.iter().flat_map(|(file, text)| parse(file, text, sink));
    for (name, item) in items {
        let Some((kind, header, _)) = KINDS.into_iter().find(|(kind, ..)| *kind == name) else {
            let is_table = matches!(item.value, Value::Table(_) | Value::List(_));
            let (what, home) = if is_table { ("section", None) } else { ("key", home_of(&name)) };
            let all = format!("the sections are {}", KINDS.map(|(_, header, _)| header).join(", "));
            let remedy = remedy(&name, home, KINDS.map(|(kind, ..)| kind), &all);
            sink.unreadable(&item.place, &join("", &name), format!("unknown {what}{remedy}"));
            continue;
        };
        let items = match item.value {
            Value::Table(named) if header.ends_with(".NAME]") => {
                named.into_iter().map(|(name, item)| (join(kind, &name), name, item)).collect()
            }
            _ => vec![(name, String::new(), item)],
        };
        for (path, name, Item { place, value }) in items {
            let Value::Table(table) = value else {
                let table = if path == kind { "" } else { "a table, as in " };
                let message = format!("expected {table}{header}, found {}", value.type_name());
                sink.unreadable(&place, &path, message);
                continue;
            };
            match sections.entry(kind).or_default().entry(name) {
                Entry::Occupied(section) => {
                    let section = section.into_mut();
                    warn_of_lost_rules(section, &table);
                    section.table.extend(table);
                }
                Entry::Vacant(entry) => {
                    entry.insert(Section { path, place, table, may_lack_keys: false, sink });
                }
            }
        }
    }
    for (kind, sections) in &mut sections {
        for (name, section) in sections {
            check_names(kind, name, section);
        }
    }
    sections
}

/// Warns of a drop-in whose list `allow` leaves out rules of the list that it replaces: their callers would be refused.
fn warn_of_lost_rules(section: &Section<'_>, drop_in: &Table) {
    let (Some(before), Some(now)) = (section.table.get("allow"), drop_in.get("allow")) else { return };
    let (Value::List(before_rules), Value::List(rules)) = (&before.value, &now.value) else { return };
    let is_kept = |rule: &&Item| rules.iter().any(|other| is_same(&rule.value, &other.value));
    let lost = before_rules.len() - before_rules.iter().filter(is_kept).count();
    if lost > 0 {
        let message = format!(
            "replaces the list of {}, and {lost} of its rules {} in force no longer; repeat them here, or add to that list",
            before.place,
            if lost == 1 { "is" } else { "are" }
        );
        section.sink.warn(&now.place, &join(&section.path, "allow"), message);
    }
}

/// Whether two values are equal, wherever they are.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Table(one), Value::Table(other)) => {
            one.len() == other.len()
                && one.iter().zip(other).all(|((key, item), (other_key, other))| {
                    key == other_key && is_same(&item.value, &other.value)
                })
        }
        (Value::List(one), Value::List(other)) => {
            one.len() == other.len()
                && one.iter().zip(other).all(|(item, other)| is_same(&item.value, &other.value))
        }
        _ => one == other,
    }
}

/// Reports unknown keys, and a name that nothing can have.
fn check_names(kind: &str, name: &str, section: &mut Section<'_>) {
    if section.path != kind && name.parse::<TokenName>().is_err() {
        let message = format!(
            "{} cannot be the name of a {kind}; expected 1 to 255 letters, digits and . _ - @ : +, beginning with a \
             letter or a digit",
            quoted(name)
        );
        section.sink.fault(&section.place, &section.path, message);
    }
    for (key, item) in section.table.iter().filter(|(key, _)| keys_of(kind).all(|known| known != *key)) {
        let home = home_of(key);
        if home.is_some() {
            section.sink.misplaced.borrow_mut().insert(key.clone());
        }
        let all = format!("the keys here are {}", keys_of(kind).collect::<Vec<_>>().join(", "));
        let message = format!("unknown key{}", remedy(key, home, keys_of(kind), &all));
        section.sink.fault(&item.place, &join(&section.path, key), message);
        section.may_lack_keys = true;
    }
}

/// How to mend an unknown key or section: the section that has it, the one that was probably meant, or `all` of them.
fn remedy(
    name: &str,
    home: Option<&str>,
    known: impl IntoIterator<Item = &'static str>,
    all: &str,
) -> String {
    let hint = did_you_mean(name, known);
    match home {
        Some(home) => format!("; {} belongs in {home}", quoted(name)),
        None if hint.is_empty() => format!("; {all}"),
        None => hint,
    }
}

/// Reads a file and its drop-ins: `FILE.d/*.toml` in byte order of the names, without hidden files.
/// The drafts are read as if they were in their places already.
pub(super) fn read(path: &Path, drafts: &[(PathBuf, String)], sink: &Sink) -> Vec<(Arc<Path>, String)> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    warn_of_others(&directory, sink);
    let listed = directory.read_dir().and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = listed.unwrap_or_else(|error: io::Error| {
        if error.kind() != io::ErrorKind::NotFound {
            let place = Place { file: Arc::from(directory), line: None, column: None };
            sink.unreadable(&place, "", format!("cannot list the drop-ins: {error}"));
        }
        Vec::new()
    });
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
    paths.retain(|path| !is_hidden(path) && path.extension() == Some(OsStr::new("toml")));
    paths.extend(drafts.iter().map(|(draft, _)| draft.clone()).filter(|draft| draft != path));
    paths.sort_unstable();
    paths.dedup();
    paths.insert(0, path.to_owned());
    let files = paths.into_iter().map(Arc::<Path>::from);
    let text = |file: Arc<Path>| {
        if let Some((_, draft)) = drafts.iter().find(|(draft, _)| **draft == *file) {
            return Some((file, draft.clone()));
        }
        warn_of_others(&file, sink);
        Some((Arc::clone(&file), read_text(&file, sink)?))
    };
    files.filter_map(text).collect()
}

/// The content of a regular file. Never waits for a pipe, and never reads a device.
pub(super) fn content(path: &Path) -> io::Result<Vec<u8>> {
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    if file.take(FILE_MAX + 1).read_to_end(&mut content)? as u64 > FILE_MAX {
        return Err(io::Error::other(format!("has more than {FILE_MAX} bytes")));
    }
    Ok(content)
}

fn read_text(file: &Arc<Path>, sink: &Sink) -> Option<String> {
    let place = Place { file: Arc::clone(file), line: None, column: None };
    let bytes = content(file)
        .map_err(|error| sink.unreadable(&place, "", format!("cannot be read: {error}")))
        .ok()?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = valid.filter(|byte| **byte == b'\n').count() + 1;
        let place = Place { line: Some(line), ..place };
        sink.unreadable(&place, "", "not UTF-8; a configuration is written in UTF-8");
    });
    text.ok()
}

/// Parses `text`, or reports its first syntax error: the parser may find more, but those are often its consequences.
/// Messages of the parser are fixed texts without any of the file.
fn parse(file: &Arc<Path>, text: &str, sink: &Sink) -> Table {
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
    let key = text.get(span).filter(|key| home_of(key).is_some()).unwrap_or_default();
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
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(_) => Value::Other("a date or time"),
        DeValue::Array(items) => {
            Value::List(items.iter().map(|value| item(value.span().start, value, place)).collect())
        }
        DeValue::Table(values) => Value::Table(table(values, place)),
    };
    Item { place: place(offset), value }
}

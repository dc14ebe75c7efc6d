//! The files of a configuration, and the sections they make together: a drop-in replaces single keys of the files
//! before it, and every key remembers its file and line.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokend_protocol::TokenName;

use super::document::{self, Item, Value};
use super::fault::{Place, Sink, join, near_miss, quoted};
use super::section::Section;
use super::{KINDS, home_of, keys_of};

/// The sections of all files, by kind and name. `[daemon]` and `[admin]` have an empty name.
pub(super) type Sections<'a> = BTreeMap<&'static str, BTreeMap<String, Section<'a>>>;

/// A file with its text.
pub(super) type Text = (Arc<Path>, String);

/// The sections that the files make together. Of a key in several files the last one counts.
pub(super) fn sections<'a>(texts: &[Text], sink: &'a Sink) -> Sections<'a> {
    let mut sections = Sections::new();
    for (file, text) in texts {
        for (name, item) in document::parse(file, text, sink).unwrap_or_default() {
            match (KINDS.into_iter().find(|(kind, ..)| *kind == name), item) {
                (None, item) => refuse_section(&name, &item, sink),
                (Some((kind, header, _)), Item { value: Value::Table(named), .. })
                    if header.ends_with(".NAME]") =>
                {
                    for (name, item) in named {
                        let (path, expected) = (join(kind, &name), format!("a table, as in {header}"));
                        add(sections.entry(kind).or_default(), name, path, item, &expected, sink);
                    }
                }
                (Some((kind, header, _)), item) => {
                    add(sections.entry(kind).or_default(), String::new(), name, item, header, sink);
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

/// Adds keys to a section; later ones replace earlier ones, each as a whole.
fn add<'a>(
    sections: &mut BTreeMap<String, Section<'a>>,
    name: String,
    path: String,
    item: Item,
    expected: &str,
    sink: &'a Sink,
) {
    if let Value::Table(table) = item.value {
        let new = || Section::new(path, item.place, BTreeMap::new(), sink);
        sections.entry(name).or_insert_with(new).table.extend(table);
    } else {
        let found = item.value.type_name();
        sink.fault(&item.place, &path, format!("expected {expected}, found {found}"));
        sink.is_incomplete.set(true);
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
        let message = unknown_key(kind, key, section);
        section.sink.fault(&item.place, &join(&section.path, key), message);
        section.is_incomplete = true;
    }
}

fn refuse_section(name: &str, item: &Item, sink: &Sink) {
    let is_table = matches!(item.value, Value::Table(_) | Value::List(_));
    let hint = match (near_miss(name, KINDS.map(|(kind, ..)| kind)), home_of(name)) {
        (_, Some((_, home))) if !is_table => format!("; {} belongs in {home}", quoted(name)),
        (Some(meant), _) => format!("; did you mean {}?", quoted(meant)),
        _ => format!("; the sections are {}", KINDS.map(|(_, header, _)| header).join(", ")),
    };
    let kind = if is_table { "section" } else { "key" };
    sink.fault(&item.place, &join("", name), format!("unknown {kind}{hint}"));
    sink.is_incomplete.set(true);
}

fn unknown_key(kind: &str, name: &str, section: &Section<'_>) -> String {
    if let Some((key, home)) = home_of(name) {
        section.sink.misplaced.borrow_mut().insert(key);
        return format!("unknown key; {} belongs in {home}", quoted(name));
    }
    let meant = near_miss(name, keys_of(kind).filter(|key| !section.has(key)));
    match meant.or_else(|| near_miss(name, keys_of(kind))) {
        Some(meant) => format!("unknown key; did you mean {}?", quoted(meant)),
        None => format!("unknown key; the keys here are {}", keys_of(kind).collect::<Vec<_>>().join(", ")),
    }
}

/// Reads a file and its drop-ins: `FILE.d/*.toml` in byte order of the names, without hidden files.
pub(super) fn read(path: &Path, sink: &Sink) -> Vec<Text> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let listed = Path::new(&directory)
        .read_dir()
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>());
    let mut paths = listed.unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            let place = Place { file: Arc::from(Path::new(&directory)), line: 0 };
            sink.fault(&place, "", format!("cannot list the drop-ins: {error}"));
            sink.is_incomplete.set(true);
        }
        Vec::new()
    });
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
    paths.retain(|path| !is_hidden(path) && path.extension() == Some(OsStr::new("toml")));
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    paths.insert(0, path.to_owned());
    let files = paths.into_iter().map(Arc::<Path>::from);
    let texts: Vec<_> = files.map(|file| (file.clone(), read_text(&file, sink))).collect();
    if texts.iter().any(|(_, text)| text.is_none()) {
        sink.is_incomplete.set(true);
    }
    texts.into_iter().filter_map(|(file, text)| Some((file, text?))).collect()
}

fn read_text(file: &Arc<Path>, sink: &Sink) -> Option<String> {
    let place = |line| Place { file: Arc::clone(file), line };
    let read = std::fs::read(file).map_err(|error| {
        sink.fault(&place(0), "", format!("cannot be read: {error}"));
    });
    let bytes = read.ok()?;
    // A user who can write the configuration can have client secrets sent anywhere.
    let mode = std::fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode()) & 0o7777;
    if mode & 0o022 != 0 {
        let message = format!(
            "users other than its owner can write this file (mode {mode:04o}) and so send secrets anywhere; \
             chmod go-w {}",
            file.display()
        );
        sink.warn(&place(0), "", message);
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = valid.filter(|byte| **byte == b'\n').count() + 1;
        sink.fault(&place(line), "", "not UTF-8; a configuration is written in UTF-8");
    });
    text.ok()
}

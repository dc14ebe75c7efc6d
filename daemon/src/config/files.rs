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

use super::document::{self, Item, Table, Value};
use super::fault::{Place, Sink, join, near_miss, quoted};
use super::{KINDS, keys_of};

/// The sections of all files, by kind and name. `[daemon]` and `[admin]` have an empty name.
#[derive(Debug, Default)]
pub(super) struct Sections(BTreeMap<&'static str, BTreeMap<String, Raw>>);

/// A section before its values are read.
#[derive(Debug)]
pub(super) struct Raw {
    /// Where it first appears.
    pub(super) place: Place,
    pub(super) table: Table,
    /// Whether a reported fault may explain why keys are missing.
    pub(super) is_incomplete: bool,
}

impl Sections {
    /// Reads `path` and its drop-ins.
    pub(super) fn read(path: &Path, sink: &Sink) -> Self {
        let mut sections = Self::default();
        for path in std::iter::once(path.to_owned()).chain(drop_ins(path, sink)) {
            let file: Arc<Path> = Arc::from(path);
            match read_text(&file, sink) {
                Some(text) => sections.add_text(&file, &text, sink),
                None => sink.set_incomplete(),
            }
        }
        sections.check_names(sink);
        sections
    }

    /// Reads `text` as the only file.
    pub(super) fn of_text(file: &Arc<Path>, text: &str, sink: &Sink) -> Self {
        let mut sections = Self::default();
        sections.add_text(file, text, sink);
        sections.check_names(sink);
        sections
    }

    /// The sections of a kind, which can be taken once.
    pub(super) fn take(&mut self, kind: &str) -> BTreeMap<String, Raw> {
        self.0.remove(kind).unwrap_or_default()
    }

    fn add_text(&mut self, file: &Arc<Path>, text: &str, sink: &Sink) {
        for (name, item) in document::parse(file, text, sink).unwrap_or_default() {
            let Some((kind, header, _)) = KINDS.into_iter().find(|(kind, ..)| *kind == name) else {
                refuse_section(&name, &item, sink);
                continue;
            };
            match item.value {
                Value::Table(sections) if header.ends_with(".NAME]") => {
                    for (name, item) in sections {
                        match item.value {
                            Value::Table(table) => self.add(kind, name, item.place, table),
                            _ => wrong_section(
                                &item,
                                &join(kind, &name),
                                &format!("a table, as in {header}"),
                                sink,
                            ),
                        }
                    }
                }
                Value::Table(table) => self.add(kind, String::new(), item.place, table),
                _ => wrong_section(&item, kind, header, sink),
            }
        }
    }

    /// Adds keys to a section; later ones replace earlier ones, each as a whole.
    fn add(&mut self, kind: &'static str, name: String, place: Place, table: Table) {
        let section = self.0.entry(kind).or_default().entry(name);
        let section = section.or_insert_with(|| Raw { place, table: Table::new(), is_incomplete: false });
        section.table.extend(table);
    }

    /// Reports unknown keys, and names that nothing can have.
    fn check_names(&mut self, sink: &Sink) {
        for (kind, ..) in KINDS {
            for (name, raw) in self.0.get_mut(kind).into_iter().flatten() {
                let is_single = name.is_empty() && matches!(kind, "daemon" | "admin");
                let path = if is_single { kind.to_owned() } else { join(kind, name) };
                if !is_single && name.parse::<TokenName>().is_err() {
                    let message = format!(
                        "{} cannot be the name of a {kind}; expected 1 to 255 letters, digits and . _ - @ : +, \
                         beginning with a letter or a digit",
                        quoted(name)
                    );
                    sink.fault(&raw.place, &path, message);
                }
                let is_unknown = |key: &str| keys_of(kind).all(|other| other != key);
                for (key, item) in raw.table.iter().filter(|(key, _)| is_unknown(key)) {
                    sink.fault(&item.place, &join(&path, key), unknown_key(kind, key, &raw.table, sink));
                    raw.is_incomplete = true;
                }
            }
        }
    }
}

fn refuse_section(name: &str, item: &Item, sink: &Sink) {
    let is_table = matches!(item.value, Value::Table(_) | Value::List(_));
    let hint = match (near_miss(name, KINDS.map(|(kind, ..)| kind)), super::home_of(name)) {
        (_, Some((_, home))) if !is_table => format!("; {} belongs in {home}", quoted(name)),
        (Some(meant), _) => format!("; did you mean {}?", quoted(meant)),
        _ => format!("; the sections are {}", KINDS.map(|(_, header, _)| header).join(", ")),
    };
    let kind = if is_table { "section" } else { "key" };
    sink.fault(&item.place, &join("", name), format!("unknown {kind}{hint}"));
    sink.set_incomplete();
}

fn wrong_section(item: &Item, key: &str, expected: &str, sink: &Sink) {
    sink.fault(&item.place, key, format!("expected {expected}, found {}", item.value.type_name()));
    sink.set_incomplete();
}

fn unknown_key(kind: &str, name: &str, table: &Table, sink: &Sink) -> String {
    if let Some((key, home)) = super::home_of(name) {
        sink.misplaced().borrow_mut().insert(key);
        return format!("unknown key; {} belongs in {home}", quoted(name));
    }
    let meant = near_miss(name, keys_of(kind).filter(|key| !table.contains_key(*key)));
    match meant.or_else(|| near_miss(name, keys_of(kind))) {
        Some(meant) => format!("unknown key; did you mean {}?", quoted(meant)),
        None => format!("unknown key; the keys here are {}", keys_of(kind).collect::<Vec<_>>().join(", ")),
    }
}

/// `FILE.d/*.toml` in byte order of the names, without hidden files. There need not be any.
fn drop_ins(path: &Path, sink: &Sink) -> Vec<PathBuf> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let listed = Path::new(&directory)
        .read_dir()
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>());
    let mut paths = match listed {
        Ok(paths) => paths,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let place = Place { file: Arc::from(Path::new(&directory)), line: 0 };
            sink.fault(&place, "", format!("cannot list the drop-ins: {error}"));
            sink.set_incomplete();
            Vec::new()
        }
    };
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
    paths.retain(|path| !is_hidden(path) && path.extension() == Some(OsStr::new("toml")));
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    paths
}

fn read_text(file: &Arc<Path>, sink: &Sink) -> Option<String> {
    let place = |line| Place { file: Arc::clone(file), line };
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            sink.fault(&place(0), "", format!("cannot be read: {error}"));
            return None;
        }
    };
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
    String::from_utf8(bytes)
        .map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
            sink.fault(&place(line), "", "not UTF-8; a configuration is written in UTF-8");
        })
        .ok()
}

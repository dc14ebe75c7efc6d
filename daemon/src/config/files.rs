//! The files of a configuration, and the sections they make together: a drop-in replaces single keys of the
//! file before it, and every key remembers which file and line it is from.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::document::{self, Document, Entry, Node, Table, Value};
use super::fault::{Place, Sink, near_miss, quoted, segment};

/// The sections of all files.
#[derive(Debug, Default)]
pub(super) struct Sections {
    pub(super) daemon: Option<Raw>,
    pub(super) admin: Option<Raw>,
    pub(super) providers: Named,
    pub(super) tokens: Named,
    pub(super) presets: Named,
}

/// The sections of one kind, as `[token.NAME]`.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) sections: BTreeMap<String, Raw>,
    /// Whether a fault that is reported already may have hidden some of them.
    pub(super) some_lost: bool,
}

/// A section before it is read.
#[derive(Debug)]
pub(super) struct Raw {
    /// Where it first appears.
    pub(super) place: Place,
    pub(super) entries: Table,
}

const SECTIONS: [&str; 5] = ["daemon", "admin", "provider", "token", "preset"];

impl Sections {
    /// Reads `path` and its drop-ins.
    pub(super) fn read(path: &Path, sink: &Sink) -> Self {
        let mut sections = Self::default();
        sections.add_file(path, sink);
        for path in drop_ins(path, sink) {
            sections.add_file(&path, sink);
        }
        sections
    }

    fn add_file(&mut self, path: &Path, sink: &Sink) {
        let file: Arc<Path> = Arc::from(path);
        match read_text(&file, sink) {
            Some(text) => self.add_text(&file, &text, sink),
            None => self.lose_all(),
        }
    }

    /// Adds what `text` says, over what is there.
    pub(super) fn add_text(&mut self, file: &Arc<Path>, text: &str, sink: &Sink) {
        let Document { root, lost_sections } = document::parse(file, text, sink);
        if lost_sections {
            self.lose_all();
        }
        for (name, entry) in root {
            self.add_section(&name, entry, sink);
        }
    }

    fn add_section(&mut self, name: &str, entry: Entry, sink: &Sink) {
        match name {
            "daemon" => add_single(&mut self.daemon, name, entry, sink),
            "admin" => add_single(&mut self.admin, name, entry, sink),
            "provider" => self.providers.add(name, entry, sink),
            "token" => self.tokens.add(name, entry, sink),
            "preset" => self.presets.add(name, entry, sink),
            _ => self.refuse_section(name, &entry, sink),
        }
    }

    fn refuse_section(&mut self, name: &str, entry: &Entry, sink: &Sink) {
        if matches!(entry.node.value, Value::Broken) {
            return;
        }
        let is_table = matches!(entry.node.value, Value::Table(_) | Value::List(_));
        let hint = match (near_miss(name, SECTIONS), super::home_of(name)) {
            (_, Some(home)) if !is_table => format!("; {} belongs in {home}", quoted(name)),
            (Some(meant), _) => {
                self.lose(meant);
                format!("; did you mean {}?", quoted(meant))
            }
            _ => "; the sections are [daemon], [admin], [provider.NAME], [token.NAME] and [preset.NAME]"
                .to_owned(),
        };
        let kind = if is_table { "section" } else { "key" };
        sink.fault(&entry.place, Some(segment(name)), format!("unknown {kind}{hint}"));
    }

    fn lose(&mut self, section: &str) {
        match section {
            "provider" => self.providers.some_lost = true,
            "token" => self.tokens.some_lost = true,
            "preset" => self.presets.some_lost = true,
            _ => (),
        }
    }

    fn lose_all(&mut self) {
        for section in SECTIONS {
            self.lose(section);
        }
    }
}

impl Named {
    fn add(&mut self, kind: &str, entry: Entry, sink: &Sink) {
        let Value::Table(named) = entry.node.value else {
            self.some_lost = true;
            return wrong_section(&entry.node, &entry.place, kind, &format!("[{kind}.NAME]"), sink);
        };
        let mut without_name = None;
        for (name, entry) in named {
            match entry.node.value {
                Value::Table(entries) => {
                    let raw = self.sections.entry(name);
                    merge(raw.or_insert_with(|| Raw::at(entry.place)), entries);
                }
                _ if without_name.is_some() => (),
                _ => without_name = Some((name, entry)),
            }
        }
        if let Some((name, entry)) = without_name {
            self.some_lost = true;
            let key = format!("{kind}.{}", segment(&name));
            let place = entry.place;
            wrong_section(&entry.node, &place, &key, &format!("a table, as in [{kind}.NAME]"), sink);
        }
    }
}

impl Raw {
    /// Whether only `[KIND.NAME.TABLE]` is there, not `[KIND.NAME]` itself.
    pub(super) fn is_headless(&self) -> bool {
        self.entries.values().all(|entry| matches!(entry.node.value, Value::Table(_)))
    }

    fn at(place: Place) -> Self {
        Self { place, entries: Table::new() }
    }
}

fn add_single(section: &mut Option<Raw>, name: &str, entry: Entry, sink: &Sink) {
    match entry.node.value {
        Value::Table(entries) => merge(section.get_or_insert_with(|| Raw::at(entry.place)), entries),
        _ => wrong_section(&entry.node, &entry.place, name, &format!("[{name}]"), sink),
    }
}

fn wrong_section(node: &Node, place: &Place, key: &str, expected: &str, sink: &Sink) {
    if !matches!(node.value, Value::Broken) {
        let message = format!("expected {expected}, found {}", node.value.type_name());
        sink.fault(place, Some(key.to_owned()), message);
    }
}

fn merge(section: &mut Raw, entries: Table) {
    section.entries.extend(entries);
}

/// `FILE.d/*.toml` in byte order of the names. There need not be any.
fn drop_ins(path: &Path, sink: &Sink) -> Vec<PathBuf> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    match list(&directory) {
        Ok(paths) => paths,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let place = Place { file: Arc::from(directory), line: 0 };
            sink.fault(&place, None, format!("cannot list the drop-ins: {error}"));
            Vec::new()
        }
    }
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
        if !hidden && path.extension() == Some(OsStr::new("toml")) {
            paths.push(path);
        }
    }
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(paths)
}

fn read_text(file: &Arc<Path>, sink: &Sink) -> Option<String> {
    let place = |line| Place { file: Arc::clone(file), line };
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            sink.fault(&place(0), None, format!("cannot be read: {error}"));
            return None;
        }
    };
    warn_if_others_write(file, sink);
    String::from_utf8(bytes)
        .map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
            sink.fault(&place(line), None, "not UTF-8; a configuration is written in UTF-8");
        })
        .ok()
}

/// Whoever writes the configuration decides where client secrets are sent.
fn warn_if_others_write(file: &Arc<Path>, sink: &Sink) {
    let mode = std::fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o022 != 0 {
        let message = format!(
            "users other than its owner can write this file (mode {:04o}) and so send secrets anywhere; \
             chmod go-w {}",
            mode & 0o7777,
            file.display()
        );
        sink.warn(&Place { file: Arc::clone(file), line: 0 }, None, message);
    }
}

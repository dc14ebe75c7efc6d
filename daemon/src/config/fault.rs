//! Faults and warnings, each with its place. None repeats the value of a key that may hold a secret, the value of an
//! unknown key, or a line of the file.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One fault of a configuration, or one warning about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1; none if the fault is about the whole file.
    pub line: Option<usize>,
    /// The column of a syntax error, counted from 1.
    pub column: Option<usize>,
    /// The dotted key, as in `token.psb.scope`; none if the fault belongs to no key.
    pub key: Option<String>,
    /// The problem, and how to mend it.
    pub message: String,
}

impl Fault {
    fn new(place: &Place, column: Option<usize>, key: &str, message: String) -> Self {
        let key = (!key.is_empty()).then(|| key.to_owned());
        let line = (place.line > 0).then_some(place.line);
        Self { file: place.file.to_path_buf(), line, column, key, message }
    }
}

/// `FILE:LINE:COLUMN: KEY: MESSAGE`, without the parts that are not known.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        for number in self.line.iter().chain(&self.column) {
            write!(f, "{number}:")?;
        }
        if let Some(key) = &self.key {
            write!(f, " {key}:")?;
        }
        write!(f, " {}", self.message)
    }
}

/// All faults of a configuration, at least one, in order of files and lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// The faults in order.
    pub fn as_slice(&self) -> &[Fault] {
        &self.0
    }
}

/// One line for each fault.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Faults {}

/// The file and line of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Arc<Path>,
    /// Counted from 1; 0 is the whole file.
    pub(super) line: usize,
}

/// A name or path that has to be checked on the host: the key of a rule's condition (or `file`, `ca_file`) and its value.
pub(super) type Mention = (&'static str, String);

/// Collects faults and warnings while the configuration is read.
#[derive(Debug, Default)]
pub(super) struct Sink {
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
    /// Whether a part of the configuration could not be read, so that absent keys may be in that part.
    pub(super) is_incomplete: Cell<bool>,
    /// Keys that were reported as written into a wrong section, so they are not missing.
    pub(super) misplaced: RefCell<BTreeSet<&'static str>>,
    /// Each with the place and key where it is first mentioned.
    pub(super) mentions: RefCell<BTreeMap<Mention, (Place, String)>>,
}

impl Sink {
    /// Reports a fault of a single key or file.
    pub(super) fn fault(&self, place: &Place, key: &str, message: impl Into<String>) {
        self.faults.borrow_mut().push(Fault::new(place, None, key, message.into()));
    }

    /// Reports a syntax error, with the key if it is known, and marks the configuration as incomplete.
    pub(super) fn syntax_error(&self, place: &Place, column: usize, key: &str, message: &str) {
        let message = format!("syntax error: {message}");
        self.faults.borrow_mut().push(Fault::new(place, Some(column), key, message));
        self.is_incomplete.set(true);
    }

    /// Reports a key that is missing or contradicts another, unless the part that could not be read may explain it.
    pub(super) fn conflict(&self, place: &Place, key: &str, message: impl Into<String>) {
        if !self.is_incomplete.get() {
            self.fault(place, key, message);
        }
    }

    pub(super) fn warn(&self, place: &Place, key: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Fault::new(place, None, key, message.into()));
    }

    pub(super) fn fault_count(&self) -> usize {
        self.faults.borrow().len()
    }

    /// The warnings if there are no faults; otherwise the faults.
    pub(super) fn finish(self) -> Result<Vec<Fault>, Faults> {
        let (mut faults, mut warnings) = (self.faults.into_inner(), self.warnings.into_inner());
        for found in [&mut faults, &mut warnings] {
            // Drop-ins are read in order of their names and after the main file, so paths sort as they are read.
            found.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        }
        if faults.is_empty() { Ok(warnings) } else { Err(Faults(faults)) }
    }
}

/// A text of the operator's within a message: quoted, on one line, and not too long.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN_MAX: usize = 64;
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// A dotted key with one more part: bare if TOML allows that, otherwise quoted.
pub(super) fn join(path: &str, name: &str) -> String {
    let bare = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let name = if bare && (1..=64).contains(&name.len()) { name.to_owned() } else { quoted(name) };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

/// `"a", "b" or "c"`.
pub(super) fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(quoted).collect();
    match names.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// The candidate that was probably meant by `name`.
pub(super) fn near_miss<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let name = plain(name);
    let distance = |candidate| strsim::damerau_levenshtein(&name, &plain(candidate));
    let near = candidates.into_iter().map(|candidate| (distance(candidate), candidate));
    let nearest = near.min_by_key(|(distance, _)| *distance)?;
    (nearest.0 <= (name.len() / 3).max(1)).then_some(nearest.1)
}

/// `; did you mean "x"?` or nothing.
pub(super) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    near_miss(name, candidates).map(|meant| format!("; did you mean {}?", quoted(meant))).unwrap_or_default()
}

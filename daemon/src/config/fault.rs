//! Faults and warnings, each with its place. None repeats the value of a key that may hold a secret, the value of an
//! unknown key, or a line of the file.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Config, Loaded};
use crate::signing_key::SigningAlg;

/// The file and line of a key, or the place of a syntax error.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: Arc<Path>,
    /// Counted from 1. `None` is the whole file.
    pub line: Option<usize>,
    /// Counted from 1. Only syntax errors have it.
    pub column: Option<usize>,
}

/// One fault of a configuration, or one warning about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub place: Place,
    /// The dotted key, as in `token.psb.scope`. Empty if the fault belongs to no key.
    pub key: String,
    /// The problem, and how to mend it.
    pub message: String,
}

/// `FILE:LINE:COLUMN`, without the parts that are not known.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        self.line.iter().chain(&self.column).try_for_each(|number| write!(f, ":{number}"))
    }
}

/// `PLACE: KEY: MESSAGE`, without the key if there is none.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.key.is_empty() { "" } else { ": " };
        write!(f, "{}: {}{separator}{}", self.place, self.key, self.message)
    }
}

/// A name or path that depends on the host: the key of a rule's condition (or `file`, `ca_file`, `credential`) and its value.
type Mention = (&'static str, String);

/// Collects faults and warnings while the configuration is read.
#[derive(Default)]
pub(super) struct Sink {
    pub(super) faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
    /// Whether a part of the configuration could not be read, so that absent keys may be in that part.
    pub(super) is_incomplete: Cell<bool>,
    /// Keys that were reported as written into a wrong section, so they are not missing.
    pub(super) misplaced: RefCell<BTreeSet<String>>,
    /// Each with the place and key where it is first mentioned.
    pub(super) mentions: RefCell<BTreeMap<Mention, (Place, String)>>,
    /// Each with its place and key.
    pub(super) private_keys: RefCell<Vec<(Place, String, PrivateKeyFile)>>,
}

/// A private key that has to be checked on the host.
pub(super) struct PrivateKeyFile {
    pub(super) file: PathBuf,
    pub(super) alg: Option<SigningAlg>,
    pub(super) has_passphrase: bool,
    /// The file with its certificate.
    pub(super) certificate: Option<PathBuf>,
}

impl Sink {
    pub(super) fn fault(&self, place: &Place, key: &str, message: impl Into<String>) {
        let fault = Fault { place: place.clone(), key: key.to_owned(), message: message.into() };
        self.faults.borrow_mut().push(fault);
    }

    /// Reports a fault that leaves a part of the configuration unread.
    pub(super) fn unreadable(&self, place: &Place, key: &str, message: impl Into<String>) {
        self.fault(place, key, message);
        self.is_incomplete.set(true);
    }

    /// Reports a fault, unless an unread part of the configuration may be its cause.
    pub(super) fn fault_if_complete(&self, place: &Place, key: &str, message: impl Into<String>) {
        if !self.is_incomplete.get() {
            self.fault(place, key, message);
        }
    }

    pub(super) fn warn(&self, place: &Place, key: &str, message: impl Into<String>) {
        let warning = Fault { place: place.clone(), key: key.to_owned(), message: message.into() };
        self.warnings.borrow_mut().push(warning);
    }

    /// The configuration with the warnings if there are no faults; otherwise the faults.
    pub(super) fn finish(self, config: Config) -> Result<Loaded, Vec<Fault>> {
        let (mut faults, mut warnings) = (self.faults.into_inner(), self.warnings.into_inner());
        for found in [&mut faults, &mut warnings] {
            // Drop-ins are read in order of their names and after the main file, so paths sort as they are read.
            found.sort_by(|a, b| a.place.cmp(&b.place));
            // The ways to two files have folders in common.
            found.dedup();
        }
        if faults.is_empty() { Ok(Loaded { config, warnings }) } else { Err(faults) }
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
pub(super) fn one_of(names: impl IntoIterator<Item: AsRef<str>>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| quoted(name.as_ref())).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// `; did you mean "x"?` if `name` resembles a candidate, or nothing.
pub(super) fn did_you_mean(name: &str, candidates: impl IntoIterator<Item: AsRef<str>>) -> String {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let name = plain(name);
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name, &plain(candidate));
    let near = candidates.into_iter().map(|candidate| (distance(candidate.as_ref()), candidate));
    let nearest = near.min_by_key(|(distance, _)| *distance);
    let meant = nearest.filter(|(distance, _)| *distance <= (name.len() / 3).max(1));
    meant.map(|(_, meant)| format!("; did you mean {}?", quoted(meant.as_ref()))).unwrap_or_default()
}

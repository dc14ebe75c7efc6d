//! What is wrong with a configuration, and where. A fault never repeats a secret: not the value of a key
//! that holds one, not that of an unknown key, and no line of the file.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::mentions::{Mention, Mentions};

/// One thing that an operator has to put right (or, as a warning, should look at).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file it is in.
    pub file: PathBuf,
    /// The line it is on, counted from 1; none where the file as a whole is meant.
    pub line: Option<usize>,
    /// The dotted key, as in `token.psb.scope`; none where the fault belongs to no key.
    pub key: Option<String>,
    /// What was found, what was expected, what to do next.
    pub message: String,
}

/// `FILE:LINE: KEY: MESSAGE`, without the parts that are not known.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
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

/// One line for each.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Arc<Path>,
    /// Counted from 1; 0 is the file as a whole.
    pub(super) line: usize,
}

/// Collects faults and warnings while the configuration is read.
#[derive(Debug, Default)]
pub(super) struct Sink {
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
    mentions: RefCell<Mentions>,
}

impl Sink {
    pub(super) fn fault(&self, place: &Place, key: Option<String>, message: impl Into<String>) {
        self.faults.borrow_mut().push(located(place, key, message.into()));
    }

    pub(super) fn warn(&self, place: &Place, key: Option<String>, message: impl Into<String>) {
        self.warnings.borrow_mut().push(located(place, key, message.into()));
    }

    pub(super) fn warn_of_file(&self, file: &Path, message: &str) {
        self.warn(&Place { file: Arc::from(file), line: 0 }, None, message);
    }

    /// Remembers where something is first mentioned.
    pub(super) fn mention(&self, mention: Mention, place: &Place, key: &str) {
        self.mentions.borrow_mut().note(mention, place, key);
    }

    /// All that was mentioned.
    pub(super) fn mentions(&self) -> Mentions {
        self.mentions.take()
    }

    pub(super) fn has_faults(&self) -> bool {
        !self.faults.borrow().is_empty()
    }

    /// The warnings, where there are no faults; otherwise the faults.
    pub(super) fn finish(self) -> Result<Vec<Fault>, Faults> {
        let faults = in_order(self.faults.into_inner());
        if faults.is_empty() { Ok(in_order(self.warnings.into_inner())) } else { Err(Faults(faults)) }
    }
}

fn located(place: &Place, key: Option<String>, message: String) -> Fault {
    let line = Some(place.line).filter(|line| *line > 0);
    Fault { file: place.file.to_path_buf(), line, key, message }
}

/// Drop-ins are read in order of their names and after the main file, so paths sort as they are read.
fn in_order(mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    faults
}

/// A text of the operator's within a message: quoted, on one line, and not too long.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN_MAX: usize = 64;
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// A part of a dotted key: bare where TOML would allow it so, otherwise quoted.
pub(super) fn segment(name: &str) -> String {
    let bare = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if bare && (1..=64).contains(&name.len()) { name.to_owned() } else { quoted(name) }
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
    let allowed = (name.len() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean "x"?` or nothing.
pub(super) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    near_miss(name, candidates).map(|meant| format!("; did you mean {}?", quoted(meant))).unwrap_or_default()
}

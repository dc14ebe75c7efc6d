//! What is wrong with a configuration, and where. A fault never repeats a secret: not the value of a key
//! that holds one, not that of an unknown key, and no line of the file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Group, User};

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
    principals: RefCell<BTreeMap<(PrincipalKind, String), (Place, String)>>,
    executables: RefCell<BTreeMap<PathBuf, (Place, String)>>,
}

/// Which of the host's data bases a name is looked up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PrincipalKind {
    User,
    Group,
}

impl fmt::Display for PrincipalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Group => "group",
        })
    }
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

    /// Remembers where a user or group is first named, so that it need be looked up only once.
    pub(super) fn mention(&self, place: &Place, key: &str, kind: PrincipalKind, name: &str) {
        let mut principals = self.principals.borrow_mut();
        principals.entry((kind, name.to_owned())).or_insert_with(|| (place.clone(), key.to_owned()));
    }

    /// Remembers where an executable is first named.
    pub(super) fn mention_exe(&self, place: &Place, key: &str, path: &Path) {
        let mut executables = self.executables.borrow_mut();
        executables.entry(path.to_owned()).or_insert_with(|| (place.clone(), key.to_owned()));
    }

    /// Warns of executables that are called otherwise on this host: the kernel follows links before it names one.
    pub(super) fn warn_of_links(&self) {
        for (path, (place, key)) in self.executables.take() {
            let Some(target) = path.canonicalize().ok().filter(|target| *target != path) else { continue };
            let (path, target) = (quoted(&path.to_string_lossy()), quoted(&target.to_string_lossy()));
            let message = format!(
                "{path} leads over a symbolic link to {target}, and by that name alone it is known; write that"
            );
            self.warn(&place, Some(key), message);
        }
    }

    /// Warns of users and groups that this host does not know. It may get to know them yet, so this is no fault.
    /// Asks the name service about each, which may take long.
    pub(super) fn warn_of_unknown_principals(&self) {
        for ((kind, name), (place, key)) in self.principals.take() {
            let known = match kind {
                PrincipalKind::User => User::from_name(&name).map(|user| user.is_some()),
                PrincipalKind::Group => Group::from_name(&name).map(|group| group.is_some()),
            };
            if known == Ok(false) {
                let message = format!("this host has no {kind} {} at present", quoted(&name));
                self.warn(&place, Some(key), message);
            }
        }
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

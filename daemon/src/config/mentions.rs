//! What rules mention that the host must know, or that the daemon must be able to find out about callers: else they
//! match nobody, which is no fault but worth a warning.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User, geteuid};

use super::fault::{Place, Sink, quoted};
use crate::access::Abilities;

/// What was mentioned, each with where it first was.
#[derive(Debug, Default)]
pub(super) struct Mentions(BTreeMap<Mention, (Place, String)>);

/// What a rule mentions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mention {
    /// A user or a group by its name.
    Name(PrincipalKind, String),
    /// Any user or group.
    Principal,
    /// Any unit.
    Unit,
    /// An executable.
    Executable(PathBuf),
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

/// Whose abilities count for what the daemon will find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// This process is the daemon, or a command in the sandbox of its unit.
    Daemon,
    /// This is a command of root's, which sees more than the daemon.
    Root,
}

impl Asker {
    /// Who reads a configuration only to check it.
    pub(super) fn of_a_check() -> Self {
        if geteuid().is_root() { Self::Root } else { Self::Daemon }
    }
}

impl Mentions {
    pub(super) fn note(&mut self, mention: Mention, place: &Place, key: &str) {
        self.0.entry(mention).or_insert_with(|| (place.clone(), key.to_owned()));
    }

    /// Warns of users and groups that this host does not know, and of executables that it knows by another name. It
    /// may come to know them yet. Asks the name service about each, which may take long.
    pub(super) fn warn_of_unknown(&self, sink: &Sink) {
        for (mention, (place, key)) in &self.0 {
            let message = match mention {
                Mention::Name(kind, name) => unknown(*kind, name),
                Mention::Executable(path) => led_elsewhere(path),
                Mention::Principal | Mention::Unit => None,
            };
            if let Some(message) = message {
                sink.warn(place, Some(key.clone()), message);
            }
        }
    }

    /// Warns, once each, of kinds of rules that need what cannot be found out about callers.
    pub(super) fn warn_of_inabilities(&self, abilities: Abilities, asker: Asker, sink: &Sink) {
        let first = |is_meant: fn(&Mention) -> bool| {
            let meant = self.0.iter().filter(|(mention, _)| is_meant(mention)).map(|(_, first)| first);
            meant.min_by_key(|(place, _)| (place.file.clone(), place.line))
        };
        let warn = |first: Option<&(Place, String)>, message: &str| {
            if let Some((place, key)) = first {
                sink.warn(place, Some(key.clone()), message);
            }
        };
        if !abilities.users {
            warn(first(|mention| *mention == Mention::Principal), USERS);
        }
        if !abilities.units {
            warn(first(|mention| *mention == Mention::Unit), UNITS);
        }
        let executable = || first(|mention| matches!(mention, Mention::Executable(_)));
        match asker {
            Asker::Daemon if abilities.executables => (),
            Asker::Daemon => warn(executable(), EXECUTABLES),
            Asker::Root => warn(executable(), EXECUTABLES_FOR_ROOT),
        }
    }
}

const USERS: &str = "the daemon cannot tell users and groups apart, so no rule with one matches; its unit must not \
                     have PrivateUsers=yes";

const UNITS: &str = "the daemon cannot tell in which units callers run, so no rule with one matches; its unit \
                     must not have ProtectProc=invisible, and systemd must use the unified hierarchy of control groups";

const EXECUTABLES: &str = "the daemon cannot see the executables of other users' processes, so no rule with one \
                           matches them; it takes AmbientCapabilities=CAP_SYS_PTRACE and \
                           CapabilityBoundingSet=CAP_SYS_PTRACE in a drop-in of its unit";

const EXECUTABLES_FOR_ROOT: &str = "matches only where the daemon may see the executables of other users' processes: \
                                    with AmbientCapabilities=CAP_SYS_PTRACE and CapabilityBoundingSet=CAP_SYS_PTRACE \
                                    in a drop-in of its unit";

fn unknown(kind: PrincipalKind, name: &str) -> Option<String> {
    let known = match kind {
        PrincipalKind::User => User::from_name(name).map(|user| user.is_some()),
        PrincipalKind::Group => Group::from_name(name).map(|group| group.is_some()),
    };
    (known == Ok(false)).then(|| format!("this host has no {kind} {} at present", quoted(name)))
}

/// The kernel follows links before it names an executable.
fn led_elsewhere(path: &Path) -> Option<String> {
    let target = path.canonicalize().ok().filter(|target| *target != path)?;
    let (path, target) = (quoted(&path.to_string_lossy()), quoted(&target.to_string_lossy()));
    Some(format!(
        "{path} leads over a symbolic link to {target}, and by that name alone it is known; write that"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const ABLE: Abilities = Abilities { users: true, units: true, executables: true };

    /// What is warned of, with its line.
    fn warned(abilities: Abilities, asker: Asker) -> Vec<(Option<usize>, String)> {
        let mut mentions = Mentions::default();
        let place = |line| Place { file: Arc::from(Path::new("/f")), line };
        mentions.note(Mention::Executable("/b".into()), &place(5), "k");
        mentions.note(Mention::Executable("/c".into()), &place(4), "k");
        mentions.note(Mention::Principal, &place(1), "k");
        mentions.note(Mention::Unit, &place(2), "k");
        mentions.note(Mention::Unit, &place(3), "k");
        let sink = Sink::default();
        mentions.warn_of_inabilities(abilities, asker, &sink);
        let warnings = sink.finish().unwrap();
        warnings.into_iter().map(|warning| (warning.line, warning.message)).collect()
    }

    #[test]
    fn what_cannot_be_found_out_is_warned_of_once_where_it_is_first_needed() {
        let cases = [
            (ABLE, Asker::Daemon, vec![]),
            (Abilities { users: false, ..ABLE }, Asker::Daemon, vec![(1, USERS)]),
            (Abilities { units: false, ..ABLE }, Asker::Daemon, vec![(2, UNITS)]),
            (Abilities { executables: false, ..ABLE }, Asker::Daemon, vec![(4, EXECUTABLES)]),
            (ABLE, Asker::Root, vec![(4, EXECUTABLES_FOR_ROOT)]),
        ];
        for (abilities, asker, expected) in cases {
            let expected: Vec<_> =
                expected.into_iter().map(|(line, message)| (Some(line), message.to_owned())).collect();
            assert_eq!(warned(abilities, asker), expected, "{abilities:?} {asker:?}");
        }
    }
}

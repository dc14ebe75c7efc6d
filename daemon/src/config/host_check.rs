//! Checks of names and paths that need the host: users and groups that it lacks, secret files that cannot be read, and
//! rules that need what the daemon cannot find out about callers.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use nix::unistd::{Group, User, geteuid};

use super::fault::{Sink, quoted};
use crate::access::Abilities;
use crate::secret_source::{Unreadable, check_file};

const USERS: &str = "the daemon sees all users and groups as one, so no rule with a user or group matches; remove \
                     PrivateUsers=yes from its unit";

const UNITS: &str = "the daemon cannot find out the units of callers, so no rule with a unit matches; remove \
                     ProtectProc=invisible from its unit, and let systemd use the unified hierarchy of control groups";

const EXECUTABLES: &str = "matches processes of other users only if the daemon may see their executables: with \
                           AmbientCapabilities=CAP_SYS_PTRACE and CapabilityBoundingSet=CAP_SYS_PTRACE in a drop-in \
                           of its unit";

/// Warns, once each, of kinds of rules that need what cannot be found out about callers.
pub(super) fn warn_of_inabilities(abilities: Abilities, sink: &Sink) {
    let mentions = sink.mentions.borrow();
    for (is_able, kinds, message) in [
        (abilities.users, ["user", "group"], USERS),
        (abilities.units, ["unit", "unit"], UNITS),
        (abilities.executables, ["exe", "exe"], EXECUTABLES),
    ] {
        let places = mentions.iter().filter(|((kind, _), _)| kinds.contains(kind)).map(|(_, place)| place);
        let first = places.min_by_key(|(place, _)| (&place.file, place.line));
        if let Some((place, key)) = first.filter(|_| !is_able) {
            sink.warn(place, key, message);
        }
    }
}

/// Reports files that this process's user cannot read, and warns of rules whose user, group or executable does not match on
/// this host. Asks the name service about each name, which may take long.
pub(super) fn look_up(sink: &Sink) {
    for ((kind, name), (place, key)) in sink.mentions.borrow().iter() {
        let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
        let is_unknown = match *kind {
            "user" => !is_number && User::from_name(name).is_ok_and(|user| user.is_none()),
            "group" => !is_number && Group::from_name(name).is_ok_and(|group| group.is_none()),
            _ => false,
        };
        if is_unknown {
            sink.warn(place, key, format!("this host has no {kind} {} at present", quoted(name)));
        }
        let target = Path::new(name).canonicalize().ok().filter(|target| target != Path::new(name));
        if let Some(target) = target.filter(|_| *kind == "exe") {
            let (path, target) = (quoted(name), quoted(&target.to_string_lossy()));
            let message =
                format!("{path} is a symbolic link to {target}, and the kernel names only that; write that");
            sink.warn(place, key, message);
        }
        let problem = match *kind {
            "file" => check_file(Path::new(name)).err(),
            "ca_file" => File::open(name).err().map(Unreadable::from),
            _ => None,
        };
        if let Some(reason) = problem {
            sink.fault(place, key, unreadable(name, &reason));
        }
    }
}

/// Why this process's user cannot read a file, with the commands that mend it.
fn unreadable(path: &str, reason: &Unreadable) -> String {
    let uid = geteuid();
    let user = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    match reason.kind {
        ErrorKind::PermissionDenied => format!(
            "user {user} cannot read {path}: chown {user} {path}; chmod 0400 {path}; and let {user} search the folders \
             above it"
        ),
        _ => format!("user {user} cannot read {path}: {reason}"),
    }
}

//! What this process can find out about callers: whether its sandbox, its rights and its kernel leave enough.

use std::fs;

use super::process::Process;
use super::{cgroup, ids};

/// `CAP_SYS_PTRACE` (linux/capability.h).
const SYS_PTRACE: u32 = 19;

/// What this process can find out about processes of other users. A rule that needs what is `false` here matches
/// nobody but, perhaps, processes of this process's own user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Their users and groups. Not so in a user namespace of its own (`PrivateUsers=`), where the kernel tells
    /// most of them as one.
    pub users: bool,
    /// Their units. Not so where systemd does not use the unified hierarchy of control groups, nor where neither
    /// `/proc` nor `/sys/fs/cgroup` shows them.
    pub units: bool,
    /// Their executables. Takes `CAP_SYS_PTRACE`.
    pub executables: bool,
}

impl Abilities {
    /// Those of this process. Another process may have others: a command that an operator gives has not the
    /// daemon's sandbox.
    pub fn of_this_process() -> Self {
        Self {
            users: ids::are_told(),
            units: can_tell_units(),
            executables: fs::read_to_string("/proc/self/status").is_ok_and(|status| may_trace(&status)),
        }
    }
}

/// Tries it with the first process, which is in a group of its own and never this user's, unless this one is
/// root's.
fn can_tell_units() -> bool {
    let Ok(first) = Process::open(1) else { return false };
    cgroup::path(&first).or_else(|| cgroup::search(&first)).is_some()
}

fn may_trace(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    effective.is_some_and(|set| set >> SYS_PTRACE & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_to_trace_is_one_of_many() {
        assert!(may_trace("CapPrm:\t0000000000000000\nCapEff:\t0000000000080000\n"));
        assert!(may_trace("CapEff:\t000001ffffffffff\n"));
        assert!(!may_trace("CapEff:\t000001fffff7ffff\nCapBnd:\t000001ffffffffff\n"));
        assert!(!may_trace("CapEff:\tnone\n"));
        assert!(!may_trace(""));
    }
}

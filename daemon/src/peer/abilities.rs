//! What this process can find out about callers: whether its sandbox, its rights and its kernel leave enough.

use std::fs;

use super::process::Process;
use super::{cgroup, ids};
use crate::access::Abilities;

/// `CAP_SYS_PTRACE` (linux/capability.h).
const SYS_PTRACE: u32 = 19;

/// What this process can find out about callers. Another process may find out other things: a command that an operator
/// runs is outside the daemon's sandbox.
pub fn abilities() -> Abilities {
    Abilities {
        users: ids::are_told(),
        units: can_tell_units(),
        executables: fs::read_to_string("/proc/self/status").is_ok_and(|status| may_trace(&status)),
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

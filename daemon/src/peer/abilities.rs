//! Which facts about callers this process can find out, given its sandbox, its rights and its kernel.

use std::fs;

use super::ids;
use super::placement::Placement;
use super::process::Process;
use crate::access::Abilities;

/// `CAP_SYS_PTRACE` (linux/capability.h).
const SYS_PTRACE: u32 = 19;

/// Finds out which facts about callers this process can see. A command that an operator runs is outside the daemon's
/// sandbox and may see others.
pub fn abilities() -> Abilities {
    Abilities {
        users: ids::are_told(),
        units: shows_units(),
        executables: fs::read_to_string("/proc/self/status").is_ok_and(|status| may_trace(&status)),
    }
}

/// Whether `/proc` shows the unit of the first process, which is never this user's unless this user is root.
fn shows_units() -> bool {
    Process::open(1)
        .and_then(|first| first.read("cgroup"))
        .is_ok_and(|text| Placement::read(&text, 0).is_some())
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

//! Finds out which facts about callers this process can read, given its sandbox, its rights and its kernel.

use std::fs;

use super::ids;
use super::placement::Placement;
use super::process::Process;
use crate::access::Abilities;

/// `CAP_SYS_PTRACE` (linux/capability.h).
const SYS_PTRACE: u32 = 19;

/// Finds out which facts about callers this process can see. Outside the daemon's sandbox they may be others.
pub fn abilities() -> Abilities {
    // Process 1 belongs to root, so it stands for processes of other users.
    let first_unit = Process::open(1).ok().and_then(|first| Placement::read(&first.read("cgroup").ok()?, 0));
    let (units, executables) = (first_unit.is_some(), has_capability(SYS_PTRACE));
    Abilities { users: ids::are_mapped(), units, executables }
}

/// Whether this process has the capability with this number (capabilities(7)) in its effective set.
pub fn has_capability(number: u32) -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| is_effective(number, &status))
}

fn is_effective(capability: u32, status: &str) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    set.is_some_and(|set| set >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_read_from_the_effective_set() {
        let may_trace = |status| is_effective(SYS_PTRACE, status);
        assert!(may_trace("CapPrm:\t0000000000000000\nCapEff:\t0000000000080000\n"));
        assert!(may_trace("CapEff:\t000001ffffffffff\n"));
        assert!(!may_trace("CapEff:\t000001fffff7ffff\nCapBnd:\t000001ffffffffff\n"));
        assert!(!may_trace("CapEff:\tnone\n"));
        assert!(!may_trace(""));
        assert!(is_effective(14, "CapEff:\t0000000000004000\n"));
        assert!(!is_effective(14, "CapEff:\t0000000000003fff\nCapBnd:\t0000000000004000\n"));
    }
}

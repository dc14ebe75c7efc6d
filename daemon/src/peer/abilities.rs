//! Which facts about callers this process can see, given its sandbox, its rights and its kernel.

use std::fs;

use super::placement::Placement;
use super::process::Process;
use crate::access::Abilities;

/// `CAP_SYS_PTRACE` (linux/capability.h).
const SYS_PTRACE: u32 = 19;

/// The id that the kernel shows for all ids that this process's user namespace does not map (`user_namespaces(7)`,
/// `kernel.overflowuid`, `kernel.overflowgid`). It identifies nobody.
const OVERFLOW_ID: u32 = 65_534;

/// The number of all ids. The highest number is no id.
const ALL: u64 = u32::MAX as u64;

/// Finds out which facts about callers this process can see. Outside the daemon's sandbox they may be others.
pub fn abilities() -> Abilities {
    // Process 1 belongs to root, so it stands for processes of other users.
    let first_unit = Process::open(1).ok().and_then(|first| Placement::read(&first.read("cgroup").ok()?, 0));
    Abilities {
        // As many as a host or a container has; a service's own user namespace (`PrivateUsers=`) has fewer.
        users: mapped_ids("uid_map") >= 65_536,
        units: first_unit.is_some(),
        executables: has_capability(SYS_PTRACE),
    }
}

/// Whether the id is a user or group, and not the overflow id. `map` is `uid_map` or `gid_map`.
pub(super) fn is_mapped(id: u32, map: &str) -> bool {
    id != OVERFLOW_ID || mapped_ids(map) >= ALL
}

/// How many ids are mapped: none if the map cannot be read.
fn mapped_ids(map: &str) -> u64 {
    fs::read_to_string(format!("/proc/self/{map}")).map_or(0, |text| count(&text))
}

fn count(map: &str) -> u64 {
    let lengths = map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
    lengths.fold(0, u64::saturating_add)
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

    #[test]
    fn a_namespace_has_as_many_numbers_as_its_map_says() {
        assert_eq!(count("         0          0 4294967295\n"), ALL);
        assert_eq!(count("         0          0          1\n       995        995          1\n"), 2);
        assert_eq!(count("0 0 65536\n"), 65_536);
        assert_eq!(count("0 0\n\nnonsense\n"), 0);
        assert_eq!(mapped_ids("nowhere"), 0);
    }
}

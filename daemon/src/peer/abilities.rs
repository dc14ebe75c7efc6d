//! Which facts about callers this process can see, given its sandbox, its rights and its kernel.

use std::fs;
use std::sync::OnceLock;

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
    let first_unit = Process::open(1).ok().and_then(|first| first.placement(0));
    Abilities {
        // As many as a host or a container has; a service's own user namespace (`PrivateUsers=`) has fewer.
        users: USERS.count() >= 65_536,
        units: first_unit.is_some(),
        executables: has_capability(SYS_PTRACE),
    }
}

/// The ids of one kind that this process's user namespace maps. They stay the same: a map is written once
/// (`user_namespaces(7)`), and this process never changes its namespace.
pub(super) struct IdMap {
    name: &'static str,
    count: OnceLock<u64>,
}

pub(super) static USERS: IdMap = IdMap { name: "uid_map", count: OnceLock::new() };
pub(super) static GROUPS: IdMap = IdMap { name: "gid_map", count: OnceLock::new() };

/// Whether the id is a user or group, and not the overflow id.
pub(super) fn is_mapped(id: u32, map: &IdMap) -> bool {
    id != OVERFLOW_ID || map.count() >= ALL
}

impl IdMap {
    /// How many ids are mapped: none if the map cannot be read now.
    fn count(&self) -> u64 {
        if let Some(count) = self.count.get() {
            return *count;
        }
        let text = fs::read_to_string(format!("/proc/self/{}", self.name));
        text.map_or(0, |text| *self.count.get_or_init(|| count(&text)))
    }
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
        let unreadable = IdMap { name: "nowhere", count: OnceLock::new() };
        assert_eq!((unreadable.count(), unreadable.count.get()), (0, None), "it is read again next time");
    }
}

//! Users and groups as a user namespace shows them. In a user namespace of its own (`PrivateUsers=`) a process sees one
//! stand-in for all ids that are not mapped, and a stand-in identifies nobody (`user_namespaces(7)`).

use std::fs;

/// The id that the kernel shows in place of those that are not mapped (`kernel.overflowuid`, `kernel.overflowgid`).
const STAND_IN: u32 = 65_534;

/// All ids but the highest, which means none.
const ALL: u64 = u32::MAX as u64;

/// Ids of a host or a container; a service's own user namespace has fewer.
const MANY: u64 = 65_536;

/// Whether this is a user, and not the stand-in.
pub(super) fn is_user(uid: u32) -> bool {
    uid != STAND_IN || mapped("/proc/self/uid_map") >= ALL
}

/// Whether this is a group, and not the stand-in.
pub(super) fn is_group(gid: u32) -> bool {
    gid != STAND_IN || mapped("/proc/self/gid_map") >= ALL
}

/// Whether this process sees the ids of the host's users at all.
pub(super) fn are_told() -> bool {
    mapped("/proc/self/uid_map") >= MANY
}

/// How many ids are mapped. A map that cannot be read counts as empty.
fn mapped(map: &str) -> u64 {
    fs::read_to_string(map).map_or(0, |text| count(&text))
}

fn count(map: &str) -> u64 {
    let lengths = map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
    lengths.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_as_many_numbers_as_its_map_says() {
        assert_eq!(count("         0          0 4294967295\n"), ALL);
        assert_eq!(count("         0          0          1\n       995        995          1\n"), 2);
        assert_eq!(count("0 0 65536\n"), MANY);
        assert_eq!(count("0 0\n\nnonsense\n"), 0);
        assert_eq!(mapped("/nowhere"), 0);
    }
}

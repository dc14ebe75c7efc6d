//! Users and groups as a user namespace shows them. In one of its own (`PrivateUsers=`) a process is told a
//! stand-in for every number that it has no name for, and nobody is proved by that (`user_namespaces(7)`).

use std::fs;

/// What the kernel says in place of a number that this process's user namespace does not have
/// (`kernel.overflowuid`, `kernel.overflowgid`).
const STAND_IN: u32 = 65_534;

/// All numbers but the highest, which means none.
const ALL: u64 = u32::MAX as u64;

/// Enough to be a host's or a container's, and not a service's own.
const MANY: u64 = 65_536;

/// Whether a user's number is that user's, and not the stand-in for others.
pub(super) fn is_user(uid: u32) -> bool {
    uid != STAND_IN || mapped("/proc/self/uid_map") >= ALL
}

/// Whether a group's number is that group's.
pub(super) fn is_group(gid: u32) -> bool {
    gid != STAND_IN || mapped("/proc/self/gid_map") >= ALL
}

/// Whether this process is told of the host's users at all.
pub(super) fn are_told() -> bool {
    mapped("/proc/self/uid_map") >= MANY
}

/// How many numbers the namespace has names for. What cannot be read counts for none.
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

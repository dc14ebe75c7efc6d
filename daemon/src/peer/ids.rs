//! Users and groups as a user namespace shows them. In a user namespace of its own (`PrivateUsers=`) a process sees one
//! overflow id for all ids that are not mapped. It identifies nobody (`user_namespaces(7)`).

use std::fs;

/// The default overflow id, which the kernel shows for ids that are not mapped (`kernel.overflowuid`,
/// `kernel.overflowgid`).
const OVERFLOW_ID: u32 = 65_534;

/// The number of all ids. The highest number is no id.
const ALL: u64 = u32::MAX as u64;

/// Ids of a host or a container; a service's own user namespace has fewer.
const MANY: u64 = 65_536;

/// Whether the id is a user or group, and not the overflow id. `map` is `uid_map` or `gid_map`.
pub(super) fn is_mapped(id: u32, map: &str) -> bool {
    id != OVERFLOW_ID || mapped(map) >= ALL
}

/// Whether this process sees the ids of the host's users at all.
pub(super) fn are_mapped() -> bool {
    mapped("uid_map") >= MANY
}

/// How many ids are mapped: none if the map cannot be read.
fn mapped(map: &str) -> u64 {
    fs::read_to_string(format!("/proc/self/{map}")).map_or(0, |text| count(&text))
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
        assert_eq!(mapped("nowhere"), 0);
    }
}

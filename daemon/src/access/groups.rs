//! Lists of supplementary groups. The kernel lets a process have 65,536, and any user with subordinate ids can use them all
//! (newgidmap(1)), so connections share their lists.

use std::sync::{Arc, Weak};

/// The supplementary groups of a process, sorted. Copies share the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups(Arc<Vec<u32>>);

/// The different lists of one user's processes.
#[derive(Debug, Default)]
pub struct GroupLists(Vec<Weak<Vec<u32>>>);

impl Groups {
    pub fn contains(&self, gid: u32) -> bool {
        self.0.binary_search(&gid).is_ok()
    }

    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }
}

impl From<Vec<u32>> for Groups {
    fn from(mut groups: Vec<u32>) -> Self {
        groups.sort_unstable();
        groups.dedup();
        groups.shrink_to_fit();
        Self(Arc::new(groups))
    }
}

impl GroupLists {
    /// Returns the one copy of this list that all connections of the user share. `None` if the user's lists would take more
    /// than `bytes_max` together.
    pub fn share(&mut self, groups: Groups, bytes_max: usize) -> Option<Groups> {
        self.0.retain(|list| list.strong_count() > 0);
        let lists = || self.0.iter().filter_map(Weak::upgrade);
        if let Some(known) = lists().find(|list| *list == groups.0) {
            return Some(Groups(known));
        }
        let bytes =
            lists().chain([Arc::clone(&groups.0)]).map(|list| size_of_val(list.as_slice())).sum::<usize>();
        (bytes <= bytes_max).then(|| {
            self.0.push(Arc::downgrade(&groups.0));
            groups
        })
    }

    /// Whether no list is in use.
    pub fn is_unused(&self) -> bool {
        self.0.iter().all(|list| list.strong_count() == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(first: u32, count: u32) -> Groups {
        (first..first + count).collect::<Vec<u32>>().into()
    }

    #[test]
    fn a_group_is_found_wherever_the_kernel_lists_it() {
        let groups = Groups::from(vec![50, 27, 65_000, 27]);
        assert!([27, 50, 65_000].into_iter().all(|gid| groups.contains(gid)));
        assert!(!groups.contains(28) && !Groups::default().contains(0));
    }

    #[test]
    fn equal_lists_are_stored_once_and_the_bytes_of_different_ones_are_limited() {
        let mut lists = GroupLists::default();
        let first = lists.share(groups(0, 10), 100).unwrap();
        let again: Vec<Groups> = (0..1000).map(|_| lists.share(groups(0, 10), 100).unwrap()).collect();
        assert!(again.iter().all(|list| Arc::ptr_eq(&list.0, &first.0)));
        let other = lists.share(groups(100, 15), 100).unwrap();
        assert_eq!(lists.share(groups(200, 1), 100), None, "100 bytes are in use");
        assert_eq!(lists.share(groups(100, 15), 100), Some(other.clone()), "nothing new is stored");
        drop(first);
        assert_eq!(lists.share(groups(200, 1), 100), None, "other connections have the first list");
        drop(again);
        assert!(lists.share(groups(200, 10), 100).is_some());
        drop(other);
        assert!(lists.is_unused());
    }
}

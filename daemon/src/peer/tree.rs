//! Finds the control group of a process where `/proc` hides it.
//!
//! Since Linux 6.13 the kernel tells the group's id by the process's handle, and that is the inode number of the
//! group's folder (cgroups(7)). Before, the group is the one whose `cgroup.procs` has the process's number: those
//! lists are open to everybody.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::iter;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where the unified hierarchy is: alone, or beside those of the first version.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Groups that one search looks at. A host with more groups than that has units that are not found.
const SEARCHED_MAX: usize = 20_000;

/// Ids that are remembered. Each costs about as much as its path is long.
const REMEMBERED_MAX: usize = 4096;

/// Groups with callers that are looked into before all others. Most callers are of a few services.
const FREQUENTED_MAX: usize = 32;

/// The tree of control groups, as far as it has been seen.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    /// Where ids were found. Held for a look, never while the tree is searched.
    seen: Mutex<HashMap<u64, String>>,
    /// Where processes were found by number, the latest first. Held for a look, as `seen`.
    frequented: Mutex<VecDeque<String>>,
}

impl Tree {
    /// That of this host, if it has one.
    pub(super) fn of_the_host() -> Option<Self> {
        let is_unified = |at: &&str| statfs(*at).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        MOUNTS.into_iter().find(is_unified).map(Self::at)
    }

    fn at(root: &str) -> Self {
        Self { root: root.into(), seen: Mutex::default(), frequented: Mutex::default() }
    }

    /// The path of the group with this id, beginning with `/`.
    pub(super) fn path(&self, id: u64) -> Option<String> {
        self.remembered(id).or_else(|| self.search(id))
    }

    /// The same if it has been seen before, at once. It is looked at once more: the group may have gone since, and ids
    /// are given once.
    pub(super) fn remembered(&self, id: u64) -> Option<String> {
        let path = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        path.filter(|path| self.is_at(id, path))
    }

    fn is_at(&self, id: u64, path: &str) -> bool {
        fs::symlink_metadata(self.folder(path)).is_ok_and(|found| found.is_dir() && found.ino() == id)
    }

    /// The path of the group that has this process in its list.
    pub(super) fn path_of_process(&self, pid: i32) -> Option<String> {
        let frequented = self.frequented.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut groups = frequented.into_iter().chain(self.groups().map(|(_, path)| path));
        let path = groups.find(|path| self.lists(path, pid))?;
        let mut frequented = self.frequented.lock().unwrap_or_else(PoisonError::into_inner);
        frequented.retain(|known| *known != path);
        frequented.push_front(path.clone());
        frequented.truncate(FREQUENTED_MAX);
        Some(path)
    }

    fn lists(&self, path: &str, pid: i32) -> bool {
        let list = fs::read_to_string(self.folder(path).join("cgroup.procs")).unwrap_or_default();
        list.lines().any(|line| line.parse() == Ok(pid))
    }

    fn folder(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// All groups, level by level, because units are near the root: the inode number and the path of each.
    fn groups(&self) -> impl Iterator<Item = (u64, String)> {
        let root = fs::metadata(&self.root).map(|root| (root.ino(), "/".to_owned()));
        let mut level = VecDeque::from_iter(root);
        let mut searched = 0;
        iter::from_fn(move || {
            let (inode, path) = level.pop_front().filter(|_| searched < SEARCHED_MAX)?;
            searched += 1;
            let parent = path.trim_end_matches('/');
            let below = folders(&self.folder(&path));
            level.extend(below.map(|(inode, name)| (inode, format!("{parent}/{name}"))));
            Some((inode, path))
        })
    }

    fn search(&self, id: u64) -> Option<String> {
        let mut found = HashMap::new();
        let mut path = None;
        for (inode, group) in self.groups() {
            if inode == id {
                path = Some(group.clone());
            }
            if found.len() < REMEMBERED_MAX || inode == id {
                found.insert(inode, group);
            }
            if path.is_some() {
                break;
            }
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() + found.len() > REMEMBERED_MAX {
            seen.clear();
        }
        seen.extend(found);
        path
    }
}

/// The folders in a folder, with their inode numbers. One that goes away meanwhile has none.
fn folders(at: &Path) -> impl Iterator<Item = (u64, String)> + use<> {
    let entries = fs::read_dir(at).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((entry.ino(), name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, Tree) {
        let root = tempfile::tempdir().unwrap();
        for path in ["init.scope", "system.slice/billing.service/worker", "system.slice/a.slice/b.service"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        fs::write(root.path().join("system.slice/cgroup.procs"), "").unwrap();
        let tree = Tree::at(root.path().to_str().unwrap());
        (root, tree)
    }

    fn inode(root: &tempfile::TempDir, path: &str) -> u64 {
        fs::metadata(root.path().join(path)).unwrap().ino()
    }

    #[test]
    fn a_group_is_found_by_its_id_wherever_it_lies() {
        let (root, tree) = tree();
        assert_eq!(tree.path(inode(&root, "")).as_deref(), Some("/"));
        for path in [
            "init.scope",
            "system.slice",
            "system.slice/billing.service/worker",
            "system.slice/a.slice/b.service",
        ] {
            for _ in 0..2 {
                assert_eq!(tree.path(inode(&root, path)), Some(format!("/{path}")));
            }
        }
        assert_eq!(tree.path(inode(&root, "system.slice/cgroup.procs")), None, "a file is no group");
    }

    #[test]
    fn a_process_is_found_in_the_list_of_its_group() {
        let (root, tree) = tree();
        let list = |path: &str, text: &str| {
            fs::write(root.path().join(path).join("cgroup.procs"), text).unwrap();
        };
        list("init.scope", "1\n");
        list("system.slice/billing.service/worker", "12\n123\n");
        list("system.slice/a.slice/b.service", "23\n0\n");
        for _ in 0..2 {
            assert_eq!(tree.path_of_process(123).as_deref(), Some("/system.slice/billing.service/worker"));
            assert_eq!(tree.path_of_process(23).as_deref(), Some("/system.slice/a.slice/b.service"));
            assert_eq!(tree.path_of_process(3), None);
        }
        // It moved: where it was found before says nothing.
        list("system.slice/billing.service/worker", "12\n");
        list("init.scope", "1\n123\n");
        assert_eq!(tree.path_of_process(123).as_deref(), Some("/init.scope"));
    }

    #[test]
    fn however_many_groups_there_are_a_search_looks_at_so_many_and_fewer_are_remembered() {
        // In memory, where that many folders take no time.
        let [root, elsewhere] = [(); 2].map(|()| tempfile::tempdir_in("/dev/shm").unwrap());
        let tree = Tree::at(root.path().to_str().unwrap());
        let make = |parent: &str, number: usize| {
            fs::create_dir_all(root.path().join(parent).join(format!("{number}.service"))).unwrap();
        };
        (0..SEARCHED_MAX).for_each(|number| make("many.slice", number));
        assert_eq!(tree.groups().count(), SEARCHED_MAX);
        assert_eq!(tree.path(0), None);
        assert!(tree.seen.lock().unwrap().len() <= REMEMBERED_MAX);
        // They go, and others come.
        fs::rename(root.path().join("many.slice"), elsewhere.path().join("many.slice")).unwrap();
        (0..100).for_each(|number| make("few.slice", number));
        assert!(tree.path(inode(&root, "few.slice/99.service")).is_some());
        assert!(tree.seen.lock().unwrap().len() <= REMEMBERED_MAX);
    }

    #[test]
    fn a_few_groups_with_callers_are_looked_into_first() {
        let (root, tree) = tree();
        for number in 0..2 * FREQUENTED_MAX {
            let group = root.path().join(format!("g{number}.service"));
            fs::create_dir(&group).unwrap();
            fs::write(group.join("cgroup.procs"), format!("{}\n", 1000 + number)).unwrap();
            let pid = i32::try_from(1000 + number).unwrap();
            assert_eq!(tree.path_of_process(pid), Some(format!("/g{number}.service")));
        }
        let frequented = tree.frequented.lock().unwrap();
        assert_eq!(frequented.len(), FREQUENTED_MAX);
        assert_eq!(frequented.front(), Some(&format!("/g{}.service", 2 * FREQUENTED_MAX - 1)));
    }

    #[test]
    fn a_group_that_is_gone_is_not_remembered_as_one_that_is_there() {
        let (root, tree) = tree();
        let worker = inode(&root, "system.slice/billing.service/worker");
        assert!(tree.path(worker).is_some());
        fs::remove_dir(root.path().join("system.slice/billing.service/worker")).unwrap();
        assert_eq!(tree.path(worker), None);

        // Another folder at the place of the one that is remembered.
        let init = inode(&root, "init.scope");
        assert!(tree.path(init).is_some());
        fs::rename(root.path().join("init.scope"), root.path().join("moved.scope")).unwrap();
        fs::create_dir(root.path().join("init.scope")).unwrap();
        assert_eq!(tree.path(init).as_deref(), Some("/moved.scope"));
    }
}

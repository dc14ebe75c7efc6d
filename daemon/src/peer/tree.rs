//! Finds a control group by its id: where `/proc` hides other users' processes, the kernel still tells that id,
//! and it is the inode number of the group's folder (cgroups(7)).

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where the unified hierarchy is: alone, or beside those of the first version.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Folders that one search looks into. A host with more groups than that has units that are not found.
const SEARCHED_MAX: usize = 20_000;

/// Ids that are remembered. Each costs about as much as its path is long.
const REMEMBERED_MAX: usize = 4096;

/// The tree of control groups, as far as it has been seen.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    /// Where ids were found. Held for a look, never while the tree is searched.
    seen: Mutex<HashMap<u64, String>>,
}

impl Tree {
    /// That of this host, if it has one.
    pub(super) fn of_the_host() -> Option<Self> {
        let is_unified = |at: &&str| statfs(*at).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        MOUNTS.into_iter().find(is_unified).map(Self::at)
    }

    fn at(root: &str) -> Self {
        Self { root: root.into(), seen: Mutex::default() }
    }

    /// The path of the group with this id, beginning with `/`. What is remembered is looked at once more: a group
    /// may have gone since, and ids are given once.
    pub(super) fn path(&self, id: u64) -> Option<String> {
        let remembered = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        match remembered {
            Some(path) if self.is_at(id, &path) => Some(path),
            _ => self.search(id),
        }
    }

    fn is_at(&self, id: u64, path: &str) -> bool {
        let folder = self.root.join(path.trim_start_matches('/'));
        fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir() && found.ino() == id)
    }

    /// Searches level by level: units are near the root.
    fn search(&self, id: u64) -> Option<String> {
        if fs::metadata(&self.root).is_ok_and(|root| root.ino() == id) {
            return Some("/".to_owned());
        }
        let mut found = HashMap::new();
        let mut next = VecDeque::from([String::new()]);
        for _ in 0..SEARCHED_MAX {
            let Some(parent) = next.pop_front() else { break };
            for (inode, name) in folders(&self.root.join(parent.trim_start_matches('/'))) {
                let path = format!("{parent}/{name}");
                if found.len() < REMEMBERED_MAX || inode == id {
                    found.insert(inode, path.clone());
                }
                next.push_back(path);
            }
            if found.contains_key(&id) {
                break;
            }
        }
        let path = found.get(&id).cloned();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() + found.len() > REMEMBERED_MAX {
            seen.clear();
        }
        seen.extend(found);
        path
    }
}

/// The folders in a folder, with their inode numbers. One that goes away meanwhile has none.
fn folders(at: &Path) -> impl Iterator<Item = (u64, String)> {
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

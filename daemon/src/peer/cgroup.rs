//! Which control group a process is in.

use std::fs;
use std::sync::LazyLock;

use super::placement;
use super::process::Process;
use super::tree::Tree;

/// The host's tree, with what has been seen of it by whatever peer.
static TREE: LazyLock<Option<Tree>> = LazyLock::new(Tree::of_the_host);

/// The path of the process's group in the unified hierarchy, if it can be told at once: good if the process is alive
/// afterwards.
pub(super) fn path(process: &Process) -> Option<String> {
    shown(process).or_else(|| TREE.as_ref()?.remembered(process.cgroup_id()?))
}

/// As `/proc` tells it, which does not show every process: it may have ended, be hidden (proc(5), `hidepid`) or be of
/// another pid namespace.
fn shown(process: &Process) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).ok()?;
    placement::unified(&text).map(ToOwned::to_owned)
}

/// The same without `/proc`. Searches the tree, which may take a while.
pub(super) fn search(process: &Process) -> Option<String> {
    let tree = TREE.as_ref()?;
    match process.cgroup_id() {
        Some(id) => tree.path(id),
        // A process of another pid namespace has no number here, and is listed with 0.
        None if process.pid() > 0 => tree.path_of_process(process.pid()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_finds_the_same_group() {
        let process = Process::open(nix::unistd::getpid().as_raw()).unwrap();
        let told = shown(&process).unwrap();
        // Without a hierarchy to search in there is one way.
        let Some(tree) = TREE.as_ref() else { return };
        assert_eq!(search(&process).as_deref(), Some(told.as_str()));
        assert_eq!(tree.path_of_process(process.pid()).as_deref(), Some(told.as_str()));
    }
}

//! Which control group a process is in.

use std::fs;
use std::sync::LazyLock;

use super::placement;
use super::process::Process;
use super::tree::Tree;

/// The host's tree, with what has been seen of it by whatever peer.
static TREE: LazyLock<Option<Tree>> = LazyLock::new(Tree::of_the_host);

/// The path of the process's group in the unified hierarchy, as `/proc` tells it: good if the process is alive
/// afterwards. `None` where it does not show the process, which may have ended, be hidden (proc(5), `hidepid`) or be
/// of another pid namespace.
pub(super) fn path(process: &Process) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).ok()?;
    placement::unified(&text).map(ToOwned::to_owned)
}

/// The same from a kernel that tells the group's id, with or without `/proc`. Searches the tree, which may take a
/// while.
pub(super) fn search(process: &Process) -> Option<String> {
    TREE.as_ref()?.path(process.cgroup_id()?)
}

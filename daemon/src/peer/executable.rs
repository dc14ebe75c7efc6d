//! Which program a process runs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The executable of a process, where this process may see and can prove it.
pub(super) fn of(pid: i32) -> Option<PathBuf> {
    name(pid).filter(|name| is_proved(pid, name))
}

/// What the kernel calls the executable of a process; `None` where this process may not see it (proc(5): it takes
/// the rights to trace the other) and where the file is gone. A name is not a proof yet: see [`is_proved`].
fn name(pid: i32) -> Option<PathBuf> {
    let name = fs::read_link(link(pid)).ok()?;
    let text = name.to_str()?;
    (text.starts_with('/') && !text.ends_with(" (deleted)")).then_some(name)
}

/// Whether the file of this name is the one that the process runs. The name is that of the process's own file
/// system, in which anybody can put a file of their own at any place (`mount_namespaces(7)`).
///
/// Looks a path up that others chose, and so may take as long as their file systems do. (`RESOLVE_CACHED` would say
/// no more than the kernel knows by itself, but the unit's `RestrictSUIDSGID=` does not let `openat2(2)` through.)
fn is_proved(pid: i32, name: &Path) -> bool {
    matches!((identity(&link(pid)), identity(name)), (Ok(running), Ok(named)) if running == named)
}

fn link(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A copy of `cat` at `path`, running.
    fn run(path: &Path) -> Child {
        let copied = Command::new("install").args(["-m", "0755", "/bin/cat"]).arg(path).status().unwrap();
        assert!(copied.success());
        Command::new(path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    fn number(child: &Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    #[test]
    fn the_file_that_runs_is_told_apart_from_another_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("billing");
        let mut child = run(&path);
        let pid = number(&child);
        assert_eq!(name(pid).as_deref(), Some(path.as_path()));
        assert!(is_proved(pid, &path));
        assert!(!is_proved(pid, Path::new("/bin/cat")), "another file");

        fs::remove_file(&path).unwrap();
        assert_eq!(name(pid), None, "the file is gone");
        // What is at the place now is not what runs.
        fs::write(&path, "").unwrap();
        assert!(!is_proved(pid, &path));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(name(pid), None);
    }

    #[test]
    fn a_name_that_ends_like_a_deleted_file_proves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = run(&folder.path().join("billing (deleted)"));
        assert_eq!(name(number(&child)), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

//! Which program a process runs.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::sys::stat::Mode;

/// What the kernel calls the executable of a process; `None` where this process may not see it (proc(5): it takes
/// the rights to trace the other) and where the file is gone. A name is not a proof yet: see [`is_proved`].
pub(super) fn name(pid: i32) -> Option<PathBuf> {
    let name = fs::read_link(link(pid)).ok()?;
    let text = name.to_str()?;
    (text.starts_with('/') && !text.ends_with(" (deleted)")).then_some(name)
}

/// Whether the file of this name is the one that the process runs. The name is that of the process's own file
/// system, in which anybody can put a file of their own at any place (`mount_namespaces(7)`).
///
/// Others chose this path, so nothing here may wait for their file systems: what the kernel does not know without
/// asking one is not proved. That is so on network file systems, and before Linux 5.12 everywhere.
pub(super) fn is_proved(pid: i32, name: &Path) -> bool {
    // The kernel holds on to a file that runs, and to the folders it is in.
    let resolve = ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED);
    let named =
        openat2(AT_FDCWD, name, OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve));
    let running = open(&link(pid), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let (Ok(named), Ok(running)) = (named, running) else { return false };
    matches!((identity(&named), identity(&running)), (Ok(named), Ok(running)) if named == running)
}

fn link(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

/// Device and inode number of an open file, as far as the kernel knows them by itself.
fn identity(file: &OwnedFd) -> io::Result<(u32, u32, u64)> {
    let mut known = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the path is an empty C string, and the kernel writes one `statx`.
    #[expect(unsafe_code, reason = "the standard library's call may ask the file system")]
    let status = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC,
            libc::STATX_INO,
            known.as_mut_ptr(),
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all of it is numbers, which were zero before the kernel filled them in.
    #[expect(unsafe_code, reason = "a structure that the kernel fills in")]
    let known = unsafe { known.assume_init() };
    if known.stx_mask & libc::STATX_INO == 0 {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    Ok((known.stx_dev_major, known.stx_dev_minor, known.stx_ino))
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

//! Which program a process runs.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::libc;

use crate::access::{Executable, Id};

/// The executable of a process; `None` where this process may not see it (proc(5): it takes the right to trace the process)
/// and where the file is gone. The path depends on the caller's mount namespace, so a rule compares the file too.
pub(super) fn of(pid: i32) -> Option<Executable> {
    let link = format!("/proc/{pid}/exe");
    let path = fs::read_link(&link).ok()?;
    let text = path.to_str()?;
    let is_there = text.starts_with('/') && !text.ends_with(" (deleted)");
    is_there.then(|| id(link)).and_then(Result::ok).map(|file| Executable { path, file })
}

/// Identifies the file behind a link of `/proc` by what the kernel holds in memory (statx(2), `AT_STATX_DONT_SYNC`). The file
/// system may be one of the caller's that never answers.
fn id(link: String) -> io::Result<Id> {
    let link = CString::new(link)?;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `link` ends with a zero byte, `found` has room for what the kernel writes, and all zeros are a valid value.
    #[expect(unsafe_code, reason = "nix does not wrap statx(2)")]
    let (status, found) = unsafe {
        let flags = libc::AT_STATX_DONT_SYNC;
        let status = libc::statx(libc::AT_FDCWD, link.as_ptr(), flags, libc::STATX_INO, found.as_mut_ptr());
        (status, found.assume_init())
    };
    Errno::result(status)?;
    let device = libc::makedev(found.stx_dev_major, found.stx_dev_minor);
    Ok(Id::File { device, inode: found.stx_ino })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
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

    /// The file at a path, as rules resolve it.
    fn file(path: &Path) -> Id {
        let file = fs::metadata(path).unwrap();
        Id::File { device: file.dev(), inode: file.ino() }
    }

    #[test]
    fn an_executable_is_a_path_and_a_file_as_long_as_the_file_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("billing");
        let mut child = run(&path);
        let pid = number(&child);
        let running = of(pid).unwrap();
        assert_eq!((running.path.as_path(), running.file), (path.as_path(), file(&path)));
        assert_ne!(running.file, file(Path::new("/bin/cat")));
        fs::remove_file(&path).unwrap();
        assert_eq!(of(pid), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(of(pid), None);
    }

    #[test]
    fn a_path_that_ends_like_that_of_a_deleted_file_is_no_executable() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = run(&folder.path().join("billing (deleted)"));
        assert_eq!(of(number(&child)), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

//! A process, identified by its pidfd. A pidfd never refers to another process, even if the number is used again
//! (`pidfd_open(2)`).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;
use tokio::sync::Notify;

use super::placement::Placement;
use crate::access::{Executable, Facts, Id};

/// Room for `/proc/PID/cgroup`, read at once: several paths of the greatest length on a host with more than one hierarchy.
const CGROUP_BYTES: usize = 16 * 1024;

/// The magic number of the file system of pidfds (linux/magic.h). Its inodes are numbered for good on 64-bit machines.
const PIDFS: libc::c_long = 0x5049_4446;

/// A process, alive or not. One of another pid namespace has the number 0 here.
#[derive(Debug)]
pub struct Process {
    /// Its number, which may be another process's as soon as this one has ended.
    pub(super) pid: i32,
    /// Becomes readable when the process ends, and stays so (`pidfd_open(2)`).
    pub(super) pidfd: OwnedFd,
    /// Whether [`Process::end`] will be called when it ends.
    is_watched: AtomicBool,
    has_ended: AtomicBool,
    /// Notified when it has ended.
    exit: Notify,
}

impl Process {
    pub(super) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, is_watched: false.into(), has_ended: false.into(), exit: Notify::new() }
    }

    /// The process that connected, by what the kernel answered to `SO_PEERPIDFD`. Before Linux 6.5 there is only its number.
    /// `None` without pidfds: the process's end cannot be noticed, and nothing about it can be proved.
    ///
    /// # Errors
    /// The peer has ended (`ESRCH`), or the kernel does not give its pidfd. A connection would outlive the process, so
    /// such a peer must not be served.
    pub(super) fn of_peer(
        pidfd: nix::Result<OwnedFd>,
        pid: i32,
        uid: u32,
        gid: u32,
    ) -> io::Result<Option<Self>> {
        match pidfd {
            Ok(pidfd) => Ok(Some(Self::new(pid, pidfd))),
            Err(Errno::ENOPROTOOPT) => Self::by_number(Self::open(pid), uid, gid),
            Err(Errno::EINVAL) => Err(Errno::ESRCH.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// The process with the peer's number. If it has another owner, the peer has ended (`ESRCH`) and its number was reused.
    fn by_number(opened: nix::Result<Self>, uid: u32, gid: u32) -> io::Result<Option<Self>> {
        let process = match opened {
            // A kernel without pidfds, or a process of another pid namespace, which has no number here.
            Err(Errno::ENOSYS | Errno::EINVAL) => return Ok(None),
            opened => opened?,
        };
        // The folder of a process belongs to its effective user and group (proc(5)).
        let folder = fs::metadata(format!("/proc/{}", process.pid));
        let is_same = process.is_alive()
            && match folder {
                Ok(folder) => (folder.uid(), folder.gid()) == (uid, gid),
                // Hidden here (proc(5), `hidepid`): its end can be noticed, and nothing else can be proved.
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
        if is_same { Ok(Some(process)) } else { Err(Errno::ESRCH.into()) }
    }

    /// The process that has this number now.
    pub(super) fn open(pid: i32) -> nix::Result<Self> {
        // SAFETY: the call takes two numbers, and nobody else owns the descriptor that the kernel makes.
        #[expect(unsafe_code, reason = "nix does not wrap pidfd_open(2)")]
        let pidfd = unsafe {
            let number = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
            OwnedFd::from_raw_fd(RawFd::try_from(number).map_err(|_| Errno::EOVERFLOW)?)
        };
        Ok(Self::new(pid, pidfd))
    }

    /// The inode of the pidfd, which is another one for each process until the next boot. `None` before Linux 6.9, when all
    /// pidfds had the same.
    pub(super) fn number(&self) -> Option<u64> {
        static ARE_NUMBERED: OnceLock<bool> = OnceLock::new();
        let is_of_pidfs = || fstatfs(&self.pidfd).is_ok_and(|found| found.filesystem_type().0 == PIDFS);
        let are_numbered = size_of::<usize>() == 8 && *ARE_NUMBERED.get_or_init(is_of_pidfs);
        fstat(&self.pidfd).ok().filter(|_| are_numbered).map(|found| found.st_ino)
    }

    /// Whether somebody notices the end of the process, and then calls [`Process::end`].
    pub fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }

    pub fn set_watched(&self) {
        self.is_watched.store(true, Ordering::Relaxed);
    }

    /// Notes that the process has ended.
    pub fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        self.exit.notify_waiters();
    }

    /// Whether somebody has noted the end of the process. Where nobody watches it, the kernel is asked.
    pub(super) fn is_known_to_have_ended(&self) -> bool {
        if self.is_watched() { self.has_ended.load(Ordering::Relaxed) } else { !self.is_alive() }
    }

    /// Waits until somebody notes the end of the process.
    pub(super) async fn exit(&self) {
        // Created before the look, so that nothing is missed in between.
        let exit = self.exit.notified();
        if !self.has_ended.load(Ordering::Relaxed) {
            exit.await;
        }
    }

    /// Whether the process runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
    }

    /// The units that it runs in, if this process can see them. They are this process's if it is alive afterwards.
    pub(super) fn placement(&self, uid: u32) -> Option<Placement> {
        let mut room = [0; CGROUP_BYTES];
        let length = File::open(format!("/proc/{}/cgroup", self.pid)).ok()?.read(&mut room).ok()?;
        // A full room may lack the rest.
        let text = room.get(..length).filter(|text| text.len() < CGROUP_BYTES)?;
        Placement::read(str::from_utf8(text).ok()?, uid)
    }

    /// Its effective user and group and its supplementary groups, as they are now.
    pub(super) fn owner(&self) -> io::Result<Facts> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        if !self.is_alive() {
            return Err(Errno::ESRCH.into());
        }
        let hidden = "/proc hides the processes of other users from the daemon";
        let status = status.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::NotFound, hidden),
            _ => error,
        })?;
        let owner = owner(&status).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Facts { pid: Some(self.pid), process: self.number(), ..owner })
    }

    /// The executable; `None` where this process may not see it (proc(5): it takes the right to trace the process) and where
    /// the file is gone. The path depends on the caller's mount namespace, so a rule compares the file too.
    pub(super) fn executable(&self) -> Option<Executable> {
        let link = format!("/proc/{}/exe", self.pid);
        let path = fs::read_link(&link).ok()?;
        let is_there =
            path.to_str().is_some_and(|path| path.starts_with('/') && !path.ends_with(" (deleted)"));
        if is_there { Some(Executable { path, file: file_behind(link)? }) } else { None }
    }
}

/// Becomes readable when the process ends.
impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Reads the owner in `/proc/PID/status`. Of the four numbers of a user or group the second is the effective one.
fn owner(status: &str) -> Option<Facts> {
    let numbers = |key: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
    };
    let (uid, gid) = (*numbers("Uid:")?.get(1)?, *numbers("Gid:")?.get(1)?);
    Some(Facts { uid, gid, groups: numbers("Groups:")?.into(), ..Facts::default() })
}

/// Identifies the file behind a link of `/proc` by what the kernel holds in memory (statx(2), `AT_STATX_DONT_SYNC`). The file
/// system may be one of the caller's that never answers.
fn file_behind(link: String) -> Option<Id> {
    let link = std::ffi::CString::new(link).ok()?;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `link` ends with a zero byte, `found` has room for what the kernel writes, and all zeros are a valid value.
    #[expect(unsafe_code, reason = "nix does not wrap statx(2)")]
    let (status, found) = unsafe {
        let flags = libc::AT_STATX_DONT_SYNC;
        let status = libc::statx(libc::AT_FDCWD, link.as_ptr(), flags, libc::STATX_INO, found.as_mut_ptr());
        (status, found.assume_init())
    };
    let device = libc::makedev(found.stx_dev_major, found.stx_dev_minor);
    (status == 0).then_some(Id::File { device, inode: found.stx_ino })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::access::Groups;

    fn start() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    fn number(child: &Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    fn has_ended(found: io::Result<Option<Process>>) -> bool {
        found.is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH))
    }

    #[test]
    fn before_peer_pidfds_a_process_is_found_by_its_number_and_its_owner() {
        let mut child = start();
        let process = Process::open(number(&child)).unwrap();
        assert!(process.is_alive());
        let owner = process.owner().unwrap();
        assert_eq!(owner.uid, nix::unistd::geteuid().as_raw());
        let found = |uid, gid| Process::of_peer(Err(Errno::ENOPROTOOPT), number(&child), uid, gid);
        assert!(found(owner.uid, owner.gid).unwrap().is_some());
        // A process of somebody else's has the number: the one that connected has ended.
        assert!(has_ended(found(owner.uid + 1, owner.gid)));
        assert!(has_ended(found(owner.uid, owner.gid + 1)));

        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(process.owner().is_err());
        assert!(has_ended(Process::of_peer(Err(Errno::ENOPROTOOPT), number(&child), owner.uid, owner.gid)));
    }

    #[test]
    fn a_pidfd_that_the_kernel_does_not_give_is_an_error() {
        let own = nix::unistd::getpid().as_raw();
        for error in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EPERM] {
            assert!(Process::of_peer(Err(error), own, 0, 0).is_err(), "{error}");
            assert!(Process::by_number(Err(error), 0, 0).is_err(), "by number: {error}");
        }
        for error in [Errno::ESRCH, Errno::EINVAL] {
            assert!(has_ended(Process::of_peer(Err(error), own, 0, 0)), "{error}");
        }
        assert!(has_ended(Process::by_number(Err(Errno::ESRCH), 0, 0)));
        assert!(matches!(Process::by_number(Err(Errno::ENOSYS), 0, 0), Ok(None)));
        assert!(matches!(Process::of_peer(Err(Errno::ENOPROTOOPT), 0, 0, 0), Ok(None)));
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = start();
        let process = Process::open(number(&child)).unwrap();
        child.kill().unwrap();
        let mut ended = [PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ended, PollTimeout::from(10_000_u16)), Ok(1));
        assert!(!process.is_alive());
        assert!(process.owner().is_err());
        child.wait().unwrap();
    }

    #[test]
    fn the_effective_ids_are_read_from_status() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nNStgid:\t7\n";
        let expected = Facts { uid: 2, gid: 6, groups: vec![9, 10].into(), ..Facts::default() };
        assert_eq!(owner(status), Some(expected));
        assert_eq!(
            owner("Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\n").unwrap().groups,
            Groups::default()
        );
        assert_eq!(owner("Uid:\t1\nGid:\t5\t6\t7\t8\nGroups:\t\n"), None);
        assert_eq!(owner(""), None);
    }

    /// A copy of `cat` at `path`, running.
    fn run(path: &Path) -> Child {
        let copied = Command::new("install").args(["-m", "0755", "/bin/cat"]).arg(path).status().unwrap();
        assert!(copied.success());
        Command::new(path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
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
        let process = Process::open(number(&child)).unwrap();
        let running = process.executable().unwrap();
        assert_eq!((running.path.as_path(), running.file), (path.as_path(), file(&path)));
        assert_ne!(running.file, file(Path::new("/bin/cat")));
        fs::remove_file(&path).unwrap();
        assert_eq!(process.executable(), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process.executable(), None);
    }

    #[test]
    fn a_path_that_ends_like_that_of_a_deleted_file_is_no_executable() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = run(&folder.path().join("billing (deleted)"));
        assert_eq!(Process::open(number(&child)).unwrap().executable(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

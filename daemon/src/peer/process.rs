//! A handle on one process, which stays that process's whatever becomes of its number (`pidfd_open(2)`). What is
//! read from `/proc/PID` is that process's if it is still alive afterwards, and only then.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

/// Asks for the control group (`PIDFD_INFO_CGROUPID` in `linux/pidfd.h`).
const INFO_CGROUP_ID: u64 = 1 << 2;

nix::ioctl_readwrite! {
    /// What the kernel tells about a process without `/proc`, since Linux 6.13 (`PIDFD_GET_INFO`).
    pidfd_get_info, 0xFF, 11, Info
}

/// `struct pidfd_info` in its first version. The size is part of the request, so that a kernel which has more to
/// tell fills this much and no more.
#[repr(C)]
#[derive(Debug, Default)]
struct Info {
    mask: u64,
    cgroup_id: u64,
    /// Process ids, users, groups and the exit code, which are not asked for.
    others: [u32; 12],
}

/// A process, alive or not. One of another pid namespace has the number 0 here.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pid: i32,
    handle: Arc<OwnedFd>,
}

/// What the kernel has to say of the process at the other end of a socket.
#[derive(Debug)]
pub(super) enum PeerProcess {
    /// It was there a moment ago.
    Process(Process),
    /// It has ended.
    Ended,
    /// The kernel has no handle to give: nothing tells of its end, and nothing about it can be proved.
    Unknown,
}

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

impl PeerProcess {
    /// The process that connected. Before Linux 6.5 there is only its number (`SO_PEERPIDFD`); a process that has
    /// that number and another owner has taken the place of the one that connected.
    ///
    /// # Errors
    /// The kernel has such a handle and does not give it, as when no descriptor is left. To go on without it would be
    /// to let whoever can bring that about outlive its process.
    pub(super) fn at(socket: BorrowedFd<'_>, pid: i32, uid: u32, gid: u32) -> io::Result<Self> {
        Self::told(getsockopt(&socket, sockopt::PeerPidfd), pid, uid, gid)
    }

    fn told(handle: nix::Result<OwnedFd>, pid: i32, uid: u32, gid: u32) -> io::Result<Self> {
        match handle {
            Ok(handle) => Ok(Self::Process(Process { pid, handle: Arc::new(handle) })),
            Err(Errno::ENOPROTOOPT) => Self::by_number(Process::open(pid), uid, gid),
            Err(Errno::ESRCH | Errno::EINVAL) => Ok(Self::Ended),
            Err(error) => Err(error.into()),
        }
    }

    fn by_number(opened: io::Result<Process>, uid: u32, gid: u32) -> io::Result<Self> {
        Ok(match opened {
            Ok(process) => match process.owner() {
                Ok(owner) if (owner.uid, owner.gid) == (uid, gid) => Self::Process(process),
                // Not shown here (proc(5), `hidepid`): its end can be told, and its facts are asked of it alone.
                Err(error) if error.kind() == io::ErrorKind::NotFound && process.is_alive() => {
                    Self::Process(process)
                }
                _ => Self::Ended,
            },
            Err(error) => match error.raw_os_error() {
                Some(libc::ESRCH) => Self::Ended,
                // A kernel without handles, or a process of another pid namespace, which has no number here.
                Some(libc::ENOSYS | libc::EINVAL) => Self::Unknown,
                _ => return Err(error),
            },
        })
    }
}

impl Process {
    /// The process that has this number now.
    pub(super) fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: the call takes two numbers and touches no memory of this process.
        #[expect(unsafe_code, reason = "a system call that no library here wraps")]
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for this call alone.
        #[expect(unsafe_code, reason = "taking over a new descriptor")]
        let handle = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { pid, handle: Arc::new(handle) })
    }

    /// Its number, which is another process's as soon as this one has ended.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// The handle, which becomes readable when the process ends.
    pub(super) fn handle(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.handle)
    }

    /// Whether it has not ended yet.
    pub(super) fn is_alive(&self) -> bool {
        // A pidfd becomes readable when its process ends (pidfd_open(2)).
        poll(&mut [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
    }

    /// The id of its control group in the unified hierarchy, from a kernel that tells without `/proc`.
    pub(super) fn cgroup_id(&self) -> Option<u64> {
        let mut info = Info { mask: INFO_CGROUP_ID, ..Info::default() };
        // SAFETY: the descriptor is open, and the kernel writes as many bytes as `Info` has, the size being part
        // of the request.
        #[expect(unsafe_code, reason = "an ioctl that no library here wraps")]
        let asked = unsafe { pidfd_get_info(self.handle.as_raw_fd(), &raw mut info) };
        asked.ok().filter(|_| info.mask & INFO_CGROUP_ID != 0).map(|_| info.cgroup_id)
    }

    /// Its effective user and group and its supplementary groups, as they are now.
    pub(super) fn owner(&self) -> io::Result<Owner> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        if !self.is_alive() {
            return Err(io::Error::from(Errno::ESRCH));
        }
        let status = status.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(
                io::ErrorKind::NotFound,
                "it is another user's, and the daemon's sandbox hides those; ask about --user, or run the daemon with ProtectProc=default",
            ),
            _ => error,
        })?;
        Owner::read(&status).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the kernel's account of the process makes no sense")
        })
    }
}

impl Owner {
    /// Reads `/proc/PID/status`. Of the four numbers of a user or group the second is the effective one.
    fn read(status: &str) -> Option<Self> {
        let numbers = |key: &str| -> Option<Vec<u32>> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
        };
        Some(Self {
            uid: *numbers("Uid:")?.get(1)?,
            gid: *numbers("Gid:")?.get(1)?,
            groups: numbers("Groups:")?,
        })
    }
}

#[cfg(test)]
impl Process {
    /// This process's handle with another's number, as after that number was given away.
    pub(super) fn renumbered(self, pid: u32) -> Self {
        Self { pid: i32::try_from(pid).unwrap(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn start() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    fn number(child: &Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    #[test]
    fn a_process_is_known_by_its_number_as_long_as_it_lives() {
        let mut child = start();
        let process = Process::open(number(&child)).unwrap();
        assert!(process.is_alive());
        let owner = process.owner().unwrap();
        assert_eq!(owner.uid, nix::unistd::geteuid().as_raw());
        let found = |uid, gid| PeerProcess::told(Err(Errno::ENOPROTOOPT), number(&child), uid, gid).unwrap();
        assert!(matches!(found(owner.uid, owner.gid), PeerProcess::Process(_)));
        // A process of somebody else's has the number: the one that connected has ended.
        assert!(matches!(found(owner.uid + 1, owner.gid), PeerProcess::Ended));
        assert!(matches!(found(owner.uid, owner.gid + 1), PeerProcess::Ended));

        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(process.owner().is_err());
        let found = PeerProcess::told(Err(Errno::ENOPROTOOPT), number(&child), owner.uid, owner.gid);
        assert!(matches!(found, Ok(PeerProcess::Ended)));
    }

    #[test]
    fn a_handle_that_the_kernel_has_and_does_not_give_is_not_done_without() {
        let own = nix::unistd::getpid().as_raw();
        for error in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EPERM] {
            assert!(PeerProcess::told(Err(error), own, 0, 0).is_err(), "{error}");
            assert!(PeerProcess::by_number(Err(error.into()), 0, 0).is_err(), "by number: {error}");
        }
        assert!(matches!(PeerProcess::told(Err(Errno::ESRCH), own, 0, 0), Ok(PeerProcess::Ended)));
        assert!(matches!(PeerProcess::by_number(Err(Errno::ENOSYS.into()), 0, 0), Ok(PeerProcess::Unknown)));
        assert!(matches!(PeerProcess::told(Err(Errno::ENOPROTOOPT), 0, 0, 0), Ok(PeerProcess::Unknown)));
    }

    #[test]
    fn a_process_that_nobody_has_reaped_yet_has_ended() {
        let mut child = start();
        let process = Process::open(number(&child)).unwrap();
        child.kill().unwrap();
        let mut ended = [PollFd::new(process.handle.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ended, PollTimeout::from(10_000_u16)), Ok(1));
        assert!(!process.is_alive());
        assert!(process.owner().is_err());
        child.wait().unwrap();
    }

    #[test]
    fn the_effective_numbers_count() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nNStgid:\t7\n";
        let owner = Owner { uid: 2, gid: 6, groups: vec![9, 10] };
        assert_eq!(Owner::read(status), Some(owner));
        assert_eq!(Owner::read("Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\n").unwrap().groups, [0; 0]);
        assert_eq!(Owner::read("Uid:\t1\nGid:\t5\t6\t7\t8\nGroups:\t\n"), None);
        assert_eq!(Owner::read(""), None);
    }

    #[test]
    fn the_kernel_and_proc_agree_on_the_control_group() {
        let process = Process::open(nix::unistd::getpid().as_raw()).unwrap();
        // Before Linux 6.13 there is nothing to compare.
        let Some(id) = process.cgroup_id() else { return };
        let text = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        let folders = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|root| format!("{root}{path}"));
        let ids: Vec<u64> = folders.iter().filter_map(|at| Some(fs::metadata(at).ok()?.ino())).collect();
        assert!(ids.is_empty() || ids.contains(&id), "{id} is none of {ids:?}");
    }
}

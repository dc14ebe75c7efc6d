//! A process, identified by its pidfd. A pidfd never refers to another process, even if the number is used again
//! (`pidfd_open(2)`).

use std::fs;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::access::Facts;

/// A process, alive or not. One of another pid namespace has the number 0 here.
#[derive(Clone, Debug)]
pub(super) struct Process {
    /// Its number, which may be another process's as soon as this one has ended.
    pub(super) pid: i32,
    /// Becomes readable when the process ends.
    pub(super) pidfd: Arc<OwnedFd>,
}

/// The process at the other end of a socket.
#[derive(Debug)]
pub(super) enum PeerProcess {
    /// It was alive a moment ago.
    Process(Process),
    /// It has ended.
    Ended,
    /// The kernel has no pidfd to give: the process's end cannot be noticed, and nothing about it can be proved.
    Unknown,
}

impl PeerProcess {
    /// The process that connected, by what the kernel answered to `SO_PEERPIDFD`. Before Linux 6.5 there is only its number;
    /// a process that has that number and another owner has taken the place of the one that connected.
    ///
    /// # Errors
    /// The kernel does not give its pidfd. A connection would outlive the process, so such a peer must not be served.
    pub(super) fn from_pidfd(pidfd: nix::Result<OwnedFd>, pid: i32, uid: u32, gid: u32) -> io::Result<Self> {
        match pidfd {
            Ok(pidfd) => Ok(Self::Process(Process { pid, pidfd: Arc::new(pidfd) })),
            Err(Errno::ENOPROTOOPT) => Self::from_number(Process::open(pid), uid, gid),
            Err(Errno::ESRCH | Errno::EINVAL) => Ok(Self::Ended),
            Err(error) => Err(error.into()),
        }
    }

    fn from_number(opened: nix::Result<Process>, uid: u32, gid: u32) -> io::Result<Self> {
        let process = match opened {
            Ok(process) => process,
            Err(Errno::ESRCH) => return Ok(Self::Ended),
            // A kernel without pidfds, or a process of another pid namespace, which has no number here.
            Err(Errno::ENOSYS | Errno::EINVAL) => return Ok(Self::Unknown),
            Err(error) => return Err(error.into()),
        };
        let is_same = match process.owner() {
            Ok(owner) => (owner.uid, owner.gid) == (uid, gid),
            // Hidden here (proc(5), `hidepid`): its end can be noticed, and nothing else can be proved.
            Err(error) => error.kind() == io::ErrorKind::NotFound && process.is_alive(),
        };
        Ok(if is_same { Self::Process(process) } else { Self::Ended })
    }
}

impl Process {
    /// The process that has this number now.
    pub(super) fn open(pid: i32) -> nix::Result<Self> {
        // SAFETY: the call takes two numbers and touches no memory of this process.
        #[expect(unsafe_code, reason = "nix does not wrap pidfd_open(2)")]
        let pidfd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let pidfd = RawFd::try_from(pidfd).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
        #[expect(unsafe_code, reason = "taking over a new descriptor")]
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self { pid, pidfd: Arc::new(pidfd) })
    }

    /// Whether the process runs. A zombie does not.
    pub(super) fn is_alive(&self) -> bool {
        poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
    }

    /// Reads a file of `/proc/PID`. The text is about this process if it is alive afterwards.
    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid))
    }

    /// Its effective user and group and its supplementary groups, as they are now.
    pub(super) fn owner(&self) -> io::Result<Facts> {
        let status = self.read("status");
        if !self.is_alive() {
            return Err(Errno::ESRCH.into());
        }
        let hidden = "/proc hides the processes of other users from the daemon";
        let status = status.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::NotFound, hidden),
            _ => error,
        })?;
        let owner = owner(&status).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Facts { pid: Some(self.pid), ..owner })
    }
}

/// Reads the owner in `/proc/PID/status`. Of the four numbers of a user or group the second is the effective one.
fn owner(status: &str) -> Option<Facts> {
    let numbers = |key: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
    };
    let (uid, gid) = (*numbers("Uid:")?.get(1)?, *numbers("Gid:")?.get(1)?);
    Some(Facts { uid, gid, groups: numbers("Groups:")?, ..Facts::default() })
}

#[cfg(test)]
impl Process {
    /// The same pidfd with another number, as after the number was given to another process.
    pub(super) fn renumbered(self, pid: u32) -> Self {
        Self { pid: i32::try_from(pid).unwrap(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn start() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    fn number(child: &Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    #[test]
    fn before_peer_pidfds_a_process_is_found_by_its_number_and_its_owner() {
        let mut child = start();
        let process = Process::open(number(&child)).unwrap();
        assert!(process.is_alive());
        let owner = process.owner().unwrap();
        assert_eq!(owner.uid, nix::unistd::geteuid().as_raw());
        let found =
            |uid, gid| PeerProcess::from_pidfd(Err(Errno::ENOPROTOOPT), number(&child), uid, gid).unwrap();
        assert!(matches!(found(owner.uid, owner.gid), PeerProcess::Process(_)));
        // A process of somebody else's has the number: the one that connected has ended.
        assert!(matches!(found(owner.uid + 1, owner.gid), PeerProcess::Ended));
        assert!(matches!(found(owner.uid, owner.gid + 1), PeerProcess::Ended));

        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(process.owner().is_err());
        let found = PeerProcess::from_pidfd(Err(Errno::ENOPROTOOPT), number(&child), owner.uid, owner.gid);
        assert!(matches!(found, Ok(PeerProcess::Ended)));
    }

    #[test]
    fn a_pidfd_that_the_kernel_does_not_give_is_an_error() {
        let own = nix::unistd::getpid().as_raw();
        for error in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EPERM] {
            assert!(PeerProcess::from_pidfd(Err(error), own, 0, 0).is_err(), "{error}");
            assert!(PeerProcess::from_number(Err(error), 0, 0).is_err(), "by number: {error}");
        }
        assert!(matches!(PeerProcess::from_pidfd(Err(Errno::ESRCH), own, 0, 0), Ok(PeerProcess::Ended)));
        assert!(matches!(PeerProcess::from_number(Err(Errno::ENOSYS), 0, 0), Ok(PeerProcess::Unknown)));
        assert!(matches!(
            PeerProcess::from_pidfd(Err(Errno::ENOPROTOOPT), 0, 0, 0),
            Ok(PeerProcess::Unknown)
        ));
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
        let expected = Facts { uid: 2, gid: 6, groups: vec![9, 10], ..Facts::default() };
        assert_eq!(owner(status), Some(expected));
        assert_eq!(owner("Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\n").unwrap().groups, [0; 0]);
        assert_eq!(owner("Uid:\t1\nGid:\t5\t6\t7\t8\nGroups:\t\n"), None);
        assert_eq!(owner(""), None);
    }
}

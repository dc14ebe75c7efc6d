//! What the kernel says about the process at the other end of a connection. Facts only: it decides nothing,
//! and what cannot be proved is absent.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

/// The most supplementary groups that a process can have (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// A process that connected.
#[derive(Debug)]
pub struct Peer {
    facts: Facts,
    /// Tells when the process has ended; `None` where the kernel has no such descriptor to give.
    process: Option<Arc<OwnedFd>>,
}

/// What is known about a process that connected, as it was when it did. A fact that cannot be proved is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its effective user (`SO_PEERCRED`, unix(7)).
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its supplementary groups (`SO_PEERGROUPS`).
    pub groups: Vec<u32>,
    /// Its process id, for the journal. Never a ground for a decision: the number may have been given to
    /// another process since.
    pub pid: Option<i32>,
    /// The systemd system unit that it runs in.
    pub unit: Option<String>,
    /// The unit of a user's own service manager that it runs in. Its name is that user's choice.
    pub user_unit: Option<String>,
    /// The invocation of `unit` (systemd.exec(5), `INVOCATION_ID`).
    pub invocation_id: Option<String>,
    /// Its executable, where this process may see that.
    pub exe: Option<PathBuf>,
}

impl Peer {
    /// Asks the kernel about a connected socket.
    ///
    /// # Errors
    /// What the kernel says where it does not tell user and groups. Such a peer gets nothing.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
        let groups = supplementary_groups(socket)?;
        // A process of another pid namespace has no number here, and the kernel says 0.
        let pid = Some(credentials.pid()).filter(|pid| *pid > 0);
        let process = getsockopt(&socket, sockopt::PeerPidfd).ok();
        let unit = pid.zip(process.as_ref()).and_then(|(pid, process)| unit(pid, process));
        let facts =
            Facts { uid: credentials.uid(), gid: credentials.gid(), groups, pid, unit, ..Facts::default() };
        Ok(Self { facts, process: process.map(Arc::new) })
    }

    /// A process about which this is known, and of whose end nothing will be.
    pub fn known(facts: Facts) -> Self {
        Self { facts, process: None }
    }

    /// What is known about it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The handle that tells when the process has ended.
    pub fn process(&self) -> Option<Arc<OwnedFd>> {
        self.process.clone()
    }

    /// Whether the process has ended. Whoever holds its end of the connection now is somebody else, and has none
    /// of its rights.
    pub fn is_gone(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !is_alive(process))
    }
}

/// `SO_PEERGROUPS`, which no library wraps.
fn supplementary_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut bytes =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the descriptor is borrowed and so open; `groups` is valid for `bytes` bytes, and the kernel
        // writes at most that many and tells in `bytes` how many.
        #[expect(unsafe_code, reason = "a socket option of variable length")]
        let status = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = usize::try_from(bytes).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        if status == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > GROUPS_MAX {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// The unit of the process, if it is certain: the pidfd shows that the process was still there after its
/// cgroup was read, so the number meant it all the while.
fn unit(pid: i32, pidfd: &OwnedFd) -> Option<String> {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    is_alive(pidfd).then(|| system_unit(&cgroup)).flatten()
}

fn is_alive(pidfd: &OwnedFd) -> bool {
    // A pidfd becomes readable when its process ends (pidfd_open(2)).
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
}

/// The system unit in the text of `/proc/PID/cgroup`: the first part of the path that is not a slice.
///
/// What lies below that is not the system's: a user's own manager may call its units what it likes, and all
/// of them are in the system's `user@UID.service`.
fn system_unit(cgroup: &str) -> Option<String> {
    // Only the line of the unified hierarchy is systemd's word on every host (cgroups(7)).
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let unit = path.split('/').find(|part| !part.is_empty() && suffix(part) != Some("slice"))?;
    matches!(suffix(unit), Some("service" | "scope" | "socket" | "mount" | "swap")).then(|| unit.to_owned())
}

/// What follows the last dot. Unit names are case-sensitive.
fn suffix(unit: &str) -> Option<&str> {
    unit.rsplit_once('.').map(|(_, suffix)| suffix)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_kernel_tells_who_is_at_the_other_end() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(ours.as_fd()).unwrap();
        assert!(!peer.is_gone());
        let peer = peer.facts().clone();
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(peer.gid, nix::unistd::getegid().as_raw());
        assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
        let mut expected: Vec<u32> =
            nix::unistd::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        let mut groups = peer.groups;
        groups.sort_unstable();
        expected.sort_unstable();
        assert_eq!(groups, expected);
    }

    #[test]
    fn the_unit_is_the_systems_and_never_one_that_a_user_made() {
        let cases = [
            ("0::/system.slice/billing.service\n", Some("billing.service")),
            ("9:name=systemd:/x.service\n0::/system.slice/billing.service\n", Some("billing.service")),
            ("0::/system.slice/system-pay.slice/pay@eu.service\n", Some("pay@eu.service")),
            ("0::/system.slice/billing.service/worker.service\n", Some("billing.service")),
            (
                "0::/user.slice/user-1.slice/user@1.service/app.slice/billing.service\n",
                Some("user@1.service"),
            ),
            ("0::/user.slice/user-1.slice/session-3.scope\n", Some("session-3.scope")),
            ("0::/\n", None),
            ("0::/init\n", None),
            ("0::/init/billing.service\n", None),
            ("1:name=systemd:/system.slice/billing.service\n", None),
            ("", None),
        ];
        for (text, unit) in cases {
            assert_eq!(system_unit(text).as_deref(), unit, "{text:?}");
        }
    }
}

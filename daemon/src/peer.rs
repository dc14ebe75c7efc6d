//! Reads from the kernel which process is at the other end of a connection. This module only reads; it decides nothing.
//! A fact that cannot be proved is absent.
//!
//! User and groups are those with which the process connected (unix(7)). Everything else is read from `/proc/PID` a moment
//! later. It is a fact about the process if the pidfd says afterwards that the process is still alive: then its number
//! belonged to no other process meanwhile (`pidfd_open(2)`).

mod abilities;
mod placement;
mod process;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use self::abilities::is_mapped;
pub use self::abilities::{abilities, has_capability};
use self::placement::Placement;
pub use self::placement::UNIT_NAME_MAX;
use self::process::Process;
use crate::access::Facts;

/// A process that connected.
#[derive(Debug)]
pub struct Peer {
    facts: Facts,
    /// `None` on a kernel without pidfds, and before Linux 6.5 for a process of another pid namespace.
    process: Option<Process>,
}

impl Peer {
    /// Asks the kernel who connected, and for a pidfd of that process. [`Peer::identify`] adds the other facts.
    ///
    /// # Errors
    /// The process has ended (`ESRCH`): whoever holds the connection now is unidentified. Or the kernel does not give user,
    /// groups and pidfd.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
        let groups = supplementary_groups(socket)?;
        // A process of another pid namespace has no number here, and the kernel says 0.
        let pid = Some(credentials.pid()).filter(|pid| *pid > 0);
        let facts = Facts { uid: credentials.uid(), gid: credentials.gid(), groups, pid, ..Facts::default() };
        let facts = without_unmapped_groups(facts)?;
        let pidfd = getsockopt(&socket, sockopt::PeerPidfd);
        let process = Process::of_peer(pidfd, credentials.pid(), facts.uid, facts.gid)?;
        let peer = Self { facts, process };
        if peer.is_gone() { Err(Errno::ESRCH.into()) } else { Ok(peer) }
    }

    /// The facts about a process by its number, as if it connected now.
    pub fn of_pid(pid: i32) -> io::Result<Facts> {
        let process = Process::open(pid)?;
        let facts = without_unmapped_groups(process.owner()?)?;
        identified(facts, &process).ok_or_else(|| Errno::ESRCH.into())
    }

    /// Adds the unit and the executable, as far as they can be proved.
    pub fn identify(&mut self) {
        if let Some(process) = &self.process
            && let Some(facts) = identified(self.facts.clone(), process)
        {
            self.facts = facts;
        }
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether the process has ended. Another process may hold its end of the connection, but has none of its rights.
    pub fn is_gone(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.is_alive())
    }

    /// Waits until the process has ended; forever if that cannot be watched. This only wakes an idle connection: an answer
    /// could be sent before its task runs, so [`Peer::is_gone`] asks the kernel each time.
    pub async fn exit(&self) {
        let watched = self.process.as_ref().and_then(|process| {
            // SAFETY: the descriptor is borrowed, so it stays open and the same.
            #[expect(unsafe_code, reason = "tokio cannot know that the descriptor stays the same")]
            unsafe { AsyncFd::register_with_interest(process.pidfd.as_fd(), tokio::io::Interest::READABLE) }
                .ok()
        });
        match watched {
            // A pidfd becomes readable when its process ends (pidfd_open(2)), and stays so.
            Some(pidfd) if pidfd.readable().await.is_ok() => (),
            _ => std::future::pending().await,
        }
    }
}

/// Drops groups that this process's user namespace does not map, which the kernel shows as the overflow id. Fails if the
/// user or the effective group is not mapped.
fn without_unmapped_groups(mut facts: Facts) -> io::Result<Facts> {
    if !is_mapped(facts.uid, "uid_map") || !is_mapped(facts.gid, "gid_map") {
        let reason =
            "this process is in a user namespace that does not map the caller; run it without PrivateUsers=";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    facts.groups.retain(|gid| is_mapped(*gid, "gid_map"));
    Ok(facts)
}

/// Adds the facts that `/proc` has about the process; `None` if the process has ended.
fn identified(mut facts: Facts, process: &Process) -> Option<Facts> {
    let placement = process.read("cgroup").ok().and_then(|text| Placement::read(&text, facts.uid));
    Placement { unit: facts.unit, user_unit: facts.user_unit } = placement.unwrap_or_default();
    facts.invocation_id = facts.unit.as_deref().and_then(invocation_id);
    facts.exe = process.executable();
    process.is_alive().then_some(facts)
}

/// The present invocation of a system unit (systemd.exec(5), `INVOCATION_ID`), from a folder that only root writes to. A
/// process that outlived its own invocation (`KillMode=`) gets the id of the next one. The name of a unit has no slash.
fn invocation_id(unit: &str) -> Option<String> {
    let id = std::fs::read_link(format!("/run/systemd/units/invocation:{unit}")).ok()?.into_os_string();
    id.into_string().ok().filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Reads `SO_PEERGROUPS`, which nix does not wrap.
fn supplementary_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut bytes =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        let (fd, start) = (socket.as_raw_fd(), groups.as_mut_ptr().cast());
        // SAFETY: the descriptor is borrowed and so open; `groups` is valid for `bytes` bytes, and the kernel writes at
        // most that many and sets `bytes` to the number that it needs.
        #[expect(unsafe_code, reason = "a socket option of variable length")]
        let status =
            unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, start, &raw mut bytes) };
        let result = Errno::result(status);
        groups.resize(usize::try_from(bytes).map_err(io::Error::other)? / size_of::<libc::gid_t>(), 0);
        // With too little room the kernel has returned how much it needs.
        if result != Err(Errno::ERANGE) {
            return Ok(result.map(|_| groups)?);
        }
    }
}

#[cfg(test)]
impl Peer {
    /// A peer with these facts, whose process counts as alive forever.
    pub(crate) fn known(facts: Facts) -> Self {
        Self { facts, process: None }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::pin::pin;
    use std::process::{Command, Stdio};

    use futures_util::FutureExt;

    use super::*;

    fn of_this_process() -> Peer {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        Peer::of(ours.as_fd()).unwrap()
    }

    #[test]
    fn the_kernel_names_the_user_and_groups_of_a_peer() {
        let peer = of_this_process();
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
    fn a_process_is_identified_alike_by_its_connection_and_by_its_number() {
        let mut peer = of_this_process();
        peer.identify();
        assert_eq!(peer.facts().exe.as_ref().map(|exe| exe.path.clone()), std::env::current_exe().ok());
        let mut by_number = Peer::of_pid(nix::unistd::getpid().as_raw()).unwrap();
        let mut facts = peer.facts().clone();
        facts.groups.sort_unstable();
        by_number.groups.sort_unstable();
        assert_eq!(by_number, facts);
    }

    #[test]
    fn nothing_is_added_about_a_process_that_has_ended() {
        let mut child = Command::new("true").spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        let facts = Facts { uid: 7, pid: Some(process.pid), ..Facts::default() };
        // Its number belongs to another process now: this one.
        let renumbered = Process { pid: nix::unistd::getpid().as_raw(), ..process };
        let mut peer = Peer { facts: facts.clone(), process: Some(renumbered) };
        peer.identify();
        assert_eq!(*peer.facts(), facts);
        assert!(peer.is_gone());
        let ended = Peer::of_pid(i32::try_from(child.id()).unwrap()).unwrap_err();
        assert_eq!(ended.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn all_supplementary_groups_are_read_however_many_there_are() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let groups: Vec<u32> = (1_000_000..1_001_000).collect();
        let told = std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                set_groups_of_this_thread(&groups);
                of_this_process().facts().groups.clone()
            });
            asked.join().unwrap()
        });
        assert_eq!(told, groups);
    }

    fn set_groups_of_this_thread(groups: &[u32]) {
        // SAFETY: the kernel reads as many numbers as there are.
        #[expect(unsafe_code, reason = "the libraries' call is for all threads")]
        let status = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        assert_eq!(status, 0);
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        let peer = Peer { facts: Facts::default(), process: Some(process) };
        let mut exit = pin!(peer.exit());
        assert!((&mut exit).now_or_never().is_none());
        tokio::task::yield_now().await;
        assert!((&mut exit).now_or_never().is_none());
        child.kill().unwrap();
        exit.await;
        assert!(peer.is_gone());
        child.wait().unwrap();
    }
}

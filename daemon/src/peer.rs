//! What the kernel says about the process at the other end of a connection. Facts only: it decides nothing,
//! and what cannot be proved is absent.
//!
//! User and groups are those with which the process connected. All else is asked a moment later, of the process
//! itself: a handle on it tells that it lived on meanwhile, so that no other one can have answered in its place.
//! Before Linux 6.5 that handle is had by the process's number, and only its owner is compared with the peer's.

mod abilities;
mod cgroup;
mod executable;
mod ids;
mod invocation;
mod lookups;
mod placement;
mod process;
mod tree;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};

pub use self::abilities::abilities;
pub use self::lookups::IdentifyTimeout;
use self::lookups::Lookups;
use self::placement::Placement;
use self::process::{PeerProcess, Process};
use crate::access::Facts;

/// The most supplementary groups that a process can have (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// Searches of the tree of control groups.
static SEARCHES: Lookups = Lookups::new(2);

/// Look-ups of executables. They have places of their own, because the paths are the callers' choice.
static PROOFS: Lookups = Lookups::new(4);

/// A process that connected.
#[derive(Debug)]
pub struct Peer {
    facts: Facts,
    process: PeerProcess,
}

impl Peer {
    /// Asks the kernel about a connected socket: who connected, and for a handle on that process. What else there
    /// is to know is asked by [`Peer::identify`].
    ///
    /// # Errors
    /// What the kernel says where it does not tell user and groups, or has a handle and gives none. Such a peer gets
    /// nothing.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
        let groups = supplementary_groups(socket)?;
        // A process of another pid namespace has no number here, and the kernel says 0.
        let pid = Some(credentials.pid()).filter(|pid| *pid > 0);
        let facts = Facts { uid: credentials.uid(), gid: credentials.gid(), groups, pid, ..Facts::default() };
        let facts = without_stand_ins(facts)?;
        let process = PeerProcess::at(socket, credentials.pid(), facts.uid, facts.gid)?;
        Ok(Self { facts, process })
    }

    /// The facts about a process that has connected nowhere, by its number, as if it did now.
    ///
    /// May search the tree of control groups and look up a path: call it where that may take a while.
    ///
    /// # Errors
    /// That there is no such process, that it ended meanwhile, or that this process may not look at it.
    pub fn of_pid(pid: i32) -> io::Result<Facts> {
        let process = Process::open(pid)?;
        let owner = process.owner()?;
        let facts = Facts {
            uid: owner.uid,
            gid: owner.gid,
            groups: owner.groups,
            pid: Some(pid),
            ..Facts::default()
        };
        let facts = without_stand_ins(facts)?;
        let group = cgroup::path(&process).or_else(|| cgroup::search(&process));
        let exe = executable::name(pid).filter(|name| executable::is_proved(pid, name));
        let facts = completed(facts, group.as_deref(), exe);
        if process.is_alive() { Ok(facts) } else { Err(Errno::ESRCH.into()) }
    }

    /// A process about which this is known, and of whose end nothing will be.
    pub fn known(facts: Facts) -> Self {
        Self { facts, process: PeerProcess::Unknown }
    }

    /// Finds out its unit and its executable, as far as they can be proved. Waits where `/proc` hides the process
    /// and its group has not been seen before, or shows its executable: either takes a look at file systems, on another
    /// thread.
    ///
    /// # Errors
    /// Its unit could not be found out in time. It may be in one, so it must not be served as one that is in none.
    pub async fn identify(&mut self) -> Result<(), IdentifyTimeout> {
        let PeerProcess::Process(process) = &self.process else { return Ok(()) };
        let uid = self.facts.uid;
        let group = if let Some(path) = cgroup::path(process) {
            Some(path)
        } else {
            let searched = process.clone();
            SEARCHES.ask(uid, || cgroup::path(process), move || cgroup::search(&searched)).await?
        };
        let exe = if let Some(name) = executable::name(process.pid()) {
            let pid = process.pid();
            let prove = move || Some(name).filter(|name| executable::is_proved(pid, name));
            // IdentifyTimeout is as good as not at all here: the path is the caller's choice, and may be one that hangs.
            PROOFS.ask(uid, || None, prove).await.unwrap_or_default()
        } else {
            None
        };
        let facts = completed(self.facts.clone(), group.as_deref(), exe);
        // Last: that the process is still there proves that all of it was its own.
        if process.is_alive() {
            self.facts = facts;
        }
        Ok(())
    }

    /// What is known about it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The handle that tells when the process has ended, where there is one.
    pub fn process(&self) -> Option<Arc<OwnedFd>> {
        match &self.process {
            PeerProcess::Process(process) => Some(process.handle()),
            PeerProcess::Ended | PeerProcess::Unknown => None,
        }
    }

    /// Whether the process has ended. Whoever holds its end of the connection now is somebody else, and has none
    /// of its rights.
    pub fn is_gone(&self) -> bool {
        match &self.process {
            PeerProcess::Process(process) => !process.is_alive(),
            PeerProcess::Ended => true,
            PeerProcess::Unknown => false,
        }
    }
}

/// Without groups that are stand-ins for others in this process's user namespace.
fn without_stand_ins(mut facts: Facts) -> io::Result<Facts> {
    if !ids::is_user(facts.uid) || !ids::is_group(facts.gid) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the kernel tells no user, because this process is in a user namespace; run it without PrivateUsers=",
        ));
    }
    facts.groups.retain(|gid| ids::is_group(*gid));
    Ok(facts)
}

/// With what the control group `group` tells and with an executable that was proved.
fn completed(mut facts: Facts, group: Option<&str>, exe: Option<PathBuf>) -> Facts {
    let placement = group.map(|path| Placement::of(path, facts.uid)).unwrap_or_default();
    facts.invocation_id = placement.unit.as_deref().and_then(invocation::of);
    facts.unit = placement.unit;
    facts.user_unit = placement.user_unit;
    facts.exe = exe;
    facts
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use futures_util::FutureExt;

    use super::*;

    fn of_this_process() -> Peer {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        Peer::of(ours.as_fd()).unwrap()
    }

    #[test]
    fn the_kernel_tells_who_is_at_the_other_end() {
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

    #[tokio::test]
    async fn a_process_is_identified_by_what_it_runs_and_the_same_by_its_number() {
        let mut peer = of_this_process();
        peer.identify().await.unwrap();
        assert_eq!(peer.facts().exe, std::env::current_exe().ok());
        let mut by_number = Peer::of_pid(nix::unistd::getpid().as_raw()).unwrap();
        let mut facts = peer.facts().clone();
        facts.groups.sort_unstable();
        by_number.groups.sort_unstable();
        assert_eq!(by_number, facts);
    }

    #[tokio::test]
    async fn of_a_process_that_has_ended_nothing_more_is_told() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        let facts = Facts { uid: 7, pid: Some(process.pid()), ..Facts::default() };
        // Its number is another process's now: the search below would find this one.
        let mut peer = Peer {
            facts: facts.clone(),
            process: PeerProcess::Process(process.renumbered(std::process::id())),
        };
        peer.identify().await.unwrap();
        assert_eq!(*peer.facts(), facts);
        assert!(peer.is_gone());
        let ended = Peer::of_pid(i32::try_from(child.id()).unwrap()).unwrap_err();
        assert_eq!(ended.raw_os_error(), Some(libc::ESRCH));
    }

    #[tokio::test]
    async fn a_process_whose_group_is_not_found_out_in_time_is_not_taken_for_one_in_no_unit() {
        const UID: u32 = 4_000_000_001;
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        // Of what has ended the kernel tells no group, so that one is searched for.
        let process = PeerProcess::Process(process.renumbered(i32::MAX.unsigned_abs()));
        let mut peer = Peer { facts: Facts { uid: UID, ..Facts::default() }, process };
        let (let_go, gate) = std::sync::mpsc::channel::<()>();
        let hanging = SEARCHES.ask(UID, || None::<String>, move || gate.recv().ok().map(|()| String::new()));
        let mut hanging = std::pin::pin!(hanging);
        tokio::time::pause();
        assert!((&mut hanging).now_or_never().is_none());
        let mut identified = std::pin::pin!(peer.identify());
        assert!((&mut identified).now_or_never().is_none());
        tokio::time::advance(std::time::Duration::from_secs(60)).await;
        assert_eq!(identified.await, Err(IdentifyTimeout));
        drop(let_go);
    }

    #[test]
    fn all_groups_of_a_process_are_told_however_many_it_has() {
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

    #[test]
    fn a_process_that_had_ended_when_it_was_looked_for_is_gone() {
        assert!(Peer { facts: Facts::default(), process: PeerProcess::Ended }.is_gone());
        assert!(!Peer::known(Facts::default()).is_gone());
    }
}

//! Reads from the kernel which process is at the other end of a connection. This module only reads; it decides nothing.
//! A fact that cannot be proved is absent.
//!
//! User and groups are those with which the process connected (unix(7)). Everything else is read from `/proc/PID` a moment
//! later. It is a fact about the process if the pidfd says afterwards that the process is still alive: then its number
//! belonged to no other process meanwhile (`pidfd_open(2)`).

mod abilities;
mod groups;
mod placement;
mod process;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::time::Instant;

use self::abilities::{GROUPS, USERS, is_mapped};
pub use self::abilities::{abilities, has_capability};
pub use self::groups::{all_groups, few_groups};
use self::placement::Placement;
use self::placement::UNIT_NAME_MAX;
pub use self::process::Process;
use crate::access::{Facts, Groups, NO_ID};

/// How old the facts in the audit may be. It counts decisions about a process for as long.
const DESCRIBED_FOR: Duration = Duration::from_secs(10);

/// A process that connected.
#[derive(Debug)]
pub struct Peer {
    /// Without its unit and executable.
    caller: Facts,
    /// With them, once a decision needed them.
    named: OnceLock<Box<Facts>>,
    /// With them, and when they were read for the audit. Locked for a look or a change.
    described: Mutex<Option<(Instant, Arc<Facts>)>>,
    /// `None` on a kernel without pidfds, and before Linux 6.5 for a process of another pid namespace.
    process: Option<Arc<Process>>,
}

impl Peer {
    /// Asks the kernel for the user, group and process id of whoever connected. One system call.
    pub fn user(socket: BorrowedFd<'_>) -> io::Result<Facts> {
        let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
        // A process of another pid namespace has no number here, and the kernel says 0.
        let pid = Some(credentials.pid()).filter(|pid| *pid > 0);
        let user = Facts { uid: credentials.uid(), gid: credentials.gid(), pid, ..Facts::default() };
        check_user(&user)?;
        Ok(user)
    }

    /// Asks the kernel for a pidfd of the process that connected. [`few_groups`] finds its supplementary groups.
    ///
    /// # Errors
    /// The process has ended (`ESRCH`): whoever holds the connection now is unidentified. Or the kernel gives no pidfd.
    pub fn of(socket: BorrowedFd<'_>, user: Facts) -> io::Result<Self> {
        let pidfd = getsockopt(&socket, sockopt::PeerPidfd);
        let process = Process::of_peer(pidfd, user.pid.unwrap_or_default(), user.uid, user.gid)?;
        let number = process.as_ref().and_then(Process::number);
        Ok(Self::new(Facts { process: number, ..user }, process.map(Arc::new)))
    }

    /// Another connection of a process that is known to be the same.
    #[must_use]
    pub fn of_same_process(&self, user: Facts) -> Self {
        Self::new(Facts { process: self.caller.process, ..user }, self.process.clone())
    }

    fn new(caller: Facts, process: Option<Arc<Process>>) -> Self {
        Self { caller, named: OnceLock::new(), described: Mutex::default(), process }
    }

    /// The facts about a process by its number, as if it connected now.
    pub fn of_pid(pid: i32) -> io::Result<Facts> {
        let process = Process::open(pid)?;
        let facts = process.owner()?;
        check_user(&facts)?;
        identified(facts, &process).ok_or_else(|| Errno::ESRCH.into())
    }

    /// A unit for which the service manager asks. Nothing else is known about it.
    pub fn of_unit(unit: String) -> Option<Self> {
        let facts = Self::facts_of_unit(unit)?;
        let invocation_id = facts.unit.as_deref().and_then(invocation_id);
        Some(Self::new(Facts { invocation_id, ..facts }, None))
    }

    /// The facts about any process of this system unit. `None` if no unit can have this name.
    pub fn facts_of_unit(unit: String) -> Option<Facts> {
        let is_name = !unit.is_empty()
            && unit.len() <= UNIT_NAME_MAX
            && unit.contains('.')
            && !unit.contains(|c: char| c.is_control() || c == '/');
        is_name.then(|| Facts { uid: NO_ID, gid: NO_ID, unit: Some(unit), ..Facts::default() })
    }

    /// Its user, groups and numbers.
    pub fn caller(&self) -> &Facts {
        &self.caller
    }

    pub fn set_groups(&mut self, groups: Groups) {
        self.caller.groups = groups;
        (self.named, self.described) = (OnceLock::new(), Mutex::default());
    }

    /// All facts, for decisions. The first call reads the unit and the executable, as far as they can be proved.
    pub fn facts(&self) -> &Facts {
        self.named.get_or_init(|| Box::new(Facts::clone(&self.describe())))
    }

    /// All facts, for the audit, as they were at most ten seconds ago. No decision is based on them.
    pub fn description(&self) -> Arc<Facts> {
        let described = self.described.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let described = described.filter(|(at, _)| at.elapsed() < DESCRIBED_FOR);
        described.map_or_else(|| self.describe(), |(_, facts)| facts)
    }

    /// Reads the facts for the audit. Not while the lock is held: other threads may serve the process meanwhile.
    fn describe(&self) -> Arc<Facts> {
        let (at, facts) = (Instant::now(), Arc::new(self.read_facts()));
        *self.described.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, Arc::clone(&facts)));
        facts
    }

    /// Whether a decision was based on the unit and the executable.
    pub fn has_named_facts(&self) -> bool {
        self.named.get().is_some()
    }

    fn read_facts(&self) -> Facts {
        let named = self.process.as_ref().and_then(|process| identified(self.caller.clone(), process));
        named.unwrap_or_else(|| self.caller.clone())
    }

    /// `None` if it cannot be told from others.
    pub fn process(&self) -> Option<&Arc<Process>> {
        self.process.as_ref()
    }

    /// Asks the kernel whether the process has ended. Another process may hold its end of the connection, but has none of its
    /// rights.
    pub fn is_gone(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.is_alive())
    }

    /// Whether the end of the process is known to whoever watches it. Asks the kernel if nobody does.
    pub fn is_known_to_be_gone(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.is_known_to_have_ended())
    }

    /// Waits until whoever watches the process has noted its end; forever if nobody does.
    pub async fn exit(&self) {
        match &self.process {
            Some(process) => process.exit().await,
            None => std::future::pending().await,
        }
    }
}

/// Fails if this process's user namespace does not map the user or the effective group.
fn check_user(user: &Facts) -> io::Result<()> {
    if is_mapped(user.uid, &USERS) && is_mapped(user.gid, &GROUPS) {
        return Ok(());
    }
    let reason =
        "this process is in a user namespace that does not map the caller; run it without PrivateUsers=";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

/// Adds the facts that `/proc` has about the process; `None` if the process has ended.
fn identified(mut facts: Facts, process: &Process) -> Option<Facts> {
    let placement = process.placement(facts.uid);
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::pin::pin;
    use std::process::{Command, Stdio};

    use futures_util::FutureExt;

    use super::*;

    impl Peer {
        /// A peer with these facts, whose process counts as alive forever.
        pub(crate) fn known(facts: Facts) -> Self {
            Self::new(facts, None)
        }

        /// The process with this number, as if it had connected.
        pub(crate) fn of_process(pid: u32) -> Self {
            let process = Arc::new(Process::open(i32::try_from(pid).unwrap()).unwrap());
            let caller = process.owner().unwrap();
            Self::new(caller, Some(process))
        }
    }

    fn of_this_process() -> Peer {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut peer = Peer::of(ours.as_fd(), Peer::user(ours.as_fd()).unwrap()).unwrap();
        peer.set_groups(all_groups(ours.as_fd()).unwrap());
        peer
    }

    #[test]
    fn the_kernel_names_the_user_and_groups_of_a_peer() {
        let peer = of_this_process();
        assert!(!peer.is_gone());
        let facts = peer.facts();
        assert_eq!(facts.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(facts.gid, nix::unistd::getegid().as_raw());
        assert_eq!(facts.pid, i32::try_from(std::process::id()).ok());
        let groups: Vec<u32> = nix::unistd::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(facts.groups, groups.into());
    }

    #[test]
    fn a_process_is_identified_alike_by_its_connection_and_by_its_number() {
        let peer = of_this_process();
        assert_eq!(peer.facts().exe.as_ref().map(|exe| exe.path.clone()), std::env::current_exe().ok());
        assert_eq!(Peer::of_pid(nix::unistd::getpid().as_raw()).unwrap(), *peer.facts());
    }

    #[tokio::test(start_paused = true)]
    async fn the_audit_names_the_program_that_a_process_runs_now_or_ran_ten_seconds_ago() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read line; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let peer = Peer::of_process(child.id());
        let before = peer.description();
        // The shell takes the first line, and what it executes returns the second.
        child.stdin.as_mut().unwrap().write_all(b"\n\n").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert_eq!(peer.description(), before);
        tokio::time::advance(DESCRIBED_FOR).await;
        assert_ne!(peer.description().exe, before.exe);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn nothing_is_added_about_a_process_that_has_ended() {
        let mut child = Command::new("true").spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        let facts = Facts { uid: 7, pid: Some(process.pid), ..Facts::default() };
        // Its number belongs to another process now: this one.
        let renumbered = Arc::new(Process::new(nix::unistd::getpid().as_raw(), process.pidfd));
        let peer = Peer::new(facts.clone(), Some(renumbered));
        assert_eq!(*peer.facts(), facts);
        assert!(peer.is_gone());
        let ended = Peer::of_pid(i32::try_from(child.id()).unwrap()).unwrap_err();
        assert_eq!(ended.raw_os_error(), Some(nix::libc::ESRCH));
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        let process = Arc::new(process);
        let peer = Peer::new(Facts::default(), Some(Arc::clone(&process)));
        let mut exit = pin!(peer.exit());
        assert!((&mut exit).now_or_never().is_none());
        assert!(!peer.is_gone() && !peer.is_known_to_be_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(peer.is_gone() && peer.is_known_to_be_gone(), "the kernel is asked");
        process.set_watched();
        assert!(peer.is_gone() && !peer.is_known_to_be_gone(), "the one who watches has not noted it yet");
        process.end();
        exit.await;
        peer.exit().await;
        assert!(peer.is_known_to_be_gone());
    }
}

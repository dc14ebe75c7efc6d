//! Facts about a caller, and the kinds of facts that this process can find out on this host.

use std::path::PathBuf;

use super::{Groups, Id};

/// The number that the kernel uses for "no user" and "no group".
pub const NO_ID: u32 = u32::MAX;

/// Facts about a process at the time at which it connected. A fact that cannot be proved is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its effective user (`SO_PEERCRED`, unix(7)).
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its supplementary groups (`SO_PEERGROUPS`).
    pub groups: Groups,
    /// The process id, only for the journal. No decision uses it: the number may have been given to another process since.
    pub pid: Option<i32>,
    /// A number that no other process has until the next boot, for the audit: the inode of the pidfd, since Linux 6.9.
    pub process: Option<u64>,
    /// The systemd system unit that it runs in.
    pub unit: Option<String>,
    /// The unit of its own user's service manager that it runs in. Its name is that user's choice.
    pub user_unit: Option<String>,
    /// The invocation of `unit` (systemd.exec(5), `INVOCATION_ID`).
    pub invocation_id: Option<String>,
    /// The executable, if this process may see it. It shows which program runs, not who runs it: a user who may run a
    /// program can also debug it.
    pub exe: Option<Executable>,
}

/// The program that a process runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Executable {
    /// Its path in the process's own mount namespace, where a process can put any file at any path.
    pub path: PathBuf,
    /// The file itself. Path and file together prove which program of this host it is.
    pub file: Id,
}

/// The kinds of facts that this process can find out about processes of other users. Rules that need another kind match
/// only processes of its own user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// `false` in a user namespace of its own (`PrivateUsers=`), where the kernel shows most ids as one.
    pub users: bool,
    /// `false` if `/proc` hides other processes, or if systemd uses legacy control groups (version 1).
    pub units: bool,
    /// Needs `CAP_SYS_PTRACE`.
    pub executables: bool,
}

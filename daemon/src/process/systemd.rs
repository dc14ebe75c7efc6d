//! The service manager: what it passes, what it keeps, and what it is told (`sd_listen_fds(3)`, `sd_notify(3)`,
//! `sd_pid_notify_with_fds(3)`). The only user of sd-notify. Without a service manager all of it does nothing.

use std::env;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, UnixAddr, getsockname, getsockopt, sockopt};
use sd_notify::NotifyState;

use crate::store::FdStore;

/// Why a passed socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedSocketError {
    /// There are several.
    #[error("the service manager passes {0} sockets; one Unix stream socket is expected")]
    Several(usize),
    /// It is of another kind.
    #[error(
        "the service manager passes a descriptor that is not a listening Unix stream socket (ListenStream= with a path)"
    )]
    WrongKind,
    /// The environment that describes it makes no sense.
    #[error("what the service manager says about the sockets that it passes cannot be understood")]
    Environment(#[source] io::Error),
}

/// The name under which the service manager keeps the daemon's memory. All else that it passes is a socket.
const STORE: &str = "tokend-store";

/// What the service manager passed at the start.
#[derive(Debug)]
pub struct Passed {
    /// The listening socket, if it passed one.
    pub socket: Option<UnixListener>,
    /// What it keeps, and has kept, for the daemon.
    pub store: FdStore,
}

/// Takes over what the service manager passed. To be called once.
pub fn passed() -> Result<Passed, PassedSocketError> {
    let passed = sd_notify::listen_fds_with_names().map_err(PassedSocketError::Environment)?;
    let (stored, sockets): (Vec<_>, Vec<_>) = passed.partition(|(_, name)| name == STORE);
    let mut stored = stored.into_iter().map(|(fd, _)| take_over(fd));
    let socket = match sockets.as_slice() {
        [] => None,
        [(fd, _)] => Some(adopt(*fd)?),
        _ => return Err(PassedSocketError::Several(sockets.len())),
    };
    let left = stored.next();
    stored.for_each(drop);
    let store = match env::var_os("NOTIFY_SOCKET") {
        None if left.is_none() => FdStore::Absent,
        _ => FdStore::Present { is_proved: left.is_some() || env::var_os("FDSTORE").is_some(), left },
    };
    Ok(Passed { socket, store })
}

/// Asks the service manager to keep a descriptor while the daemon is not running, and to forget the one that it may
/// have kept before.
pub fn keep_descriptor(fd: BorrowedFd<'_>) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(STORE)]);
    if let Err(error) = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(STORE)], &[fd])
    {
        tracing::warn!(%error, "the service manager could not be given the memory to keep");
    }
}

fn take_over(fd: RawFd) -> OwnedFd {
    // SAFETY: the service manager passes this descriptor to this process (LISTEN_PID was checked), and
    // nothing else in the process knows its number.
    #[expect(unsafe_code, reason = "taking over an inherited descriptor")]
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

fn adopt(fd: RawFd) -> Result<UnixListener, PassedSocketError> {
    // Looked at before it is taken over: the number may be that of nothing at all.
    if getsockname::<UnixAddr>(fd).ok().and_then(|name| name.family()) != Some(AddressFamily::Unix) {
        return Err(PassedSocketError::WrongKind);
    }
    let socket = take_over(fd);
    let is_stream = getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream);
    let is_listening = getsockopt(&socket, sockopt::AcceptConn) == Ok(true);
    if !(is_stream && is_listening) {
        return Err(PassedSocketError::WrongKind);
    }
    Ok(UnixListener::from(socket))
}

/// Sockets are bound and the configuration is good.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload has begun. [`ready`] says that it has ended.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// The shutdown has begun.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// How the daemon is, in a line for `systemctl status`.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// The daemon is alive.
pub fn watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// How often the service manager wants to hear [`watchdog`]: half of the time after which it would step in.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2).filter(|pause| !pause.is_zero())
}

/// Whether standard error is connected to the journal (systemd.exec(5), `JOURNAL_STREAM`).
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let stderr = nix::sys::stat::fstat(io::stderr());
    stderr.is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

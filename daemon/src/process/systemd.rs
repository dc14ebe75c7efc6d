//! The service manager: sockets and descriptors that it passes, and notifications to it (`sd_listen_fds(3)`,
//! `sd_notify(3)`, `sd_pid_notify_with_fds(3)`). The only user of sd-notify. Without a service manager it does nothing.

use std::env;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, UnixAddr, getsockname, getsockopt, sockopt};
use sd_notify::NotifyState;

use crate::store::FdStore;

/// The name of the daemon's memory in the service manager's descriptor store. All other descriptors are sockets.
const STORE: &str = "tokend-store";

/// Descriptors that the service manager passed at the start.
#[derive(Debug)]
pub struct Passed {
    /// The listening socket, if it passed one.
    pub socket: Option<UnixListener>,
    /// Its descriptor store.
    pub store: FdStore,
}

/// Takes over the passed descriptors. To be called once.
pub fn passed() -> io::Result<Passed> {
    let passed = sd_notify::listen_fds_with_names()
        .map_err(|error| io::Error::other(format!("LISTEN_FDS or LISTEN_FDNAMES is malformed: {error}")))?;
    let (stored, sockets): (Vec<_>, Vec<_>) = passed.partition(|(_, name)| name == STORE);
    let mut stored: Vec<OwnedFd> = stored.into_iter().map(|(fd, _)| take_over(fd)).collect();
    let socket = match sockets.as_slice() {
        [] => None,
        [(fd, _)] => Some(adopt(*fd)?),
        _ => return Err(unusable()),
    };
    stored.truncate(1);
    let left = stored.pop();
    let store = match env::var_os("NOTIFY_SOCKET") {
        None if left.is_none() => FdStore::Absent,
        _ => FdStore::Present { is_proved: left.is_some() || env::var_os("FDSTORE").is_some(), left },
    };
    Ok(Passed { socket, store })
}

/// Puts a descriptor into the service manager's store, in place of an earlier one.
pub fn keep_descriptor(fd: BorrowedFd<'_>) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(STORE)]);
    let store = [NotifyState::FdStore, NotifyState::FdName(STORE)];
    if let Err(error) = sd_notify::notify_with_fds(&store, &[fd]) {
        tracing::warn!(%error, "the service manager could not be given the memory to keep");
    }
}

fn take_over(fd: RawFd) -> OwnedFd {
    // SAFETY: the service manager passes this descriptor to this process (LISTEN_PID was checked), and nothing else in
    // the process knows its number.
    #[expect(unsafe_code, reason = "taking over an inherited descriptor")]
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

fn adopt(fd: RawFd) -> io::Result<UnixListener> {
    // Checked before it is taken over: the number may be of no open descriptor.
    if getsockname::<UnixAddr>(fd).ok().and_then(|name| name.family()) != Some(AddressFamily::Unix) {
        return Err(unusable());
    }
    let socket = take_over(fd);
    let is_stream = getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream);
    let is_listening = getsockopt(&socket, sockopt::AcceptConn) == Ok(true);
    if is_stream && is_listening { Ok(UnixListener::from(socket)) } else { Err(unusable()) }
}

fn unusable() -> io::Error {
    io::Error::other(
        "the service manager must pass one listening Unix stream socket (ListenStream= with a path)",
    )
}

/// Reports that the daemon serves, after the start or a reload.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports the begin of a reload. [`ready`] reports its end.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Reports the begin of the shutdown.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Sets the line in `systemctl status`.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// Feeds the watchdog.
pub fn watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// Half of the watchdog's time-out, if there is a watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2).filter(|interval| !interval.is_zero())
}

/// Whether standard error is connected to the journal (systemd.exec(5), `JOURNAL_STREAM`).
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let stderr = nix::sys::stat::fstat(io::stderr());
    stderr.is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}

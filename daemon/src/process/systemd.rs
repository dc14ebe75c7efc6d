//! Descriptors that the service manager passes, and notifications to it (`sd_listen_fds(3)`, `sd_notify(3)`).

use std::env;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;

use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};
pub use sd_notify::NotifyState;
use tokio::net::UnixListener;

use super::sockets::PassedSockets;
use crate::store::FdStore;

/// The name of the daemon's memory in the service manager's descriptor store. All other descriptors are sockets.
const STORE: &str = "tokend-store";

/// Takes over the listening sockets and the descriptor store that the service manager passed. To be called once.
pub fn passed() -> io::Result<(PassedSockets, FdStore)> {
    let passed = sd_notify::listen_fds_with_names()
        .map_err(|error| io::Error::other(format!("LISTEN_FDS or LISTEN_FDNAMES is malformed: {error}")))?;
    let (mut stored, mut sockets) = (None, PassedSockets::default());
    for (fd, name) in passed {
        // SAFETY: the service manager passes this descriptor to this process (LISTEN_PID was checked), it is open (sd-notify
        // has set a flag on it), and nothing else in the process knows its number.
        #[expect(unsafe_code, reason = "taking over an inherited descriptor")]
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if name == STORE {
            stored.get_or_insert(fd);
            continue;
        }
        let place = sockets.place(&name);
        if place.is_some() || !is_listening(&fd) {
            return Err(io::Error::other(
                "the service manager must pass one listening Unix stream socket (ListenStream= with a path), and at \
                 most one each with FileDescriptorName=http and FileDescriptorName=credential",
            ));
        }
        let listener = StdUnixListener::from(fd);
        listener.set_nonblocking(true)?;
        *place = Some(UnixListener::from_std(listener)?);
    }
    let store = match env::var_os("NOTIFY_SOCKET") {
        None if stored.is_none() => FdStore::Absent,
        _ => {
            FdStore::Present { is_proved: stored.is_some() || env::var_os("FDSTORE").is_some(), left: stored }
        }
    };
    Ok((sockets, store))
}

fn is_listening(fd: &OwnedFd) -> bool {
    // The name of a socket of another family is an error.
    getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok()
        && getsockopt(fd, sockopt::SockType) == Ok(SockType::Stream)
        && getsockopt(fd, sockopt::AcceptConn) == Ok(true)
}

/// Puts a descriptor into the service manager's store, in place of an earlier one.
pub fn keep_descriptor(fd: BorrowedFd<'_>) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(STORE)]);
    let store = [NotifyState::FdStore, NotifyState::FdName(STORE)];
    if let Err(error) = sd_notify::notify_with_fds(&store, &[fd]) {
        tracing::warn!(%error, "the service manager did not take the store's descriptor; a restart loses tokens");
    }
}

pub fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}

/// Whether standard error is connected to the journal (systemd.exec(5), `JOURNAL_STREAM`).
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let stderr = nix::sys::stat::fstat(io::stderr());
    stderr.is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

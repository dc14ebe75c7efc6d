//! The service manager: the socket that it passes, and what it is told (`sd_listen_fds(3)`, `sd_notify(3)`).
//! The only user of sd-notify. Without a service manager all of it does nothing.

use std::env;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, UnixAddr, getsockname, getsockopt, sockopt};
use sd_notify::NotifyState;

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

/// The listening socket that the service manager passed, if it did.
pub fn passed_socket() -> Result<Option<UnixListener>, PassedSocketError> {
    let passed: Vec<RawFd> = sd_notify::listen_fds().map_err(PassedSocketError::Environment)?.collect();
    match *passed {
        [] => Ok(None),
        [fd] => adopt(fd).map(Some),
        _ => Err(PassedSocketError::Several(passed.len())),
    }
}

fn adopt(fd: RawFd) -> Result<UnixListener, PassedSocketError> {
    // Looked at before it is taken over: the number may be that of nothing at all.
    if getsockname::<UnixAddr>(fd).ok().and_then(|name| name.family()) != Some(AddressFamily::Unix) {
        return Err(PassedSocketError::WrongKind);
    }
    // SAFETY: the service manager passes this descriptor to this process (LISTEN_PID was checked), and
    // nothing else in the process knows its number.
    #[expect(unsafe_code, reason = "taking over an inherited descriptor")]
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
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

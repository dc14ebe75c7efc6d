//! Connecting within a deadline.
//!
//! The standard library connects to a Unix socket without a time limit, and the kernel waits for as long as the daemon's queue
//! of new connections is full. The time limit for writing also limits that wait, so it is set before connecting.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::connection::Connection;
use crate::Error;
use crate::deadline::Deadline;
use crate::failure::{RETURN_WAITS, may_return, not_reachable, silent};

/// Opens connections to one socket.
pub(super) struct Connector {
    socket: Arc<Path>,
    /// Whether an established connection broke, and no attempt to connect has ended since.
    returning: AtomicBool,
}

impl Connector {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket: socket.into(), returning: AtomicBool::new(false) }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Lets the next connect wait for a restart of the daemon, because an established connection broke.
    pub(super) fn expect_return(&self) {
        self.returning.store(true, Ordering::Relaxed);
    }

    /// Opens a connection before the deadline. Without a daemon it fails at once, except after
    /// [`Self::expect_return`].
    pub(super) fn connect(&self, deadline: Deadline) -> Result<Connection, Error> {
        let mut connected = self.try_connect(deadline)?;
        for wait in RETURN_WAITS {
            if !connected.as_ref().is_err_and(may_return) || !self.returning.load(Ordering::Relaxed) {
                break;
            }
            let left = deadline.left().ok_or_else(silent)?;
            thread::sleep(wait.min(left));
            connected = self.try_connect(deadline)?;
        }
        self.returning.store(false, Ordering::Relaxed);
        let stream = connected.map_err(|error| not_reachable(&self.socket, error))?;
        Ok(Connection::new(stream, Arc::clone(&self.socket)))
    }

    /// One attempt. The outer error is a passed deadline, the inner one is the error of connect(2).
    fn try_connect(&self, deadline: Deadline) -> Result<io::Result<UnixStream>, Error> {
        loop {
            let left = deadline.left().ok_or_else(silent)?;
            match connect_within(&self.socket, left) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(silent()),
                // A signal ends the wait for a full queue.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                connected => return Ok(connected),
            }
        }
    }
}

/// Connects, or fails with [`io::ErrorKind::WouldBlock`] once the time has passed.
pub(super) fn connect_within(path: &Path, left: Duration) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(Some(left))?;
    connect(stream.as_raw_fd(), &address)?;
    Ok(stream)
}

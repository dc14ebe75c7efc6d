//! Gives connections back from their tasks to the event loop.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::server::connection::Connection;

/// The connections that tasks give back, and a descriptor that wakes the event loop.
pub(super) struct Returned {
    /// `None` once the loop has ended.
    connections: Mutex<Option<VecDeque<Box<Connection>>>>,
    wake_up: EventFd,
}

impl fmt::Debug for Returned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Returned").finish_non_exhaustive()
    }
}

impl Returned {
    pub(super) fn new() -> io::Result<Self> {
        let wake_up = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let connections = Mutex::new(Some(VecDeque::new()));
        Ok(Self { connections, wake_up })
    }

    /// Takes the connections that were given back. `None` if the loop is to end.
    pub(super) fn take(&self) -> Option<VecDeque<Box<Connection>>> {
        let _ = self.wake_up.read();
        self.connections().as_mut().map(mem::take)
    }

    /// Ends the loop, and closes the connections that it has not taken.
    pub(super) fn close(&self) {
        self.connections().take();
        self.wake();
    }

    /// Gives a connection back. It is closed if the loop has ended.
    pub(super) fn add(&self, connection: Box<Connection>) {
        if let Some(connections) = &mut *self.connections() {
            connections.push_back(connection);
        }
        self.wake();
    }

    fn wake(&self) {
        // Fails only if the loop has been woken so often that the number would overflow.
        let _ = self.wake_up.write(1);
    }

    fn connections(&self) -> MutexGuard<'_, Option<VecDeque<Box<Connection>>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Returned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_up.as_fd()
    }
}

//! Connecting within a deadline.
//!
//! The standard library connects to a Unix socket without a time limit, and the kernel waits for as long as
//! the daemon's queue of new connections is full. So a helper thread connects, and the caller waits for it
//! only until the deadline. A helper that is left behind ends, and closes what it has, once the daemon takes
//! the connection or goes away. Their number is limited.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use super::connection::Connection;
use crate::Error;
use crate::deadline::Deadline;
use crate::failure::{RETURN_WAITS, may_return, not_reachable, silent};

/// How many helpers there may be at once. One that has not been left behind is needed for microseconds.
const HELPERS_MAX: usize = 16;

/// The stack of a helper, which makes three system calls.
const HELPER_STACK: usize = 64 * 1024;

/// Opens connections to one socket.
pub(super) struct Connector {
    socket: Arc<Path>,
    /// Whether an established connection broke, and no attempt to connect has ended since.
    returning: AtomicBool,
    helpers: Arc<Helpers>,
}

/// The number of running helpers, and who waits for it to fall.
#[derive(Default)]
struct Helpers {
    running: Mutex<usize>,
    one_ended: Condvar,
}

impl Connector {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket: socket.into(), returning: AtomicBool::new(false), helpers: Arc::default() }
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
        let place = Helpers::enter(&self.helpers, deadline)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let socket = Arc::clone(&self.socket);
        let helper = thread::Builder::new().name("tokend-connect".to_owned()).stack_size(HELPER_STACK);
        let spawned = helper.spawn(move || {
            // Nobody may be left to take the connection. Then it is closed here.
            let _ = sender.send(UnixStream::connect(socket));
            drop(place);
        });
        if let Err(error) = spawned {
            return Ok(Err(error));
        }
        let left = deadline.left().ok_or_else(silent)?;
        receiver.recv_timeout(left).map_err(|_| silent())
    }
}

impl Helpers {
    /// A place for one helper, as soon as there is one.
    fn enter(helpers: &Arc<Self>, deadline: Deadline) -> Result<HelperSlot, Error> {
        let left = deadline.left().ok_or_else(silent)?;
        let full = |running: &mut usize| *running >= HELPERS_MAX;
        let waited = helpers.one_ended.wait_timeout_while(helpers.running(), left, full);
        let (mut running, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return Err(silent());
        }
        *running += 1;
        Ok(HelperSlot(Arc::clone(helpers)))
    }

    fn running(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the places, free again when dropped.
struct HelperSlot(Arc<Helpers>);

impl Drop for HelperSlot {
    fn drop(&mut self) {
        *self.0.running() -= 1;
        self.0.one_ended.notify_one();
    }
}

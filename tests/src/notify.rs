//! The other end of `NOTIFY_SOCKET`: what the daemon tells a service manager.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::wait;

/// A datagram socket as a service manager has it.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Mutex<Vec<String>>,
}

impl Manager {
    /// Listens at a path.
    pub fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("the socket can be bound");
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        Self { socket, path: path.to_owned(), heard: Mutex::default() }
    }

    /// For `NOTIFY_SOCKET`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every assignment heard so far, in order.
    pub fn heard(&self) -> Vec<String> {
        let mut heard = self.heard.lock().unwrap();
        let mut datagram = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut datagram) {
            heard.extend(String::from_utf8_lossy(&datagram[..length]).lines().map(str::to_owned));
        }
        heard.clone()
    }

    /// Waits until an assignment has been heard, and gives all of them.
    ///
    /// # Panics
    /// When it is not heard in time.
    pub fn wait_for(&self, assignment: &str) -> Vec<String> {
        wait::until(assignment, || {
            let heard = self.heard();
            heard.iter().any(|line| line.starts_with(assignment)).then_some(heard)
        })
    }
}

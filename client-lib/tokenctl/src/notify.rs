//! The notifications of systemd (`sd_notify(3)`): one datagram with assignments.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable with the address of the service manager.
pub(crate) const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// The service manager that started this program, if there is one.
pub(crate) struct ServiceManager(Option<OsString>);

impl ServiceManager {
    pub(crate) fn from_env() -> Self {
        Self(env::var_os(SOCKET_VARIABLE))
    }

    /// Sends assignments, one on each line. A service manager that does not take them changes nothing.
    pub(crate) fn notify(&self, assignments: &str) {
        if let Some(address) = &self.0 {
            let _ = send(address.as_bytes(), assignments);
        }
    }
}

/// An address that begins with `@` is abstract.
fn send(address: &[u8], assignments: &str) -> io::Result<usize> {
    let address = match address.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(address))?,
    };
    UnixDatagram::unbound()?.send_to_addr(assignments.as_bytes(), &address)
}

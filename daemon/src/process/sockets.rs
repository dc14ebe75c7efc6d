//! The sockets of the daemon, passed by the service manager or made here.

use std::error::Error;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::listener::OwnSocket;
use crate::access::group_id;
use crate::config::DaemonSettings;

/// The sockets that a daemon serves. Only the main one is always there.
#[derive(Debug)]
pub struct Sockets {
    pub main: UnixListener,
    /// For callers that speak HTTP.
    pub http: Option<UnixListener>,
    /// For the service manager, which asks for the credentials of units.
    pub credential: Option<UnixListener>,
}

/// The sockets that the service manager passed.
#[derive(Debug, Default)]
pub struct PassedSockets {
    pub main: Option<UnixListener>,
    pub http: Option<UnixListener>,
    pub credential: Option<UnixListener>,
}

/// The paths on the command line, which come before those of the configuration.
#[derive(Debug, Default)]
pub struct SocketPaths {
    pub main: Option<PathBuf>,
    pub http: Option<PathBuf>,
    pub credential: Option<PathBuf>,
}

/// The sockets of a daemon that serves the main socket only.
impl From<UnixListener> for Sockets {
    fn from(main: UnixListener) -> Self {
        Self { main, http: None, credential: None }
    }
}

impl PassedSockets {
    /// The place of a socket with this name (`FileDescriptorName=`).
    pub fn place(&mut self, name: &str) -> &mut Option<UnixListener> {
        match name {
            "http" => &mut self.http,
            "credential" => &mut self.credential,
            _ => &mut self.main,
        }
    }

    /// Makes the sockets that are not passed, and returns those that are removed at the end too.
    pub fn complete(
        self,
        settings: &DaemonSettings,
        paths: &SocketPaths,
    ) -> Result<(Sockets, Vec<OwnSocket>), Box<dyn Error>> {
        let mut own = Vec::new();
        let unknown = |group| format!("daemon.socket_group: there is no group {group} on this host");
        let group = || {
            let group = settings.socket_group.as_ref();
            group.map(|group| group_id(group).ok_or_else(|| unknown(group))).transpose()
        };
        let mut make = |path: &Path, group: Option<u32>| -> Result<UnixListener, Box<dyn Error>> {
            let bound = OwnSocket::bind(path, group);
            let (listener, socket) =
                bound.map_err(|error| format!("cannot make the socket {}: {error}", path.display()))?;
            own.push(socket);
            Ok(UnixListener::from_std(listener)?)
        };
        let http = match (self.http, paths.http.as_ref().or(settings.http_socket.as_ref())) {
            (Some(passed), _) => Some(passed),
            (None, Some(path)) => Some(make(path, group()?)?),
            (None, None) => None,
        };
        let credential =
            match (self.credential, paths.credential.as_ref().or(settings.credential_socket.as_ref())) {
                (Some(passed), _) => Some(passed),
                (None, Some(path)) => {
                    let listener = make(path, None)?;
                    // Only the service manager connects to it.
                    fs::set_permissions(path, Permissions::from_mode(0o600))?;
                    Some(listener)
                }
                (None, None) => None,
            };
        // The last one: whoever finds it finds the others too.
        let main = match self.main {
            Some(passed) => passed,
            None => make(paths.main.as_ref().unwrap_or(&settings.socket), group()?)?,
        };
        Ok((Sockets { main, http, credential }, own))
    }
}

//! How one exchange failed: the decision, common to both clients, whether the request is sent again.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{BadFrame, ErrorCode, ErrorReply, Fault, Reply};

use crate::Error;

/// How long and how often a daemon that went away is waited for: about as long as a restart takes, in which
/// its socket is missing or refuses. Each wait is followed by another try to connect.
pub(crate) const RETURN_WAITS: [Duration; 7] = [
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// An exchange without an answer. The error is what the caller gets if the request is not sent again.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The daemon went away. A request may be repeated, so it is sent again, once, to the next daemon.
    Gone(Error),
    /// Sending it again would not help.
    Final(Error),
}

impl Failure {
    /// Sorts an error of reading or writing an established connection.
    pub(crate) fn of_connection(socket: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof => Self::Gone(not_reachable(socket, error)),
            io::ErrorKind::InvalidData => Self::Final(Error::protocol(error.to_string())),
            io::ErrorKind::InvalidInput => Self::Final(Error::InvalidRequest { message: error.to_string() }),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Final(silent()),
            _ => Self::Final(not_reachable(socket, error)),
        }
    }

    /// The connection ended between two replies.
    pub(crate) fn hung_up(socket: &Path) -> Self {
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed the connection");
        Self::Gone(not_reachable(socket, error))
    }

    /// The daemon closes the connection and says why, under no request's id. The reason may be of the past, if
    /// the connection was idle, so a new one is tried; it gives the same reason if it still holds.
    pub(crate) fn of_all(reply: ErrorReply) -> Self {
        Self::Gone(reply.into())
    }

    /// The error, if the request is not sent again.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Gone(error) | Self::Final(error) => error,
        }
    }
}

impl From<BadFrame> for Failure {
    fn from(bad: BadFrame) -> Self {
        Self::Final(match bad.fault {
            Fault::Version(_) => Error::UnsupportedVersion { message: bad.to_string() },
            Fault::Cut(_) | Fault::UnknownMessage(_) | Fault::Malformed | Fault::TrailingBytes(_) => {
                Error::protocol(bad.to_string())
            }
        })
    }
}

/// Takes a stopping daemon's reply for what it is: an invitation to ask its successor.
pub(crate) fn unless_stopping(reply: Reply) -> Result<Reply, Failure> {
    match reply {
        Reply::Error(error) if error.code == ErrorCode::ShuttingDown => Err(Failure::Gone(error.into())),
        reply => Ok(reply),
    }
}

/// Whether a refused connection may be that of a daemon which is just being restarted.
pub(crate) fn may_return(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

pub(crate) fn not_reachable(socket: &Path, error: io::Error) -> Error {
    Error::NotReachable { socket: socket.to_owned(), cause: Arc::new(error) }
}

/// The error of a deadline that this side saw passing.
pub(crate) fn silent() -> Error {
    Error::DeadlineExceeded { message: "the daemon did not answer before the deadline".to_owned() }
}

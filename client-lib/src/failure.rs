//! How one exchange failed: the decision, common to both clients, whether the request is sent again.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{BadFrame, ErrorCode, ErrorReply, Fault, Reply};

use crate::Error;

/// The waits between attempts to connect to a daemon that is restarting, whose socket is missing or refuses. Together
/// they are about as long as a restart.
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

    /// The daemon closed the connection with an error for the whole connection (id 0). The error may be old, if the
    /// connection was idle, so a new connection is tried.
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
            Fault::Cut(_)
            | Fault::UnknownMessage(_)
            | Fault::Malformed
            | Fault::TrailingBytes(_)
            | Fault::List(_) => Error::protocol(bad.to_string()),
        })
    }
}

/// Turns the `ShuttingDown` reply into a failure after which the request is sent again.
pub(crate) fn unless_stopping(reply: Reply) -> Result<Reply, Failure> {
    match reply {
        Reply::Error(error) if error.code == ErrorCode::ShuttingDown => Err(Failure::Gone(error.into())),
        reply => Ok(reply),
    }
}

/// Whether the error of connect(2) may come from a daemon that is restarting.
pub(crate) fn may_return(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

pub(crate) fn not_reachable(socket: &Path, error: io::Error) -> Error {
    Error::NotReachable { socket: socket.to_owned(), cause: Arc::new(error) }
}

/// The error if the daemon did not answer before the deadline.
pub(crate) fn silent() -> Error {
    Error::DeadlineExceeded { message: "the daemon did not answer before the deadline".to_owned() }
}

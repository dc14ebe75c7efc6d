//! Why a call failed, sorted by what the caller can do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokend_protocol::{ErrorClass, ErrorCode, ErrorReply, TokenNameError};

use crate::SOCKET_VARIABLE;

/// Why a call failed. The `message` is for a person and holds no secret.
///
/// ```
/// use tokend_client::{Error, blocking::Client, TokenName};
///
/// /// An access token, or `None` if there is none at present.
/// fn token(client: &Client, name: &TokenName) -> Result<Option<String>, Error> {
///     match client.get(name) {
///         Ok(reply) => Ok(Some(reply.token.expose().to_owned())),
///         Err(error) if error.is_retryable() => Ok(None),
///         Err(error) => Err(error),
///     }
/// }
/// # let nowhere = Client::new(tokend_client::Options::new("/nonexistent/tokend.sock"));
/// # assert!(matches!(token(&nowhere, &"psb".parse().unwrap()), Ok(None)));
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no daemon at the socket, or it went away twice during one call.
    #[error("the daemon cannot be reached at {}: {cause}; {}", socket.display(), remedy(cause))]
    NotReachable {
        /// The socket.
        socket: PathBuf,
        /// The error of the system. The text of this error includes it, so it is not its source too.
        cause: Arc<io::Error>,
    },
    /// The caller may not do this, or (to anyone but an operator) there is no such token.
    #[error("{message}")]
    NotAllowed {
        /// The daemon's message.
        message: String,
    },
    /// There is no such token. Only operators get this error.
    #[error("{message}")]
    UnknownToken {
        /// The daemon's message.
        message: String,
    },
    /// No token now, for a reason that may pass.
    #[error("{message}")]
    Unavailable {
        /// The daemon's message.
        message: String,
        /// Why the provider returned none.
        class: Option<ErrorClass>,
        /// When the daemon will ask the provider next.
        next_attempt: Option<SystemTime>,
    },
    /// No token until an operator acts: the provider refuses or is not trusted, or a secret on this host cannot be read.
    #[error("{message}")]
    NeedsOperator {
        /// The daemon's message.
        message: String,
        /// The class of the failure: `Secret`, `Tls`, or the provider's refusal.
        class: Option<ErrorClass>,
        /// When the daemon will try again.
        next_attempt: Option<SystemTime>,
    },
    /// The call's deadline passed.
    #[error("{message}")]
    DeadlineExceeded {
        /// The daemon's message, or this library's where the daemon was silent.
        message: String,
    },
    /// The request is not valid: a missing or unknown caller header, a request or a list in it that is too large.
    #[error("{message}")]
    InvalidRequest {
        /// The daemon's message, or this library's where it saw the fault before sending.
        message: String,
    },
    /// The daemon and this library speak no common version of the protocol. Upgrade one of them.
    #[error("{message}")]
    UnsupportedVersion {
        /// The daemon's message, or this library's.
        message: String,
    },
    /// The daemon is older than this library and does not know the request. Upgrade the daemon.
    #[error("{message}")]
    UnknownRequest {
        /// The daemon's message.
        message: String,
    },
    /// The caller or its user has too many connections or requests.
    #[error("{message}")]
    Overloaded {
        /// The daemon's message.
        message: String,
        /// When to try again, where the daemon knows it.
        next_attempt: Option<SystemTime>,
    },
    /// The provider's tokens do not live as long as asked. Ask for less.
    #[error("{message}")]
    MinTtlUnreachable {
        /// The daemon's message.
        message: String,
        /// The longest remaining lifetime at hand.
        best: Option<Duration>,
    },
    /// The daemon is stopping, and was not restarted in time.
    #[error("{message}")]
    ShuttingDown {
        /// The daemon's message.
        message: String,
    },
    /// The answer does not follow the protocol. Perhaps another program listens at the socket.
    #[error("the daemon's answer is not understood: {message}")]
    Protocol {
        /// The rule that the answer breaks.
        message: String,
    },
}

impl Error {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotReachable { .. }
            | Self::Unavailable { .. }
            | Self::DeadlineExceeded { .. }
            | Self::Overloaded { .. }
            | Self::ShuttingDown { .. } => true,
            Self::NotAllowed { .. }
            | Self::UnknownToken { .. }
            | Self::NeedsOperator { .. }
            | Self::InvalidRequest { .. }
            | Self::UnsupportedVersion { .. }
            | Self::UnknownRequest { .. }
            | Self::MinTtlUnreachable { .. }
            | Self::Protocol { .. } => false,
        }
    }

    /// When a retry may succeed, where the daemon knows it. Before that, a retry has the same result.
    pub fn next_attempt(&self) -> Option<SystemTime> {
        match self {
            Self::Unavailable { next_attempt, .. }
            | Self::NeedsOperator { next_attempt, .. }
            | Self::Overloaded { next_attempt, .. } => *next_attempt,
            _ => None,
        }
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::Protocol { message: message.into() }
    }
}

/// Advice for a caller whose user may not connect to the socket.
fn remedy(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => {
            "add this process's user to the group of the socket, and start the process again".to_owned()
        }
        _ => format!(
            "check that tokend runs, and that this is its socket ({SOCKET_VARIABLE} names another one)"
        ),
    }
}

impl From<TokenNameError> for Error {
    fn from(error: TokenNameError) -> Self {
        Self::InvalidRequest { message: error.to_string() }
    }
}

impl From<ErrorReply> for Error {
    fn from(reply: ErrorReply) -> Self {
        let ErrorReply { code, message, class, next_attempt, best_ttl_ms } = reply;
        let next_attempt = next_attempt.map(tokend_protocol::Timestamp::to_system_time);
        match code {
            ErrorCode::NotAllowed => Self::NotAllowed { message },
            ErrorCode::UnknownToken => Self::UnknownToken { message },
            ErrorCode::Unavailable => Self::Unavailable { message, class, next_attempt },
            ErrorCode::NeedsOperator => Self::NeedsOperator { message, class, next_attempt },
            ErrorCode::DeadlineExceeded => Self::DeadlineExceeded { message },
            ErrorCode::InvalidRequest => Self::InvalidRequest { message },
            ErrorCode::UnsupportedVersion => Self::UnsupportedVersion { message },
            ErrorCode::UnknownRequest => Self::UnknownRequest { message },
            ErrorCode::Overloaded => Self::Overloaded { message, next_attempt },
            ErrorCode::MinTtlUnreachable => {
                Self::MinTtlUnreachable { message, best: best_ttl_ms.map(Duration::from_millis) }
            }
            ErrorCode::ShuttingDown => Self::ShuttingDown { message },
        }
    }
}

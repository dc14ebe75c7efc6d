//! Why a call gave no answer, sorted by what the caller can do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokend_protocol::{ErrorClass, ErrorCode, ErrorReply};

/// Why a call gave no answer. The `message` is the daemon's, for a person; it holds no secret.
///
/// ```
/// use tokend_client::{Error, blocking::Client, TokenName};
///
/// /// An access token, or `None` where the service should do without for now.
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
    #[error("the daemon cannot be reached at {}: {source}", socket.display())]
    NotReachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The caller may not have it, or (to anyone but an operator) there is no such token.
    #[error("{message}")]
    NotAllowed {
        /// The daemon's words.
        message: String,
    },
    /// There is no such token. Only operators are told.
    #[error("{message}")]
    UnknownToken {
        /// The daemon's words.
        message: String,
    },
    /// No token now, for a reason that passes.
    #[error("{message}")]
    Unavailable {
        /// The daemon's words.
        message: String,
        /// Why the provider gave none.
        class: Option<ErrorClass>,
        /// When the provider will be asked next.
        next_attempt: Option<SystemTime>,
    },
    /// The provider refuses, or the daemon cannot read its own secret. An operator is needed.
    #[error("{message}")]
    Refused {
        /// The daemon's words.
        message: String,
        /// What is refused.
        class: Option<ErrorClass>,
        /// When the provider will be asked next, in case that somebody has helped.
        next_attempt: Option<SystemTime>,
    },
    /// The call's deadline passed.
    #[error("{message}")]
    DeadlineExceeded {
        /// The daemon's words, or this library's where the daemon was silent.
        message: String,
    },
    /// The request makes no sense: a missing or unknown caller header, a request that is too large.
    #[error("{message}")]
    InvalidRequest {
        /// The daemon's words, or this library's where the fault was seen before sending.
        message: String,
    },
    /// Daemon and library speak no common version of the protocol. One of them needs an upgrade.
    #[error("{message}")]
    UnsupportedVersion {
        /// The daemon's words, or this library's.
        message: String,
    },
    /// The caller has too much open or in flight.
    #[error("{message}")]
    Overloaded {
        /// The daemon's words.
        message: String,
    },
    /// The provider's tokens do not live as long as asked. Ask for less.
    #[error("{message}")]
    MinTtlUnreachable {
        /// The daemon's words.
        message: String,
        /// The longest remaining lifetime at hand.
        best: Option<Duration>,
    },
    /// The daemon is stopping, and was so again after a second connection.
    #[error("{message}")]
    ShuttingDown {
        /// The daemon's words.
        message: String,
    },
    /// The answer is not of the protocol. What listens at the socket may be no tokend.
    #[error("the daemon's answer is not understood: {message}")]
    Protocol {
        /// What is wrong with it.
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
            | Self::Refused { .. }
            | Self::InvalidRequest { .. }
            | Self::UnsupportedVersion { .. }
            | Self::MinTtlUnreachable { .. }
            | Self::Protocol { .. } => false,
        }
    }

    /// When the provider will be asked next, where the daemon said so. Before that, a retry gives the same.
    pub fn next_attempt(&self) -> Option<SystemTime> {
        match self {
            Self::Unavailable { next_attempt, .. } | Self::Refused { next_attempt, .. } => *next_attempt,
            _ => None,
        }
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::Protocol { message: message.into() }
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
            ErrorCode::NeedsOperator => Self::Refused { message, class, next_attempt },
            ErrorCode::DeadlineExceeded => Self::DeadlineExceeded { message },
            ErrorCode::InvalidRequest | ErrorCode::UnknownRequest => Self::InvalidRequest { message },
            ErrorCode::UnsupportedVersion => Self::UnsupportedVersion { message },
            ErrorCode::Overloaded => Self::Overloaded { message },
            ErrorCode::MinTtlUnreachable => {
                Self::MinTtlUnreachable { message, best: best_ttl_ms.map(Duration::from_millis) }
            }
            ErrorCode::ShuttingDown => Self::ShuttingDown { message },
        }
    }
}

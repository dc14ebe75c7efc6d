//! Where the daemon is and what every call asks of it.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokend_protocol::Variant;

/// The daemon's socket, unless it is configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tokend/tokend.sock";

/// The environment variable that names another socket.
pub const SOCKET_VARIABLE: &str = "TOKEND_SOCKET";

/// How long a call waits, unless told otherwise: as long as the daemon gives one attempt at a provider.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// Where the daemon is and what every call asks of it; the same for both clients.
///
/// ```
/// use std::time::Duration;
/// use tokend_client::Options;
///
/// let options = Options::from_env().deadline(Duration::from_secs(2)).min_ttl(Duration::from_secs(60));
/// # let _ = options;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub(crate) socket: PathBuf,
    pub(crate) terms: Terms,
}

/// The part of the options that may differ from call to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) deadline: Duration,
    pub(crate) min_ttl: Duration,
    pub(crate) variant: Variant,
}

impl Options {
    /// The daemon at this socket, a deadline of [`DEFAULT_DEADLINE`], any valid token.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let terms =
            Terms { deadline: DEFAULT_DEADLINE, min_ttl: Duration::ZERO, variant: Variant::default() };
        Self { socket: socket.into(), terms }
    }

    /// As [`Options::new`], with the socket that [`SOCKET_VARIABLE`] names, or else [`DEFAULT_SOCKET`].
    pub fn from_env() -> Self {
        let named = env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
        Self::new(named.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from))
    }

    /// How long each call may take in all: connecting, asking, waiting, reading.
    ///
    /// The daemon is told, and answers in time with the best it has. Only where it does not, the call ends
    /// by itself a quarter of a second later. Zero asks only for what the daemon holds.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.terms.deadline = deadline;
        self
    }

    /// The least remaining lifetime with which a token is of use. Zero takes any valid token.
    #[must_use]
    pub fn min_ttl(mut self, min_ttl: Duration) -> Self {
        self.terms.min_ttl = min_ttl;
        self
    }

    /// The form in which tokens are wanted: fewer scopes, certain resources or audiences, out of what the
    /// daemon's configuration lets callers choose.
    #[must_use]
    pub fn variant(mut self, variant: Variant) -> Self {
        self.terms.variant = variant;
        self
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// The daemon at [`DEFAULT_SOCKET`]. Programs that a person configures rather use [`Options::from_env`].
impl Default for Options {
    fn default() -> Self {
        Self::new(DEFAULT_SOCKET)
    }
}

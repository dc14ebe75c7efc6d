//! The socket of the daemon, and the defaults of every call.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The daemon's default socket.
pub const DEFAULT_SOCKET: &str = "/run/tokend/tokend.sock";

/// The environment variable that names another socket.
pub const SOCKET_VARIABLE: &str = "TOKEND_SOCKET";

/// The default deadline of a call: as long as the daemon allows one attempt at a provider.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// The socket of the daemon, and the defaults of every call; the same for both clients.
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
    pub(crate) deadline: Duration,
    pub(crate) min_ttl: Duration,
}

impl Options {
    /// The daemon at this socket, a deadline of [`DEFAULT_DEADLINE`], and any valid token.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), deadline: DEFAULT_DEADLINE, min_ttl: Duration::ZERO }
    }

    /// As [`Options::new`], with the socket that [`SOCKET_VARIABLE`] names, or else [`DEFAULT_SOCKET`].
    pub fn from_env() -> Self {
        let named = env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
        Self::new(named.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from))
    }

    /// How long each call may take in all: connecting, asking, waiting, reading.
    ///
    /// The daemon knows the deadline and answers in time. If it does not, the call ends a quarter of a second later.
    /// With zero, the daemon does not wait for a provider.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The shortest remaining lifetime that the caller can use. Zero accepts any valid token.
    #[must_use]
    pub fn min_ttl(mut self, min_ttl: Duration) -> Self {
        self.min_ttl = min_ttl;
        self
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// The daemon at [`DEFAULT_SOCKET`]. Prefer [`Options::from_env`] in programs that a person configures.
impl Default for Options {
    fn default() -> Self {
        Self::new(DEFAULT_SOCKET)
    }
}

//! The small types that several messages share.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in wall time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Converts to the standard library's type. A point that this type cannot hold becomes the epoch.
    pub fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.0)).unwrap_or(UNIX_EPOCH)
    }
}

/// A point on `CLOCK_BOOTTIME`: milliseconds since the host booted, suspension included.
///
/// Caller and daemon read the same clock, which cannot be set, so two such points can be compared even if the
/// wall clock changes. A point before the boot is 0. Only a caller in a time namespace of its own
/// (`time_namespaces(7)`) may read another `CLOCK_BOOTTIME`; it uses the [`Timestamp`] beside this field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootInstant(pub u64);

impl BootInstant {
    /// The time from `earlier` to here; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Identifies a token without revealing it: eight bytes of a keyed hash.
///
/// Only the daemon has the key, so a fingerprint says nothing about the token and cannot be used to test a
/// guess. Its text form is sixteen hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 8]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The text is not a [`Fingerprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is sixteen hexadecimal digits")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(FingerprintError);
        }
        u64::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| FingerprintError)
    }
}

/// How long a caller waits, and how long the token must last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallOptions {
    /// Milliseconds from the arrival of the request until the caller's deadline. With 0 the daemon answers
    /// from what it holds and waits for no provider.
    pub deadline_ms: u32,
    /// The shortest remaining lifetime that the caller can use, in milliseconds. 0 accepts any valid token.
    pub min_ttl_ms: u32,
}

/// The variant of a token that a caller wants, within what the configuration permits. An empty list stands
/// for the configured scopes, resources or audiences.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Variant {
    /// Only these scopes (RFC 6749 section 3.3).
    pub scope: Vec<String>,
    /// For these resources (RFC 8707).
    pub resource: Vec<String>,
    /// For these audiences.
    pub audience: Vec<String>,
}

impl Variant {
    /// Whether this is the token as configured.
    pub fn is_empty(&self) -> bool {
        self.scope.is_empty() && self.resource.is_empty() && self.audience.is_empty()
    }
}

/// The condition of a token. In the first three the daemon holds a valid token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum State {
    /// 0: valid, and not due for renewal.
    Fresh,
    /// 1: valid, and being renewed.
    Refreshing,
    /// 2: valid, and the last attempt to renew it failed.
    Degraded,
    /// 3: no valid token, but no failure: the first attempt has not ended, or an unused token has expired.
    Pending,
    /// 4: no valid token; the last attempt failed for a reason that may pass.
    Unavailable,
    /// 5: no valid token until an operator acts: the provider refuses or is not trusted, or a secret on this host is
    /// unreadable.
    NeedsOperator,
}

impl State {
    /// The state in lower case, with hyphens.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Refreshing => "refreshing",
            Self::Degraded => "degraded",
            Self::Pending => "pending",
            Self::Unavailable => "unavailable",
            Self::NeedsOperator => "needs-operator",
        }
    }

    /// Whether the daemon holds a valid token.
    pub fn is_valid(self) -> bool {
        matches!(self, Self::Fresh | Self::Refreshing | Self::Degraded)
    }
}

/// Why a token request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorClass {
    /// 0: no connection: DNS, routing, a refused or reset connection.
    Unreachable,
    /// 1: the provider did not answer in time.
    Timeout,
    /// 2: the TLS handshake or the provider's certificate is not valid.
    Tls,
    /// 3: the provider asks for fewer requests (429).
    Throttled,
    /// 4: the provider failed (5xx, `temporarily_unavailable`, `server_error`).
    Server,
    /// 5: the answer is not a token response (RFC 6749 section 5.1).
    Malformed,
    /// 6: the provider refused the request (RFC 6749 section 5.2), or gave a token that the daemon must not use.
    Refused,
    /// 7: a secret that the request needs cannot be read on this host. No request was sent.
    Secret,
    /// 8: a fault in the daemon.
    Internal,
}

impl ErrorClass {
    /// The class as one lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Throttled => "throttled",
            Self::Server => "server",
            Self::Malformed => "malformed",
            Self::Refused => "refused",
            Self::Secret => "secret",
            Self::Internal => "internal",
        }
    }
}

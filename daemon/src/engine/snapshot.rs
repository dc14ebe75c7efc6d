//! The published state of a credential. Token and health are separate: a valid token is served whatever the health
//! says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{Fingerprint, Secret, State};

use crate::clock::{Instant, Validity};
use crate::oauth::SecretInUse;
use crate::store::record::Failed;

/// A token that is held.
#[derive(Debug)]
pub struct Token {
    /// The access token.
    pub secret: Secret,
    /// Its name in logs and replies.
    pub fingerprint: Fingerprint,
    /// From when to when it is valid.
    pub validity: Validity,
    /// The token type for the `Authorization` header.
    pub token_type: Arc<str>,
    /// The granted scopes, separated by spaces, where the provider named them.
    pub scope: Option<Arc<str>>,
}

/// The state of a credential at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The newest token, valid or expired.
    pub token: Option<Arc<Token>>,
    /// Whether a request is under way, or waits for its turn.
    pub in_flight: bool,
    /// The last failure since the last success, or the throttle's reason for not asking.
    pub last_error: Option<Failed>,
    /// Failures since the last success.
    pub failures: u32,
    /// When the provider is asked next; `None` while the token is not renewed because nobody uses it.
    pub next_attempt: Option<Instant>,
    /// Token requests sent so far.
    pub requests: u64,
    /// Tolerated deviations from the RFCs so far.
    pub deviations: BTreeMap<&'static str, u64>,
    /// The client secret that brought the newest token, where several are configured.
    pub client_secret: Option<SecretInUse>,
    /// By how many seconds the provider's clock was ahead of this host's at its last reply.
    pub clock_skew: Option<i64>,
}

impl Snapshot {
    /// The token, if it is valid for at least `min_ttl`.
    pub fn usable(&self, now: Instant, min_ttl: Duration) -> Option<Arc<Token>> {
        self.token.as_ref().filter(|token| token.validity.is_usable(now, min_ttl)).cloned()
    }

    /// The state for `status`, `list` and the log.
    pub fn state(&self, now: Instant) -> State {
        match (self.usable(now, Duration::ZERO), &self.last_error) {
            (Some(_), Some(_)) => State::Degraded,
            (Some(_), None) if self.in_flight || self.next_attempt.is_some_and(|at| at <= now) => {
                State::Refreshing
            }
            (Some(_), None) => State::Fresh,
            (None, None) => State::Pending,
            (None, Some(failed)) if failed.needs_operator() => State::NeedsOperator,
            (None, Some(_)) => State::Unavailable,
        }
    }
}

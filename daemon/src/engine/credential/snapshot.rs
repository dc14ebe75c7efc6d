//! What readers see of a credential. Token and health are separate: a valid token is served whatever the
//! health says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{ErrorClass, Fingerprint, Secret, State};

use crate::clock::{Instant, Validity};
use crate::oauth::{ClockSkew, Deviation, SecretInUse};
use crate::store::record::Failed;

/// A token that is held.
#[derive(Debug)]
pub struct Token {
    /// The access token.
    pub secret: Secret,
    /// Its name in logs and replies.
    pub fingerprint: Fingerprint,
    /// From when to when it is valid.
    pub life: Validity,
}

/// All there is to know about a credential at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The newest token, valid or expired.
    pub token: Option<Arc<Token>>,
    /// Whether a request is under way.
    pub in_flight: bool,
    /// The last failure since the last success.
    pub last_error: Option<Failed>,
    /// Failures since the last success.
    pub failures: u32,
    /// When the provider will be asked next; `None` while nobody uses the token and it may rest.
    pub next_attempt: Option<Instant>,
    /// Token requests sent so far.
    pub requests: u64,
    /// Tolerated departures from the RFCs so far.
    pub deviations: BTreeMap<Deviation, u64>,
    /// The client secret that brought the newest token, where several are configured.
    pub client_secret: Option<SecretInUse>,
    /// How far the provider's clock was off at its last reply.
    pub clock_skew: Option<ClockSkew>,
}

impl Snapshot {
    /// Nothing yet.
    pub(super) fn pending(next_attempt: Option<Instant>) -> Self {
        Self {
            token: None,
            in_flight: false,
            last_error: None,
            failures: 0,
            next_attempt,
            requests: 0,
            deviations: BTreeMap::new(),
            client_secret: None,
            clock_skew: None,
        }
    }

    /// The token, if it is valid and lasts so long.
    pub fn usable(&self, now: Instant, min_ttl: Duration) -> Option<Arc<Token>> {
        self.token.as_ref().filter(|token| token.life.is_usable(now, min_ttl)).cloned()
    }

    /// Whether a valid token is held whose whole lifetime is shorter than asked, so that a new one would not
    /// do either.
    pub fn falls_short(&self, now: Instant, min_ttl: Duration) -> bool {
        self.usable(now, Duration::ZERO).is_some_and(|token| token.life.lifetime < min_ttl)
    }

    /// Whether the provider is not to be asked yet, not even because a caller waits: the last attempt for this
    /// very token failed, or the issuer asked for quiet. A secret that cannot be read is no reason: trying again
    /// costs the provider nothing.
    pub fn is_held_back(&self, now: Instant) -> bool {
        let held = match self.last_error.as_ref().map(|failed| failed.class) {
            None | Some(ErrorClass::Secret) => false,
            Some(ErrorClass::Throttled) => true,
            Some(_) => self.failures > 0,
        };
        held && !self.in_flight && self.next_attempt.is_some_and(|at| now < at)
    }

    /// Whether the last attempt failed in a way that a change on this host may recovery.
    pub(super) fn awaits_change(&self) -> bool {
        self.last_error.as_ref().is_some_and(Failed::needs_operator)
    }

    /// The condition in one word.
    pub fn state(&self, now: Instant) -> State {
        match (self.usable(now, Duration::ZERO), &self.last_error) {
            (Some(_), Some(_)) => State::Degraded,
            (Some(_), None) if self.in_flight || self.next_attempt.is_some_and(|at| at <= now) => {
                State::Refreshing
            }
            (Some(_), None) => State::Fresh,
            (None, None) => State::Pending,
            (None, Some(failed)) if failed.needs_operator() => State::Refused,
            (None, Some(_)) => State::Unavailable,
        }
    }
}

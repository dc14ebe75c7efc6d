//! Limits the requests to providers, over all their tokens. Knows no tokens.
//!
//! - [`OriginThrottle`], one per host (scheme, host and port): limits concurrent requests and their rate, puts
//!   callers first, and knows which clients a `Retry-After` keeps quiet.
//! - [`EndpointThrottle`], one per token endpoint: a circuit breaker. While it is open, one request at a time probes the
//!   endpoint, at growing intervals. Realms or tenants of one host have endpoints of their own, so a failing one does not
//!   slow the others. Where the endpoint is discovered, the configured issuer's URL stands for it.
//! - [`ClientThrottle`], one per client of a token endpoint: the place where all of them are asked.
//!
//! A quota is usually one client's, and a fault may be one token's. So a `Retry-After` holds back only the client that
//! got it, until a second client gets one; and failures keep callers only from the token that failed, until a second
//! token fails.

mod endpoint;
mod origin;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokend_protocol::ErrorClass;

pub use self::endpoint::{Admission, EndpointThrottle};
pub use self::origin::OriginThrottle;
use crate::clock::{Clock, Instant};
use crate::engine::credential::Failed;
use crate::store::ThrottleWriter;
use crate::store::record::ThrottleRecord;

/// How much longer the clients wait whose `Retry-After` became the host's. The others go first, which shows whether
/// the host meant them too.
const YIELD: Duration = Duration::from_secs(6);

/// The throttle of one client of a token endpoint.
#[derive(Debug, Default)]
pub struct ClientThrottle {
    pub endpoint: Arc<EndpointThrottle>,
    /// Distinguishes the client from the others of its host.
    name: Arc<str>,
    writer: ThrottleWriter,
    /// The details of the last token request.
    facts: Mutex<Facts>,
}

/// The details of a token request, for operators: see [`Outcome::facts`](crate::oauth::Outcome::facts).
pub type Facts = Arc<[(&'static str, Box<str>)]>;

/// How urgent a token request is, by who needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    Scheduled,
    /// A caller that waits. It goes first, and probes an endpoint that is down sooner than the schedule does.
    Needed {
        /// Whether the last request for its token failed.
        has_failed: bool,
    },
    /// An operator. It goes first, and only the `Retry-After` of its own client applies.
    Ordered,
}

/// The reason for which no request may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack {
    pub until: Instant,
    /// [`ErrorClass::Throttled`], or the last failure of the endpoint.
    pub class: ErrorClass,
    /// Whether another request, which is under way, will show whether the endpoint is up again.
    pub by_probe: bool,
}

impl HeldBack {
    /// The reason as a failure of a token.
    pub fn failed(self, now: Instant) -> Failed {
        let message = match self.class {
            ErrorClass::Throttled => "the provider asked for fewer requests",
            _ => "the last requests to the token endpoint failed",
        };
        Failed::new(self.class, message, now)
    }
}

impl ClientThrottle {
    /// The throttle of a client whose provider asked it for no requests until `quiet_until`. `name` distinguishes the
    /// client from the others of its host.
    pub fn new(
        endpoint: Arc<EndpointThrottle>,
        name: &str,
        writer: ThrottleWriter,
        quiet_until: Option<Instant>,
        now: Instant,
    ) -> Self {
        writer.changed(&ThrottleRecord { quiet_until, ..ThrottleRecord::default() });
        let throttle = Self { endpoint, name: name.into(), writer, facts: Mutex::default() };
        if let Some(until) = quiet_until {
            throttle.origin().keep_quiet(&throttle.name, until, now);
        }
        throttle
    }

    pub fn origin(&self) -> &OriginThrottle {
        &self.endpoint.origin
    }

    /// Waits for a slot, callers first, unless the circuit breaker or a `Retry-After` forbids the request.
    pub async fn admit(&self, urgency: Urgency, clock: &Clock) -> Result<Admission<'_>, HeldBack> {
        loop {
            // Checked before the wait too, so that nobody waits for a slot that cannot be used.
            let admitted = if let Err(held) = self.check(urgency, clock.now()) {
                Err(held)
            } else {
                let permit = self.origin().line(urgency).acquire().await.ok();
                // Boxed, because the others in line wait for the permit only.
                Box::pin(self.origin().slot(permit, urgency, clock, |now| self.check(urgency, now))).await
            };
            let Err(held) = admitted else { return Ok(self.endpoint.admitted(clock.now())) };
            if !held.by_probe || urgency == Urgency::Scheduled {
                return Err(held);
            }
            // A caller waits for what the probe finds out.
            Box::pin(self.probed(urgency, clock)).await;
        }
    }

    /// Waits for a change, unless the probe for which the request waits has ended.
    async fn probed(&self, urgency: Urgency, clock: &Clock) {
        let changed = self.origin().changed();
        if self.check(urgency, clock.now()).is_err_and(|held| held.by_probe) {
            changed.await;
        }
    }

    /// Why a caller may not cause a request now, for a token whose last request failed or did not.
    pub fn caller_held_back(&self, has_failed: bool, now: Instant) -> Option<HeldBack> {
        self.check(Urgency::Needed { has_failed }, now).err().filter(|held| !held.by_probe)
    }

    /// When a scheduled request that is due at `at` may be sent, as far as is known now.
    pub fn scheduled_from(&self, at: Instant, now: Instant) -> Instant {
        self.check(Urgency::Scheduled, now).map_or_else(|held| held.until.max(at), |()| at)
    }

    /// Sends nothing before `until`, the end of a `Retry-After`.
    pub fn keep_quiet(&self, until: Instant, now: Instant) {
        if self.origin().keep_quiet(&self.name, until, now) {
            self.writer.changed(&ThrottleRecord { quiet_until: Some(until), ..ThrottleRecord::default() });
        }
    }

    /// Returns these details of a token request. Tokens for which they are the same share them.
    pub fn share(&self, facts: Facts) -> Facts {
        let mut last = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != facts {
            *last = facts;
        }
        Arc::clone(&last)
    }

    /// Notes that the client was given a token.
    pub fn granted(&self) {
        self.endpoint.reset();
        self.origin().granted(&self.name);
    }

    /// Checks `Retry-After` and the circuit breaker.
    fn check(&self, urgency: Urgency, now: Instant) -> Result<(), HeldBack> {
        let quiet = self.origin().quiet_until(&self.name, urgency, now);
        let quiet = quiet.map(|until| HeldBack { until, class: ErrorClass::Throttled, by_probe: false });
        let breaker = self.endpoint.held_back(urgency, now);
        let latest = [quiet, breaker].into_iter().flatten().max_by_key(|held| held.until);
        latest.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;

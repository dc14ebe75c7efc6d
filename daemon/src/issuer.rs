//! The traffic to one issuer, over all its tokens: how many requests at once, and none while it asks for
//! quiet. Knows no tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::Instant;
use crate::config::{CredentialSettings, Endpoint};

/// Requests in flight at one issuer. Enough for a start with many tokens to be quick, few enough that no
/// provider takes it for an attack.
const IN_FLIGHT_MAX: usize = 4;

/// At start, an issuer's requests are spread over this long for each of its tokens beyond those that may be
/// in flight at once.
const SPREAD_PER_TOKEN: Duration = Duration::from_millis(50);

/// One issuer's traffic.
#[derive(Debug)]
pub struct Issuer {
    in_flight: Semaphore,
    /// Held for a read or a write of one value, never across an await.
    quiet_until: Mutex<Option<Instant>>,
}

impl Default for Issuer {
    fn default() -> Self {
        Self { in_flight: Semaphore::new(IN_FLIGHT_MAX), quiet_until: Mutex::new(None) }
    }
}

impl Issuer {
    /// Waits until one more request may be in flight. It may as long as the permit lives.
    pub async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        // Fails only for a closed semaphore, and nothing closes it.
        self.in_flight.acquire().await.ok()
    }

    /// Until when no request may be sent, if the issuer asked for quiet and it is not over.
    pub fn quiet_until(&self, now: Instant) -> Option<Instant> {
        self.lock().filter(|until| *until > now)
    }

    /// Sends nothing before `until`.
    pub fn keep_quiet(&self, until: Instant) {
        let mut quiet = self.lock();
        *quiet = (*quiet).max(Some(until));
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All issuers that have tokens.
#[derive(Debug, Default)]
pub struct Issuers(HashMap<String, Weak<Issuer>>);

impl Issuers {
    /// The issuer of these settings.
    pub fn of(&mut self, settings: &CredentialSettings) -> Arc<Issuer> {
        let origin = origin(settings);
        if let Some(known) = self.0.get(&origin).and_then(Weak::upgrade) {
            return known;
        }
        self.0.retain(|_, issuer| issuer.strong_count() > 0);
        let issuer = Arc::new(Issuer::default());
        self.0.insert(origin, Arc::downgrade(&issuer));
        issuer
    }
}

/// What tells one issuer from another: scheme, host and port of the endpoint.
pub fn origin(settings: &CredentialSettings) -> String {
    let (Endpoint::Token(url) | Endpoint::Issuer(url)) = &settings.endpoint;
    url.origin().ascii_serialization()
}

/// When the first request of a token goes out, after a start with `tokens` of the same issuer. `roll` is in
/// `0..1`. A few tokens go out at once; ten thousand are spread over eight minutes.
pub fn start_delay(tokens: usize, roll: f64) -> Duration {
    let waiting = u32::try_from(tokens.saturating_sub(IN_FLIGHT_MAX)).unwrap_or(u32::MAX);
    SPREAD_PER_TOKEN.saturating_mul(waiting).mul_f64(roll.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_ends_by_itself_and_is_never_shortened() {
        let issuer = Issuer::default();
        let at = |seconds| Instant::at(Duration::from_secs(seconds));
        issuer.keep_quiet(at(100));
        issuer.keep_quiet(at(50));
        assert_eq!(issuer.quiet_until(at(99)), Some(at(100)));
        assert_eq!(issuer.quiet_until(at(100)), None);
    }

    #[test]
    fn a_start_with_few_tokens_is_immediate_and_one_with_many_is_spread() {
        assert_eq!(start_delay(4, 0.9), Duration::ZERO);
        assert_eq!(start_delay(10_004, 0.5), Duration::from_secs(250));
    }
}

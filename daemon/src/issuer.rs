//! The traffic to one issuer, over all its tokens: how many requests at once, none while it asks for quiet,
//! and one at a time, ever more seldom, while it is down. Knows no tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokend_protocol::ErrorClass;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::Instant;
use crate::config::{CredentialSettings, Endpoint};
use crate::policy::refresh::{Jitter, issuer_back_off};

/// Requests in flight at one issuer. Enough for a start with many tokens to be quick, few enough that no
/// provider takes it for an attack.
const IN_FLIGHT_MAX: usize = 4;

/// At start, an issuer's requests are spread over this long for each of its tokens beyond those that may be
/// in flight at once.
const SPREAD_PER_TOKEN: Duration = Duration::from_millis(50);

/// Failures in a row, over all its tokens, after which an issuer is taken to be down. A server that fails now
/// and then, or for one client alone, is not.
const DOWN_AFTER: u32 = 3;

/// How long a token waits to ask again while another one finds out whether the issuer is up again.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// One issuer's traffic.
#[derive(Debug)]
pub struct Issuer {
    in_flight: Semaphore,
    /// Held for a look or a change, never across an await.
    condition: Mutex<Condition>,
}

#[derive(Debug, Default)]
struct Condition {
    /// Until when it asked for no requests (`Retry-After`).
    quiet_until: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    /// What the last of them was.
    class: Option<ErrorClass>,
    /// When it may be tried again, while it is down.
    try_at: Option<Instant>,
    /// Whether a request is under way that will show whether it is up again.
    probing: bool,
}

/// Who wants a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// The schedule.
    Scheduled,
    /// A caller that waits, or an operator. Does not have to suffer for other tokens' failures.
    Needed,
}

/// Why no request may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// When to ask again.
    pub until: Instant,
    /// [`ErrorClass::Throttled`], or what is wrong with the issuer.
    pub class: ErrorClass,
}

/// The right to send one request, for as long as it is held.
#[derive(Debug)]
pub struct Admission<'a> {
    issuer: &'a Issuer,
    is_probe: bool,
    _in_flight: Option<SemaphorePermit<'a>>,
}

impl Default for Issuer {
    fn default() -> Self {
        Self { in_flight: Semaphore::new(IN_FLIGHT_MAX), condition: Mutex::default() }
    }
}

impl Issuer {
    /// Waits for a place among the requests in flight, and tells whether a request may be sent then.
    pub async fn admit(&self, urgency: Urgency, now: impl Fn() -> Instant) -> Result<Admission<'_>, Held> {
        // Looked at before the wait too, so that nobody queues for a place that is of no use.
        self.lock().check(urgency, now())?;
        // Fails only for a closed semaphore, and nothing closes it.
        let in_flight = self.in_flight.acquire().await.ok();
        let mut condition = self.lock();
        condition.check(urgency, now())?;
        let is_probe = condition.try_at.is_some() && !condition.probing;
        condition.probing |= is_probe;
        drop(condition);
        Ok(Admission { issuer: self, is_probe, _in_flight: in_flight })
    }

    /// Sends nothing before `until`, because the issuer asked for it.
    pub fn keep_quiet(&self, until: Instant) {
        let mut condition = self.lock();
        condition.quiet_until = condition.quiet_until.max(Some(until));
    }

    /// Notes that it answered.
    pub fn answered(&self) {
        let mut condition = self.lock();
        condition.failures = 0;
        condition.class = None;
        condition.try_at = None;
    }

    /// Notes that a request failed in a way that speaks of the issuer and not of one token.
    pub fn failed(&self, class: ErrorClass, now: Instant, jitter: Jitter) {
        let mut condition = self.lock();
        // Requests that were under way together are one failure.
        if condition.try_at.is_some_and(|at| at > now) {
            return;
        }
        condition.failures = condition.failures.saturating_add(1);
        condition.class = Some(class);
        if condition.failures >= DOWN_AFTER {
            condition.try_at = Some(now.after(issuer_back_off(condition.failures - DOWN_AFTER + 1, jitter)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    fn check(&self, urgency: Urgency, now: Instant) -> Result<(), Held> {
        if let Some(until) = self.quiet_until.filter(|until| *until > now) {
            return Err(Held { until, class: ErrorClass::Throttled });
        }
        let class = self.class.unwrap_or(ErrorClass::Unreachable);
        let (Urgency::Scheduled, Some(try_at)) = (urgency, self.try_at) else { return Ok(()) };
        if try_at > now {
            return Err(Held { until: try_at, class });
        }
        if self.probing { Err(Held { until: now.after(PROBE_WAIT), class }) } else { Ok(()) }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.issuer.lock().probing = false;
        }
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
    use futures_util::FutureExt;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::at(Duration::from_secs(seconds))
    }

    fn admit(issuer: &Issuer, urgency: Urgency, seconds: u64) -> Option<Result<Admission<'_>, Held>> {
        issuer.admit(urgency, || at(seconds)).now_or_never()
    }

    fn held_until(issuer: &Issuer, urgency: Urgency, seconds: u64) -> Option<Instant> {
        admit(issuer, urgency, seconds).unwrap().err().map(|held| held.until)
    }

    fn fail(issuer: &Issuer, times: u32, seconds: u64) {
        for _ in 0..times {
            issuer.failed(ErrorClass::Server, at(seconds), Jitter::new(0.5));
        }
    }

    #[test]
    fn quiet_holds_back_everybody_ends_by_itself_and_is_never_shortened() {
        let issuer = Issuer::default();
        issuer.keep_quiet(at(100));
        issuer.keep_quiet(at(50));
        for urgency in [Urgency::Scheduled, Urgency::Needed] {
            assert_eq!(held_until(&issuer, urgency, 99), Some(at(100)));
            assert_eq!(held_until(&issuer, urgency, 100), None);
        }
    }

    #[test]
    fn no_more_than_four_requests_are_in_flight() {
        let issuer = Issuer::default();
        let admitted: Vec<_> = (0..4).map(|_| admit(&issuer, Urgency::Needed, 0).unwrap().unwrap()).collect();
        assert!(admit(&issuer, Urgency::Needed, 0).is_none(), "it waits for a place");
        drop(admitted);
        assert!(admit(&issuer, Urgency::Needed, 0).is_some());
    }

    #[test]
    fn an_issuer_is_down_after_failures_in_a_row_and_up_with_its_first_answer() {
        let issuer = Issuer::default();
        fail(&issuer, 2, 0);
        assert_eq!(held_until(&issuer, Urgency::Scheduled, 0), None, "now and then is not down");
        fail(&issuer, 1, 0);
        assert_eq!(held_until(&issuer, Urgency::Scheduled, 0), Some(at(1)));
        assert_eq!(
            held_until(&issuer, Urgency::Needed, 0),
            None,
            "a caller does not suffer for other tokens"
        );
        issuer.answered();
        assert_eq!(held_until(&issuer, Urgency::Scheduled, 0), None);
    }

    #[test]
    fn while_down_one_request_at_a_time_finds_out_ever_more_seldom() {
        let issuer = Issuer::default();
        fail(&issuer, 3, 0);
        let probe = admit(&issuer, Urgency::Scheduled, 1).unwrap().unwrap();
        assert_eq!(held_until(&issuer, Urgency::Scheduled, 1), Some(at(2)), "another one is finding out");
        fail(&issuer, 5, 1);
        drop(probe);
        assert_eq!(held_until(&issuer, Urgency::Scheduled, 1), Some(at(3)), "five at once are one failure");
        assert_eq!(held_until(&issuer, Urgency::Scheduled, 3), None);
    }

    #[test]
    fn a_probe_that_is_given_up_leaves_the_way_to_the_next() {
        let issuer = Issuer::default();
        fail(&issuer, 3, 0);
        drop(admit(&issuer, Urgency::Scheduled, 1));
        assert_eq!(held_until(&issuer, Urgency::Scheduled, 1), None);
    }

    #[test]
    fn a_start_with_few_tokens_is_immediate_and_one_with_many_is_spread() {
        assert_eq!(start_delay(4, 0.9), Duration::ZERO);
        assert_eq!(start_delay(10_004, 0.5), Duration::from_secs(250));
    }
}

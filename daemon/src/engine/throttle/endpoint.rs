//! The circuit breaker of one token endpoint.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokend_protocol::ErrorClass;

use super::{HeldBack, OriginThrottle, Urgency};
use crate::clock::Instant;
use crate::engine::schedule::endpoint_back_off;
use crate::store::ThrottleWriter;
use crate::store::record::ThrottleRecord;

/// Failures in a row, over all its tokens, after which an endpoint is taken to be down. Occasional failures do not reach
/// it.
const DOWN_AFTER: u32 = 3;

/// How long a token waits while the request of another one probes the endpoint.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// How long after the last request a caller without a token may probe an endpoint that is down, although the back-off is
/// longer.
const CALLER_PROBE_GAP: Duration = Duration::from_secs(30);

/// The circuit breaker of one token endpoint, and the throttle of its host.
#[derive(Debug, Default)]
pub struct EndpointThrottle {
    pub origin: Arc<OriginThrottle>,
    /// Held for a look or a change, never across an await.
    breaker: Mutex<Breaker>,
    writer: ThrottleWriter,
}

/// The right to send one request, for as long as it is held.
#[derive(Debug)]
pub struct Admission<'a> {
    endpoint: &'a EndpointThrottle,
    is_probe: bool,
}

#[derive(Debug, Default)]
struct Breaker {
    record: ThrottleRecord,
    /// Whether a request is under way that will show whether the endpoint is up again.
    probing: bool,
    last_sent: Option<Instant>,
    /// How many tokens began to fail since the last answer. While it is one, the fault may be the token's.
    failing_tokens: u32,
}

impl EndpointThrottle {
    /// A breaker in the state of `record`, for an endpoint on the host of `origin`.
    pub fn new(origin: Arc<OriginThrottle>, writer: ThrottleWriter, record: ThrottleRecord) -> Self {
        // Otherwise the next crash would restore a state that an orderly restart has dropped.
        writer.changed(&record);
        // Which tokens failed is not known any more.
        let breaker = Breaker { record, failing_tokens: record.failures, ..Breaker::default() };
        Self { origin, breaker: Mutex::new(breaker), writer }
    }

    /// Resets the circuit breaker: the endpoint answered, or the cause of its failures may have ended.
    pub fn reset(&self) {
        self.change(|breaker| {
            breaker.record = ThrottleRecord::default();
            breaker.failing_tokens = 0;
        });
    }

    /// Counts a failure of the endpoint. `is_first` is whether the token had not failed since its last success.
    pub fn failed(&self, class: ErrorClass, is_first: bool, now: Instant, jitter: f64) {
        self.change(|Breaker { record, failing_tokens, .. }| {
            *failing_tokens = failing_tokens.saturating_add(is_first.into());
            // While the breaker is open, requests that were sent together count as one failure.
            if record.try_at.is_some_and(|at| at > now) {
                return;
            }
            record.failures = record.failures.saturating_add(1);
            record.class = Some(class);
            if record.failures >= DOWN_AFTER {
                let back_off = endpoint_back_off(record.failures - DOWN_AFTER + 1, jitter);
                record.try_at = Some(now.after(back_off));
            }
        });
    }

    /// Why a request is held back.
    pub(super) fn held_back(&self, urgency: Urgency, now: Instant) -> Option<HeldBack> {
        let breaker = self.lock();
        let try_at = breaker.record.try_at?;
        let opens = match urgency {
            Urgency::Scheduled => try_at,
            Urgency::Needed { has_failed } if has_failed || breaker.failing_tokens > 1 => {
                breaker.last_sent.map_or(try_at, |at| at.after(CALLER_PROBE_GAP).min(try_at))
            }
            Urgency::Needed { .. } | Urgency::Ordered => return None,
        };
        let by_probe = opens <= now && breaker.probing;
        let until = if by_probe { now.after(PROBE_WAIT) } else { opens };
        let class = breaker.record.class.unwrap_or(ErrorClass::Unreachable);
        (until > now).then_some(HeldBack { until, class, by_probe })
    }

    /// Begins a request.
    pub(super) fn admitted(&self, now: Instant) -> Admission<'_> {
        let mut breaker = self.lock();
        let is_probe = breaker.record.try_at.is_some() && !breaker.probing;
        breaker.probing |= is_probe;
        breaker.last_sent = Some(now);
        Admission { endpoint: self, is_probe }
    }

    /// Changes the breaker, and stores it if it differs.
    fn change(&self, change: impl FnOnce(&mut Breaker)) {
        let mut breaker = self.lock();
        let before = breaker.record;
        change(&mut breaker);
        let after = breaker.record;
        drop(breaker);
        if after != before {
            self.writer.changed(&after);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.endpoint.lock().probing = false;
        }
        self.endpoint.origin.ended();
    }
}

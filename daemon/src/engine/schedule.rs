//! The policy of a credential: which callers get the held token, when it is renewed, how long a failure backs off.
//!
//! Pure functions. The time and the jitter are arguments; the jitter is a random number in `0..1`. All durations scale
//! with the lifetime, so that a token of ten seconds and one of a year are both renewed in time.

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::ErrorClass;

use crate::clock::{Instant, Validity};
use crate::engine::credential::{Failed, Snapshot, Token, Unobtainable};
use crate::engine::throttle::HeldBack;

/// The fraction of the lifetime before expiry at which renewal begins. A token of an hour then survives an outage of
/// twelve minutes, and costs a quarter more requests than renewal at expiry.
const MARGIN: f64 = 0.20;

/// The margin of short-lived tokens, because an outage does not get shorter with the lifetime.
/// [`SHORT_LIFE_FRACTION`] caps it.
const SHORT_LIFE_MARGIN: Duration = Duration::from_secs(5 * 60);

/// The largest fraction of the lifetime that [`SHORT_LIFE_MARGIN`] may take. With the jitter, renewal begins after
/// three fifths of the lifetime at the earliest.
const SHORT_LIFE_FRACTION: f64 = 0.30;

/// Renewal is moved earlier by up to this fraction, so that tokens fetched together are not renewed together: of the
/// lifetime, or of a configured `refresh_before`.
const JITTER: f64 = 0.10;

/// Two requests for one token are at least this far apart, whatever lifetimes a provider gives.
const MIN_GAP: Duration = Duration::from_secs(1);

/// [`MIN_GAP`] as a fraction of the lifetime, if that is longer. A provider that returns its own cached token until it
/// expires is then not asked at ever shorter intervals. At expiry it is asked in any case.
const MIN_GAP_FRACTION: f64 = 0.10;

/// The longest time after an attempt during which a rejected token causes no other one. Usually the token's
/// [`min_gap`] is shorter.
pub const REJECT_GAP_MOST: Duration = Duration::from_secs(30);

/// How long callers get the failure to read a secret before a caller causes another attempt.
const SECRET_GAP: Duration = Duration::from_secs(1);

/// The first back-off after a failure that passes by itself.
const TRANSIENT_FIRST: Duration = Duration::from_secs(1);

/// The longest back-off while a valid token is held. The end of an outage is noticed early enough for lifetimes of
/// half an hour and more.
const TRANSIENT_MOST: Duration = Duration::from_secs(5 * 60);

/// The longest back-off while no valid token is held, because callers are failing meanwhile.
const TRANSIENT_MOST_WITHOUT_TOKEN: Duration = Duration::from_secs(30);

/// The first back-off after a refusal, which ends only when somebody changes something. Long enough not to
/// trip a lock-out for wrong passwords.
const REFUSED_FIRST: Duration = Duration::from_secs(30);

/// The longest back-off after a refusal.
const REFUSED_MOST: Duration = Duration::from_secs(15 * 60);

/// The longest back-off when a local secret cannot be read. Trying costs the provider nothing.
const LOCAL_MOST: Duration = Duration::from_secs(60);

/// The longest `Retry-After` that is believed. A provider that means hours is asked four times an hour.
pub const RETRY_AFTER_MOST: Duration = Duration::from_secs(15 * 60);

/// A back-off is stretched by up to this fraction. It is never shrunk, so that the number of requests that an outage
/// costs has a bound: twenty in an hour for one token.
const BACK_OFF_JITTER: f64 = 0.20;

/// The answer to a caller that asks for a token.
#[derive(Clone, Debug)]
pub enum Serving {
    /// This token, at once.
    Token(Arc<Token>),
    /// The caller waits for the provider's answer.
    Wait {
        /// Whether a request is under way already.
        in_flight: bool,
    },
    /// A failure, at once. This caller causes no request to the provider.
    Refuse(Unobtainable),
}

/// The one serving rule: decides whether a caller that needs a token for `min_ttl` gets it, waits, or is refused.
/// `quiet_until` is the end of a `Retry-After` of the provider's host.
///
/// A valid token is served whatever failed since it was granted. Without one, the provider is asked, unless this
/// token's back-off or the host's `Retry-After` is still running: requests on behalf of waiting callers would keep a
/// provider down.
pub fn may_serve(
    snapshot: &Snapshot,
    quiet_until: Option<Instant>,
    now: Instant,
    min_ttl: Duration,
) -> Serving {
    let valid = snapshot.usable(now, Duration::ZERO);
    if let Some(token) = valid.as_ref().filter(|token| token.validity.is_usable(now, min_ttl)) {
        return Serving::Token(Arc::clone(token));
    }
    let is_short_lived = valid.as_ref().is_some_and(|token| token.validity.lifetime < min_ttl);
    if snapshot.in_flight && !is_short_lived {
        return Serving::Wait { in_flight: true };
    }
    let held_back = held_back(snapshot, quiet_until, now);
    let Some(token) = valid else {
        return held_back.map_or(Serving::Wait { in_flight: false }, |(failed, until)| {
            Serving::Refuse(Unobtainable::Failed(failed, Some(until)))
        });
    };
    // Another token would hardly last longer.
    let is_almost_new = now.since(token.validity.sent_at) < min_gap(token.validity.lifetime);
    if is_short_lived || is_almost_new || held_back.is_some() {
        return Serving::Refuse(Unobtainable::MinTtlUnreachable(token.validity.remaining(now)));
    }
    Serving::Wait { in_flight: false }
}

/// Returns the failure for which the provider is not asked, even for a waiting caller, and when that ends. A secret
/// that cannot be read holds callers back for one second only, because another attempt costs the provider nothing.
pub fn held_back(
    snapshot: &Snapshot,
    quiet_until: Option<Instant>,
    now: Instant,
) -> Option<(Failed, Instant)> {
    let last_error = snapshot.last_error.as_ref().filter(|_| snapshot.failures > 0);
    let own = last_error.and_then(|failed| match failed.class {
        ErrorClass::Secret => Some((failed.clone(), failed.at.after(SECRET_GAP))),
        _ => Some((failed.clone(), snapshot.next_attempt?)),
    });
    let quiet =
        quiet_until.map(|until| (HeldBack { until, class: ErrorClass::Throttled }.failed(now), until));
    [quiet, own].into_iter().flatten().filter(|(_, until)| *until > now).max_by_key(|(_, until)| *until)
}

/// Returns when a token is renewed. `refresh_before` is the configured margin.
pub fn renew_at(token: &Token, refresh_before: Option<Duration>) -> Instant {
    let Validity { sent_at, lifetime } = token.validity;
    // A stored number may be anything.
    let jitter = JITTER * token.jitter.clamp(0.0, 1.0);
    let margin = if let Some(chosen) = refresh_before {
        chosen.mul_f64(1.0 + jitter)
    } else {
        let short_life = SHORT_LIFE_MARGIN.min(lifetime.mul_f64(SHORT_LIFE_FRACTION));
        lifetime.mul_f64(MARGIN).max(short_life) + lifetime.mul_f64(jitter)
    };
    let expires_at = token.validity.expires_at();
    let earliest = sent_at.after(min_gap(token.longest_lifetime.max(lifetime)));
    let latest = expires_at.max(sent_at.after(MIN_GAP));
    expires_at.before(margin).max(earliest).min(latest)
}

/// The least time between two requests that both bring a token of such a lifetime.
pub fn min_gap(lifetime: Duration) -> Duration {
    lifetime.mul_f64(MIN_GAP_FRACTION).max(MIN_GAP)
}

/// Whether a token is renewed while nobody uses it.
///
/// Modes are ordered by how much they renew: of several for one credential, the greatest one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RenewalMode {
    /// Fetched at its first use, and not renewed after this many renewals without a use in between.
    UnusedRenewals(u32),
    /// Fetched at its first use, and not renewed once nobody has used it for this long.
    OnDemand(Duration),
    /// Always, so that it is ready whenever a caller comes.
    #[default]
    Always,
}

impl RenewalMode {
    /// Whether the token rests now instead of being renewed.
    pub fn rests(self, now: Instant, last_used: Instant, unused_renewals: u32) -> bool {
        match self {
            Self::Always => false,
            Self::OnDemand(idle_timeout) => now.since(last_used) >= idle_timeout,
            Self::UnusedRenewals(most) => unused_renewals >= most,
        }
    }
}

/// Returns the back-off after the `failures`-th failure in a row, counted from one.
///
/// `remaining` is how long the held token is still valid, if it is. `retry_after` is the provider's `Retry-After`,
/// which can only lengthen the back-off.
pub fn back_off(
    class: ErrorClass,
    failures: u32,
    remaining: Option<Duration>,
    retry_after: Option<Duration>,
    jitter: f64,
) -> Duration {
    let (first, most) = match (class, remaining) {
        (ErrorClass::Refused, _) => (REFUSED_FIRST, REFUSED_MOST),
        (ErrorClass::Secret, _) => (TRANSIENT_FIRST, LOCAL_MOST),
        (_, None) => (TRANSIENT_FIRST, TRANSIENT_MOST_WITHOUT_TOKEN),
        // A quarter of the rest leaves several attempts before the token expires.
        (_, Some(rest)) => (TRANSIENT_FIRST, TRANSIENT_MOST.min(rest / 4).max(TRANSIENT_FIRST)),
    };
    exponential(first, failures, most, jitter).max(retry_after.unwrap_or_default().min(RETRY_AFTER_MOST))
}

/// The longest back-off of a token endpoint that is down. Shorter than a token's own, because the first token that
/// gets through ends the outage for all of them; long enough that an hour's outage costs some forty requests in all,
/// however many tokens there are.
const ENDPOINT_MOST: Duration = Duration::from_secs(2 * 60);

/// How long all tokens of an endpoint back off after its `failures`-th failure in a row, counted from one.
pub fn endpoint_back_off(failures: u32, jitter: f64) -> Duration {
    exponential(TRANSIENT_FIRST, failures, ENDPOINT_MOST, jitter)
}

/// A back-off that doubles with each failure up to `most`, stretched by the jitter.
fn exponential(first: Duration, failures: u32, most: Duration, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(30));
    doubled.min(most).mul_f64(1.0 + BACK_OFF_JITTER * jitter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokend_protocol::{Fingerprint, Secret};

    use super::*;

    const SENT: Instant = Instant::at(Duration::from_secs(1000));

    fn validity(seconds: u64) -> Validity {
        Validity { sent_at: SENT, lifetime: Duration::from_secs(seconds) }
    }

    fn token(seconds: u64, jitter: f64) -> Token {
        Token {
            secret: Secret::from("t".to_owned()),
            fingerprint: Fingerprint([0; 8]),
            validity: validity(seconds),
            longest_lifetime: Duration::ZERO,
            jitter,
            scope: None,
        }
    }

    fn renewed_after(seconds: u64, jitter: f64) -> f64 {
        renew_at(&token(seconds, jitter), None).since(SENT).as_secs_f64()
    }

    #[test]
    fn renewal_scales_with_the_lifetime() {
        // lifetime, latest and earliest renewal in seconds after the request
        let cases = [
            (5, 3.5, 3.0),
            (10, 7.0, 6.0),
            (600, 420.0, 360.0),
            (1_800, 1_440.0, 1_260.0),
            (3_600, 2_880.0, 2_520.0),
            (86_400, 69_120.0, 60_480.0),
            (31_536_000, 25_228_800.0, 22_075_200.0),
        ];
        for (seconds, latest, earliest) in cases {
            assert!((renewed_after(seconds, 0.0) - latest).abs() < 0.001, "{seconds} s, no jitter");
            assert!((renewed_after(seconds, 1.0) - earliest).abs() < 0.001, "{seconds} s, full jitter");
        }
    }

    #[test]
    fn an_operators_choice_wins_and_zero_means_at_expiry() {
        let renewed = |before| renew_at(&token(86_400, 0.0), Some(before)).since(SENT);
        assert_eq!(renewed(Duration::from_secs(300)), Duration::from_secs(86_100));
        assert_eq!(renewed(Duration::ZERO), Duration::from_secs(86_400));
        assert_eq!(
            renewed(Duration::from_secs(1_000_000)),
            Duration::from_secs(8_640),
            "a margin longer than the life"
        );
    }

    #[test]
    fn a_cached_token_near_its_end_is_not_asked_for_at_ever_shorter_intervals() {
        let longest_lifetime = Duration::from_secs(3600);
        let renewed = |rest| renew_at(&Token { longest_lifetime, ..token(rest, 1.0) }, None).since(SENT);
        assert_eq!(
            renewed(500),
            Duration::from_secs(360),
            "a tenth of its whole life after the request before"
        );
        assert_eq!(renewed(20), Duration::from_secs(20), "and no later than it expires");
    }

    #[test]
    fn a_token_is_served_until_the_moment_it_expires_and_never_after() {
        let token = validity(60);
        assert!(token.is_usable(SENT.after(Duration::from_millis(59_999)), Duration::ZERO));
        assert!(!token.is_usable(SENT.after(Duration::from_secs(60)), Duration::ZERO));
        assert!(token.is_usable(SENT, Duration::from_secs(60)));
        assert!(!token.is_usable(SENT.after(Duration::from_millis(1)), Duration::from_secs(60)));
    }

    /// A token of so many seconds, and a failure of a class whose next attempt is in so many seconds from `SENT`.
    fn snapshot(lifetime: Option<u64>, failure: Option<(ErrorClass, u64)>) -> Snapshot {
        let token = lifetime.map(|seconds| Arc::new(token(seconds, 0.0)));
        let next_attempt = failure.map(|(_, seconds)| SENT.after(Duration::from_secs(seconds)));
        let last_error = failure.map(|(class, _)| Failed::new(class, "failed", SENT));
        let failures = u32::from(failure.is_some());
        Snapshot { token, last_error, failures, next_attempt, ..Snapshot::default() }
    }

    /// The answer, `after` seconds after `SENT`, to a caller that needs a token for `min_ttl` seconds.
    fn served(snapshot: &Snapshot, quiet: Option<u64>, after: u64, min_ttl: u64) -> String {
        let quiet = quiet.map(|seconds| SENT.after(Duration::from_secs(seconds)));
        let now = SENT.after(Duration::from_secs(after));
        match may_serve(snapshot, quiet, now, Duration::from_secs(min_ttl)) {
            Serving::Token(_) => "token".to_owned(),
            Serving::Wait { in_flight } => format!("wait, in flight: {in_flight}"),
            Serving::Refuse(Unobtainable::Failed(failed, Some(until))) => {
                format!("{} until {}", failed.class.as_str(), until.since(SENT).as_secs())
            }
            Serving::Refuse(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn a_valid_token_is_served_whatever_went_wrong_since() {
        for class in [ErrorClass::Refused, ErrorClass::Server, ErrorClass::Secret] {
            let failed = snapshot(Some(100), Some((class, 90)));
            assert_eq!(served(&failed, Some(1_000), 80, 20), "token");
            assert_ne!(served(&failed, None, 100, 0), "token", "it has expired");
        }
    }

    #[test]
    fn without_a_token_callers_are_held_back_until_both_back_off_and_retry_after_have_passed() {
        let none = |failure| snapshot(None, failure);
        assert_eq!(served(&none(None), None, 0, 0), "wait, in flight: false");
        assert_eq!(served(&none(None), Some(60), 0, 0), "throttled until 60");
        assert_eq!(served(&none(None), Some(60), 60, 0), "wait, in flight: false");
        let server = none(Some((ErrorClass::Server, 30)));
        assert_eq!(served(&server, None, 29, 0), "server until 30");
        assert_eq!(served(&server, None, 30, 0), "wait, in flight: false");
        assert_eq!(served(&server, Some(60), 29, 0), "throttled until 60");
        let in_flight = Snapshot { in_flight: true, ..server };
        assert_eq!(served(&in_flight, None, 29, 0), "wait, in flight: true");
    }

    #[test]
    fn an_unreadable_secret_holds_callers_back_for_a_second_only() {
        let secret = snapshot(None, Some((ErrorClass::Secret, 60)));
        assert_eq!(served(&secret, None, 0, 0), "secret until 1");
        assert_eq!(served(&secret, None, 1, 0), "wait, in flight: false");
    }

    #[test]
    fn a_token_that_expires_too_soon_is_replaced_only_where_another_one_lasts_longer() {
        let held = snapshot(Some(1_000), None);
        assert_eq!(served(&held, None, 500, 600), "wait, in flight: false");
        assert_eq!(served(&held, None, 500, 1_001), "MinTtlUnreachable(500s)", "no token lasts as long");
        assert_eq!(served(&held, None, 99, 950), "MinTtlUnreachable(901s)", "it is almost new");
        let failed = snapshot(Some(1_000), Some((ErrorClass::Server, 600)));
        assert_eq!(served(&failed, None, 500, 600), "MinTtlUnreachable(500s)", "no other one is to be had");
    }

    #[test]
    fn back_off_doubles_up_to_its_cap() {
        let wait = |class, failures, rest: Option<u64>| {
            back_off(class, failures, rest.map(Duration::from_secs), None, 0.0).as_secs()
        };
        assert_eq!(
            [1, 2, 3, 9, 10, 4_000_000_000].map(|n| wait(ErrorClass::Server, n, Some(7_200))),
            [1, 2, 4, 256, 300, 300]
        );
        assert_eq!([1, 5, 6, 20].map(|n| wait(ErrorClass::Server, n, None)), [1, 16, 30, 30]);
        assert_eq!(
            [1, 2, 3, 5, 6, 9].map(|n| wait(ErrorClass::Refused, n, Some(7_200))),
            [30, 60, 120, 480, 900, 900]
        );
        assert_eq!(wait(ErrorClass::Server, 8, Some(40)), 10, "several attempts before the token expires");
        assert_eq!(wait(ErrorClass::Secret, 30, None), 60);
    }

    #[test]
    fn retry_after_lengthens_the_wait_within_reason_and_never_shortens_it() {
        let wait = |seconds| {
            let asked = Some(Duration::from_secs(seconds));
            back_off(ErrorClass::Server, 1, None, asked, 0.0).as_secs()
        };
        assert_eq!([0, 60, 1_000_000_000].map(wait), [1, 60, 900]);
    }

    proptest! {
        #[test]
        fn renewal_begins_in_the_last_two_fifths_of_the_life(seconds in 2_u64..40_000_000, roll in 0.0..1.0) {
            let at = renewed_after(seconds, roll);
            #[expect(clippy::cast_precision_loss, reason = "seconds of a lifetime are far below 2^52")]
            let whole = seconds as f64;
            prop_assert!(at >= 0.6 * whole - 0.001 && at <= whole, "{at} of {whole}");
        }

        #[test]
        fn a_back_off_is_never_zero_and_never_longer_than_its_cap(
            failures in 0_u32..,
            rest in proptest::option::of(0_u64..40_000_000),
            asked in proptest::option::of(0_u64..),
            roll in 0.0..1.0,
        ) {
            for class in [ErrorClass::Server, ErrorClass::Refused, ErrorClass::Secret] {
                let rest = rest.map(Duration::from_secs);
                let wait = back_off(class, failures, rest, asked.map(Duration::from_secs), roll);
                prop_assert!(wait >= Duration::from_secs(1) && wait <= Duration::from_secs(1080));
            }
        }
    }
}

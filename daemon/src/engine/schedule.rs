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
use crate::oauth::{Failure, Refusal};

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
pub const MIN_GAP: Duration = Duration::from_secs(1);

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

/// The first back-off after a refusal, which ends only when somebody changes something.
const REFUSED_FIRST: Duration = Duration::from_secs(60);

/// The longest back-off after a refusal while a valid token is held.
const REFUSED_MOST: Duration = Duration::from_secs(15 * 60);

/// The longest back-off after a refusal while no valid token is held: what an operator puts right at the provider then
/// counts within minutes.
const REFUSED_MOST_WITHOUT_TOKEN: Duration = Duration::from_secs(5 * 60);

/// The first back-off after a refused user name or password. It grows to [`REFUSED_MOST`] even while callers fail: an
/// account is locked after a few wrong passwords.
const PASSWORD_FIRST: Duration = Duration::from_secs(30);

/// How long refusals without an OAuth error code count as the fault of a gateway, which passes by itself.
const GATEWAY_FAULT_MOST: Duration = Duration::from_secs(10 * 60);

/// How long before a held token expires it is asked for at the latest, whatever the back-off.
const LAST_CHANCE: Duration = Duration::from_secs(30);

/// [`LAST_CHANCE`] as a part of the lifetime, if that is shorter.
const LAST_CHANCE_PART: u32 = 10;

/// The longest back-off when a local secret cannot be read. Trying costs the provider nothing.
const LOCAL_MOST: Duration = Duration::from_secs(60);

/// The longest `Retry-After` that is believed. A provider that means hours is asked four times an hour.
pub const RETRY_AFTER_MOST: Duration = Duration::from_secs(15 * 60);

/// A back-off is stretched by up to this fraction. It is never shrunk, so that the number of requests that an outage
/// costs has a bound: twenty in an hour for one held token.
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
/// `throttled` returns why the throttle would refuse a request for a caller.
///
/// A valid token is served whatever failed since it was granted. Without one, the provider is asked, unless this
/// token's back-off or the host's `Retry-After` is still running: requests on behalf of waiting callers would keep a
/// provider down.
pub fn may_serve(
    snapshot: &Snapshot,
    throttled: impl FnOnce() -> Option<HeldBack>,
    now: Instant,
    min_ttl: Duration,
) -> Serving {
    if let Some(token) = served(snapshot, now, min_ttl) {
        return Serving::Token(Arc::clone(token));
    }
    let valid = snapshot.usable(now, Duration::ZERO);
    let is_short_lived = valid.as_ref().is_some_and(|token| token.validity.served_for() < min_ttl);
    if snapshot.in_flight && !is_short_lived {
        return Serving::Wait { in_flight: true };
    }
    let held_back = held_back(snapshot, throttled(), now);
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

/// The held token, if a caller gets it at once.
pub fn served(snapshot: &Snapshot, now: Instant, min_ttl: Duration) -> Option<&Arc<Token>> {
    snapshot.token.as_ref().filter(|token| token.validity.is_usable(now, min_ttl))
}

/// Returns the failure for which the provider is not asked, even for a waiting caller, and when that ends: the later one
/// of this token's back-off and the throttle's.
pub fn held_back(
    snapshot: &Snapshot,
    throttled: Option<HeldBack>,
    now: Instant,
) -> Option<(Failed, Instant)> {
    let own = snapshot.last_error.as_deref().cloned().zip(snapshot.callers_from);
    // What happened to this token says more than what happened to others of its endpoint.
    let reason = |held: HeldBack| match &own {
        Some((failed, _)) if held.class != ErrorClass::Throttled => failed.clone(),
        _ => held.failed(now),
    };
    let throttled = throttled.map(|held| (reason(held), held.until));
    [throttled, own].into_iter().flatten().filter(|(_, until)| *until > now).max_by_key(|(_, until)| *until)
}

/// Returns when a caller may cause the next request after a failure. A secret that cannot be read holds callers back for
/// one second only, because another attempt costs the provider nothing.
pub fn callers_from(failed: &Failed, next_attempt: Instant) -> Instant {
    match failed.class {
        ErrorClass::Secret => failed.at.after(SECRET_GAP).min(next_attempt),
        _ => next_attempt,
    }
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
    let expires_at = sent_at.after(lifetime);
    let earliest = sent_at.after(min_gap(token.longest_lifetime.max(lifetime)));
    let latest = token.validity.expires_at().max(sent_at.after(MIN_GAP));
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

/// How soon a failure is followed by another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The failure passes by itself.
    Transient,
    /// A secret cannot be read on this host.
    Secret,
    /// The provider refuses the request.
    Refusal,
    /// The provider refuses the user name or the password.
    Password,
}

impl Pace {
    /// The pace after a failure. `without_code_for` is how long the refusals without an OAuth error code last.
    pub fn of(failure: &Failure, without_code_for: Duration) -> Self {
        match (failure.class, failure.refusal) {
            (ErrorClass::Secret, _) => Self::Secret,
            (ErrorClass::Refused, Some(Refusal::User | Refusal::PasswordWithoutCode(_))) => Self::Password,
            (ErrorClass::Refused, _) if !passes(failure, without_code_for) => Self::Refusal,
            _ => Self::Transient,
        }
    }
}

/// Whether a refusal passes by itself: it may be a gateway's, and those without an OAuth error code have not lasted for long.
pub fn passes(failure: &Failure, without_code_for: Duration) -> bool {
    failure.may_be_a_gateways() && without_code_for < GATEWAY_FAULT_MOST
}

/// Returns when to try again after the `failures`-th failure of this pace in a row, counted from one.
///
/// `held` is the validity of the held token, if it is still valid: one attempt is always made shortly before it expires, and
/// one then. `retry_after` is the provider's `Retry-After`, which can only delay the attempt.
pub fn retry_at(
    pace: Pace,
    failures: u32,
    held: Option<Validity>,
    retry_after: Option<Duration>,
    now: Instant,
    jitter: f64,
) -> Instant {
    let (first, most) = match (pace, held.map(|held| held.remaining(now))) {
        (Pace::Refusal, Some(_)) => (REFUSED_FIRST, REFUSED_MOST),
        (Pace::Refusal, None) => (REFUSED_FIRST, REFUSED_MOST_WITHOUT_TOKEN),
        (Pace::Password, _) => (PASSWORD_FIRST, REFUSED_MOST),
        (Pace::Secret, _) => (TRANSIENT_FIRST, LOCAL_MOST),
        (Pace::Transient, None) => (TRANSIENT_FIRST, TRANSIENT_MOST_WITHOUT_TOKEN),
        // A quarter of the rest leaves several attempts before the token expires.
        (Pace::Transient, Some(rest)) => (TRANSIENT_FIRST, TRANSIENT_MOST.min(rest / 4).max(TRANSIENT_FIRST)),
    };
    let backed_off = now.after(exponential(first, failures, most, jitter));
    let last_chance = held.filter(|_| pace != Pace::Password).and_then(|held| last_chance(held, now));
    let asked = now.after(retry_after.unwrap_or_default().min(RETRY_AFTER_MOST));
    last_chance.map_or(backed_off, |at| at.min(backed_off)).max(asked)
}

/// Returns the next moment at which a held token is asked for whatever failed: shortly before it expires, or when it does.
fn last_chance(held: Validity, now: Instant) -> Option<Instant> {
    let expires_at = held.expires_at();
    let shortly_before = expires_at.before(LAST_CHANCE.min(held.lifetime / LAST_CHANCE_PART));
    [shortly_before, expires_at].into_iter().find(|at| at.since(now) >= MIN_GAP)
}

/// The longest back-off of a token endpoint that is down. Shorter than a token's own, because the first token that
/// gets through ends the outage for all of them; long enough that an hour's outage costs some forty requests in all,
/// however many tokens there are, and one more each half minute while callers without a token ask.
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
        assert_eq!(renewed(Duration::ZERO), Duration::from_secs(86_399), "when it is not served any more");
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
        assert_eq!(renewed(20), Duration::from_secs(19), "and no later than it expires");
    }

    #[test]
    fn a_token_is_served_until_the_moment_it_expires_and_never_after() {
        let token = validity(60);
        assert!(token.is_usable(SENT.after(Duration::from_millis(58_999)), Duration::ZERO));
        assert!(!token.is_usable(SENT.after(Duration::from_secs(59)), Duration::ZERO));
        assert!(token.is_usable(SENT, Duration::from_secs(59)));
        assert!(!token.is_usable(SENT.after(Duration::from_millis(1)), Duration::from_secs(59)));
    }

    /// A token of so many seconds, and a failure of a class whose next attempt is in so many seconds from `SENT`.
    fn snapshot(lifetime: Option<u64>, failure: Option<(ErrorClass, u64)>) -> Snapshot {
        let token = lifetime.map(|seconds| Arc::new(token(seconds, 0.0)));
        let next_attempt = failure.map(|(_, seconds)| SENT.after(Duration::from_secs(seconds)));
        let last_error = failure.map(|(class, _)| Arc::new(Failed::new(class, "failed", SENT)));
        let callers_from = last_error.as_ref().zip(next_attempt).map(|(failed, at)| callers_from(failed, at));
        Snapshot { token, last_error, next_attempt, callers_from, ..Snapshot::default() }
    }

    /// The answer, `after` seconds after `SENT`, to a caller that needs a token for `min_ttl` seconds.
    fn served(snapshot: &Snapshot, quiet: Option<u64>, after: u64, min_ttl: u64) -> String {
        let now = SENT.after(Duration::from_secs(after));
        let class = ErrorClass::Throttled;
        let quiet = quiet.map(|seconds| HeldBack {
            until: SENT.after(Duration::from_secs(seconds)),
            class,
            by_probe: false,
        });
        match may_serve(snapshot, || quiet, now, Duration::from_secs(min_ttl)) {
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
            assert_eq!(served(&failed, Some(1_000), 80, 19), "token");
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
        assert_eq!(served(&held, None, 500, 1_000), "MinTtlUnreachable(499s)", "no token lasts as long");
        assert_eq!(served(&held, None, 99, 950), "MinTtlUnreachable(900s)", "it is almost new");
        let failed = snapshot(Some(1_000), Some((ErrorClass::Server, 600)));
        assert_eq!(served(&failed, None, 500, 600), "MinTtlUnreachable(499s)", "no other one is to be had");
    }

    #[test]
    fn a_wait_doubles_up_to_its_cap() {
        let wait =
            |pace, failures, held| retry_at(pace, failures, held, None, SENT, 0.0).since(SENT).as_secs();
        assert_eq!(
            [1, 2, 3, 9, 10, 4_000_000_000].map(|n| wait(Pace::Transient, n, Some(validity(7_200)))),
            [1, 2, 4, 256, 300, 300]
        );
        assert_eq!([1, 5, 6, 20].map(|n| wait(Pace::Transient, n, None)), [1, 16, 30, 30]);
        assert_eq!([1, 2, 3, 4, 9].map(|n| wait(Pace::Refusal, n, None)), [60, 120, 240, 300, 300]);
        assert_eq!([1, 4, 5, 9].map(|n| wait(Pace::Refusal, n, Some(validity(7_200)))), [60, 480, 900, 900]);
        assert_eq!([1, 2, 5, 6, 9].map(|n| wait(Pace::Password, n, None)), [30, 60, 480, 900, 900]);
        assert_eq!(
            wait(Pace::Transient, 8, Some(validity(41))),
            10,
            "several attempts before the token expires"
        );
        assert_eq!(wait(Pace::Secret, 30, None), 60);
    }

    #[test]
    fn a_held_token_is_asked_for_shortly_before_it_expires_and_when_it_does_whatever_the_back_off() {
        let after = |seconds, pace, now: u64| {
            let now = SENT.after(Duration::from_secs(now));
            retry_at(pace, 5, Some(validity(seconds)), None, now, 0.0).since(SENT).as_secs()
        };
        assert_eq!([42, 53, 54].map(|now| after(60, Pace::Refusal, now)), [53, 59, 59]);
        assert_eq!([3_000, 3_569].map(|now| after(3_600, Pace::Refusal, now)), [3_569, 3_599]);
        assert_eq!(
            after(60, Pace::Password, 42),
            42 + 480,
            "an account is locked after a few wrong passwords"
        );
    }

    #[test]
    fn retry_after_delays_the_attempt_within_reason_and_never_hastens_it() {
        let wait = |seconds, held| {
            let asked = Some(Duration::from_secs(seconds));
            retry_at(Pace::Transient, 1, held, asked, SENT, 0.0).since(SENT).as_secs()
        };
        assert_eq!([0, 60, 1_000_000_000].map(|asked| wait(asked, None)), [1, 60, 900]);
        assert_eq!(wait(100, Some(validity(50))), 100, "also beyond the expiry");
    }

    #[test]
    fn a_refusal_without_an_oauth_error_code_is_a_gateways_for_ten_minutes() {
        let refused = |refusal| Failure { refusal, ..Failure::new(ErrorClass::Refused, "refused") };
        let pace = |refusal, minutes: u64| Pace::of(&refused(refusal), Duration::from_secs(60 * minutes));
        let gateways = Some(Refusal::WithoutCode(404));
        assert_eq!(
            [0, 9, 10].map(|minutes| pace(gateways, minutes)),
            [Pace::Transient, Pace::Transient, Pace::Refusal]
        );
        assert_eq!([None, Some(Refusal::Client)].map(|refusal| pace(refusal, 0)), [Pace::Refusal; 2]);
        let password = [Refusal::User, Refusal::PasswordWithoutCode(401), Refusal::PasswordWithoutCode(403)];
        assert_eq!(password.map(|refusal| pace(Some(refusal), 0)), [Pace::Password; 3]);
        assert_eq!(
            password.map(|refusal| passes(&refused(Some(refusal)), Duration::ZERO)),
            [false, false, true]
        );
    }

    #[test]
    fn a_token_is_served_a_second_or_the_clock_skew_less_than_its_lifetime_but_nine_tenths_of_it() {
        let served =
            |seconds, skew| validity(seconds).with_clock_skew(skew).expires_at().since(SENT).as_millis();
        assert_eq!(
            [0, 1, 40, 9_999].map(|skew| served(3_600, skew)),
            [3_599_000, 3_599_000, 3_560_000, 3_240_000]
        );
        assert_eq!([10, 5, 1].map(|seconds| served(seconds, 0)), [9_000, 4_500, 900]);
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
            for pace in [Pace::Transient, Pace::Secret, Pace::Refusal, Pace::Password] {
                let asked = asked.map(Duration::from_secs);
                let wait = retry_at(pace, failures, rest.map(validity), asked, SENT, roll).since(SENT);
                prop_assert!(wait >= Duration::from_secs(1) && wait <= Duration::from_secs(1080));
            }
        }
    }
}

//! Converts the state of an actor to a record and back, so that it resumes after a restart.

use std::sync::Arc;
use std::time::Duration;

use super::Actor;
use crate::clock::Instant;
use crate::engine::credential::{Schedule, StartState};
use crate::engine::schedule::{Jitter, renew_at};
use crate::engine::snapshot::{Snapshot, Token};
use crate::fingerprint::Fingerprinter;
use crate::store::PreviousExit;
use crate::store::record::{FailureRecord, Record, TokenRecord};

/// The part of an actor's state that only the actor knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::engine) struct ActorState {
    /// The jitter of the held token, rolled once.
    pub jitter: Jitter,
    /// The longest lifetime with which the provider gave the held token.
    pub longest_lifetime: Duration,
    /// When the last attempt began.
    pub last_attempt: Option<Instant>,
    /// Renewals in a row without a use of the token in between.
    pub unused_renewals: u32,
    /// Token requests in a row that the end of the process interrupted. The one that is under way counts.
    pub interrupted_requests: u32,
    /// Attempts since the last success that a replaced secret caused.
    pub changes_in_vain: u32,
    /// When the last of `changes_in_vain` began.
    pub last_change: Option<Instant>,
}

/// Returns the first snapshot and the actor's state. Without a record, `first_attempt` is the time of the first
/// request; `jitter` is used for a token without a stored one.
pub(in crate::engine) fn resume(
    start: &StartState,
    schedule: &Schedule,
    first_attempt: Option<Instant>,
    jitter: Jitter,
    fingerprinter: &Fingerprinter,
    now: Instant,
) -> (Snapshot, ActorState) {
    let record = start.record.as_ref();
    let kept = record.and_then(|record| record.token.as_ref());
    let failure = record.and_then(|record| record.failure.as_ref());
    let next_attempt = match (kept, failure) {
        (_, Some(failure)) => after_failure(failure, start.previous_exit, first_attempt, now),
        (Some(token), None) => Some(renewal(token, schedule, first_attempt, now)),
        (None, None) => first_attempt,
    };
    let token = kept.map(|kept: &TokenRecord| {
        Arc::new(Token {
            secret: kept.secret.clone(),
            fingerprint: fingerprinter.fingerprint(&kept.secret),
            validity: kept.validity,
            token_type: Arc::clone(&kept.token_type),
            scope: kept.scope.clone(),
        })
    });
    let token = token.or_else(|| start.loan.clone());
    let lifetime = token.as_ref().map_or(Duration::ZERO, |token| token.validity.lifetime);
    let state = ActorState {
        jitter: kept.map_or(jitter, |token| Jitter::new(token.jitter)),
        longest_lifetime: kept.map_or(lifetime, |token| token.longest_lifetime),
        last_attempt: kept.map(|token| token.validity.sent_at).max(failure.map(|failure| failure.failed.at)),
        unused_renewals: record.map_or(0, |record| record.unused_renewals),
        interrupted_requests: record.map_or(0, |record| record.interrupted_requests),
        changes_in_vain: 0,
        last_change: None,
    };
    let snapshot = Snapshot {
        token,
        failures: failure.map_or(0, |failure| failure.failures),
        last_error: failure.map(|failure| failure.failed.clone()),
        next_attempt,
        ..Snapshot::default()
    };
    (snapshot, state)
}

/// Returns when a stored token is renewed: as scheduled, or, if that has passed, at `first_attempt`, but no later
/// than its expiry.
fn renewal(
    token: &TokenRecord,
    schedule: &Schedule,
    first_attempt: Option<Instant>,
    now: Instant,
) -> Instant {
    let due =
        renew_at(token.validity, schedule.refresh_before, token.longest_lifetime, Jitter::new(token.jitter));
    if due > now {
        return due;
    }
    first_attempt.map_or(now, |spread| spread.min(token.validity.expires_at()))
}

fn after_failure(
    failure: &FailureRecord,
    previous_exit: PreviousExit,
    first_attempt: Option<Instant>,
    now: Instant,
) -> Option<Instant> {
    match (failure.next_attempt, previous_exit) {
        // It was not being renewed, because nobody used it.
        (None, _) => first_attempt,
        (Some(at), PreviousExit::Crashed) => Some(at.max(first_attempt.unwrap_or(now))),
        (Some(at), PreviousExit::Orderly) => Some(at.min(first_attempt.unwrap_or(now)).max(now)),
    }
}

impl<P> Actor<P> {
    /// The record from which the next process resumes with `snapshot`.
    pub(super) fn record(&self, snapshot: &Snapshot) -> Record {
        let token = snapshot.token.as_ref().map(|token| TokenRecord {
            secret: token.secret.clone(),
            validity: token.validity,
            longest_lifetime: self.state.longest_lifetime,
            jitter: self.state.jitter.value(),
            token_type: Arc::clone(&token.token_type),
            scope: token.scope.clone(),
        });
        let failure = snapshot.last_error.clone().filter(|_| snapshot.failures > 0).map(|failed| {
            FailureRecord { failures: snapshot.failures, failed, next_attempt: snapshot.next_attempt }
        });
        Record {
            token,
            failure,
            last_used: Some(self.last_used.get()),
            unused_renewals: self.state.unused_renewals,
            interrupted_requests: self.state.interrupted_requests,
            variant_of: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokend_protocol::{ErrorClass, Secret};

    use super::*;
    use crate::clock::Validity;
    use crate::engine::credential::Failed;
    use crate::engine::schedule::RenewalMode;

    const NOW: Instant = Instant::at(Duration::from_secs(100_000));

    fn after(seconds: u64) -> Instant {
        NOW.after(Duration::from_secs(seconds))
    }

    /// A token of an hour that was asked for `age` seconds ago. Without jitter it is renewed after 2,880 seconds.
    fn token(age: u64) -> TokenRecord {
        TokenRecord {
            secret: Secret::from("a token".to_owned()),
            validity: Validity {
                sent_at: NOW.before(Duration::from_secs(age)),
                lifetime: Duration::from_secs(3_600),
            },
            longest_lifetime: Duration::from_secs(3_600),
            jitter: 0.0,
            token_type: "Bearer".into(),
            scope: None,
        }
    }

    fn failure(next_attempt: Option<Instant>) -> FailureRecord {
        let at = NOW.before(Duration::from_secs(10));
        let failed = Failed { class: ErrorClass::Refused, message: "refused".into(), detail: None, at };
        FailureRecord { failures: 4, failed, next_attempt }
    }

    /// What a credential begins with that would otherwise ask in 20 seconds.
    fn resumed(
        token: Option<TokenRecord>,
        failure: Option<FailureRecord>,
        previous_exit: PreviousExit,
    ) -> (Snapshot, ActorState) {
        let record = Some(Record { token, failure, ..Record::default() });
        let start = StartState { record, previous_exit, ..StartState::default() };
        let schedule =
            Schedule { names: "t".into(), refresh_before: None, renewal_mode: RenewalMode::Always };
        let fingerprinter = Fingerprinter::generate().unwrap();
        resume(&start, &schedule, Some(after(20)), Jitter::new(0.9), &fingerprinter, NOW)
    }

    #[test]
    fn a_token_is_renewed_when_it_would_have_been() {
        let (snapshot, state) = resumed(Some(token(1_000)), None, PreviousExit::Crashed);
        assert_eq!(snapshot.next_attempt, Some(after(1_880)));
        assert!(snapshot.usable(NOW, Duration::from_secs(2_600)).is_some());
        assert_eq!(state.jitter, Jitter::new(0.0), "not rolled again");
        assert_eq!(state.last_attempt, Some(NOW.before(Duration::from_secs(1_000))));
    }

    #[test]
    fn an_overdue_renewal_is_spread_but_not_beyond_the_expiry() {
        let next = |age| resumed(Some(token(age)), None, PreviousExit::Crashed).0.next_attempt;
        assert_eq!(next(3_000), Some(after(20)));
        assert_eq!(next(3_595), Some(after(5)));
    }

    #[test]
    fn a_crash_ends_no_back_off_and_an_orderly_restart_does() {
        let next = |at, previous_exit| {
            let (snapshot, _) = resumed(Some(token(1_000)), Some(failure(at)), previous_exit);
            assert_eq!((snapshot.failures, snapshot.last_error.is_some()), (4, true));
            snapshot.next_attempt
        };
        assert_eq!(next(Some(after(500)), PreviousExit::Crashed), Some(after(500)));
        assert_eq!(next(Some(NOW), PreviousExit::Crashed), Some(after(20)), "an overdue attempt is spread");
        assert_eq!(next(Some(after(500)), PreviousExit::Orderly), Some(after(20)));
        assert_eq!(next(Some(after(5)), PreviousExit::Orderly), Some(after(5)), "no attempt comes later");
        let long_ago = NOW.before(Duration::from_secs(60));
        assert_eq!(next(Some(long_ago), PreviousExit::Orderly), Some(NOW), "the host did not sleep over it");
    }

    #[test]
    fn a_credential_without_a_record_asks_at_its_first_attempt() {
        let (snapshot, state) = resumed(None, None, PreviousExit::Crashed);
        assert_eq!((snapshot.next_attempt, snapshot.failures), (Some(after(20)), 0));
        assert_eq!((state.jitter, state.last_attempt), (Jitter::new(0.9), None));
    }
}

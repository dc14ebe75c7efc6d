//! Converts the state of an actor to a record and back, so that it resumes after a restart.

use std::sync::Arc;

use super::Actor;
use crate::clock::Instant;
use crate::engine::credential::{Schedule, Snapshot, StartState, Token};
use crate::engine::schedule::{Pace, RenewalMode, callers_from, renew_at};
use crate::fingerprint::Fingerprinter;
use crate::store::PreviousExit;
use crate::store::record::{FailureRecord, Record};

/// The part of an actor's state that only the actor knows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::engine) struct ActorState {
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
    /// The pace after the last failure, and the failures in a row with this pace.
    pub streak: Option<(Pace, u32)>,
    /// Refusals of the user's password since the last token, whatever failed in between: they may lock the account.
    pub password_failures: u32,
    /// When the first of the last refusals in a row without an OAuth error code was.
    pub without_code_since: Option<Instant>,
    /// When the held token has expired for its provider too, at the latest. It is not served for that long.
    pub expired_at_provider: Option<Instant>,
}

/// Returns the first snapshot and the actor's state.
pub(in crate::engine) fn resume(
    start: &StartState,
    schedule: &Schedule,
    fingerprinter: &Fingerprinter,
    now: Instant,
) -> (Snapshot, ActorState) {
    let record = start.record.clone().unwrap_or_default();
    let stored = record.token.map(|token| {
        let fingerprint = fingerprinter.fingerprint(&token.secret);
        Arc::new(Token { fingerprint, ..token })
    });
    let failure = record.failure.as_ref();
    let first_attempt = now.after(start.delay);
    let next_attempt = match (&stored, failure.map(|failure| failure.next_attempt)) {
        // An orderly restart ends a back-off, as a reload does.
        (_, Some(Some(at))) if start.previous_exit == PreviousExit::Crashed => Some(at.max(first_attempt)),
        (_, Some(Some(at))) => Some(at.min(first_attempt).max(now)),
        (Some(token), None) => {
            let due = renew_at(token, schedule.refresh_before);
            let overdue = first_attempt.min(token.validity.expires_at());
            Some(if due > now { due } else { overdue })
        }
        // There is no token, or it was not being renewed, because nobody used it.
        (None, None) | (_, Some(None)) => {
            let is_needed = schedule.renewal_mode == RenewalMode::Always || start.loan.is_some();
            is_needed.then_some(first_attempt)
        }
    };
    let state = ActorState {
        last_attempt: stored
            .as_ref()
            .map(|token| token.validity.sent_at)
            .max(failure.map(|failure| failure.failed.at)),
        unused_renewals: record.unused_renewals,
        interrupted_requests: record.interrupted_requests,
        ..ActorState::default()
    };
    let snapshot = Snapshot {
        token: stored.or_else(|| start.loan.clone()),
        failures: failure.map_or(0, |failure| failure.failures),
        last_error: failure.map(|failure| Arc::new(failure.failed.clone())),
        next_attempt,
        callers_from: failure.and_then(|failure| Some(callers_from(&failure.failed, next_attempt?))),
        ..Snapshot::default()
    };
    (snapshot, state)
}

impl<P> Actor<P> {
    /// The record from which the next process resumes with `snapshot`.
    pub(super) fn record(&self, snapshot: &Snapshot) -> Record {
        let Snapshot { failures, next_attempt, .. } = *snapshot;
        let failed = snapshot.last_error.as_deref().filter(|_| failures > 0).cloned();
        let failure = failed.map(|failed| FailureRecord { failures, failed, next_attempt });
        Record {
            token: snapshot.token.as_deref().cloned(),
            failure,
            last_used: Some(self.core.last_used.load()),
            unused_renewals: self.kept.state.unused_renewals,
            interrupted_requests: self.kept.state.interrupted_requests,
            variant_of: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokend_protocol::{ErrorClass, Fingerprint, Secret};

    use super::*;
    use crate::clock::Validity;
    use crate::engine::credential::Failed;

    const NOW: Instant = Instant::at(Duration::from_secs(100_000));

    fn after(seconds: u64) -> Instant {
        NOW.after(Duration::from_secs(seconds))
    }

    /// A token of an hour that was asked for `age` seconds ago. Without jitter it is renewed after 2,880 seconds.
    fn token(age: u64) -> Token {
        Token {
            secret: Secret::from("a token".to_owned()),
            fingerprint: Fingerprint([0; 8]),
            validity: Validity {
                sent_at: NOW.before(Duration::from_secs(age)),
                lifetime: Duration::from_secs(3_600),
            },
            longest_lifetime: Duration::from_secs(3_600),
            jitter: 0.0,
            scope: None,
        }
    }

    fn failure(next_attempt: Option<Instant>) -> FailureRecord {
        let at = NOW.before(Duration::from_secs(10));
        let failed = Failed::new(ErrorClass::Refused, "refused", at);
        FailureRecord { failures: 4, failed, next_attempt }
    }

    /// The first state of a credential that is renewed even if nobody uses it, and would ask first in 20 seconds.
    fn resumed(
        token: Option<Token>,
        failure: Option<FailureRecord>,
        previous_exit: PreviousExit,
    ) -> (Snapshot, ActorState) {
        let record = Some(Record { token, failure, ..Record::default() });
        let delay = Duration::from_secs(20);
        let start = StartState { record, previous_exit, delay, ..StartState::default() };
        let schedule =
            Schedule { names: "t".into(), refresh_before: None, renewal_mode: RenewalMode::Always };
        let fingerprinter = Fingerprinter::with_key(&[7; 32]);
        resume(&start, &schedule, &fingerprinter, NOW)
    }

    #[test]
    fn a_token_is_renewed_when_it_would_have_been() {
        let (snapshot, state) = resumed(Some(token(1_000)), None, PreviousExit::Crashed);
        assert_eq!(snapshot.next_attempt, Some(after(1_880)));
        assert!(snapshot.usable(NOW, Duration::from_secs(2_599)).is_some());
        assert_ne!(snapshot.token.unwrap().fingerprint, Fingerprint([0; 8]), "it is computed again");
        assert_eq!(state.last_attempt, Some(NOW.before(Duration::from_secs(1_000))));
    }

    #[test]
    fn an_overdue_renewal_is_spread_but_not_beyond_the_expiry() {
        let next = |age| resumed(Some(token(age)), None, PreviousExit::Crashed).0.next_attempt;
        assert_eq!(next(3_000), Some(after(20)));
        assert_eq!(next(3_595), Some(after(4)));
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
        assert_eq!(state, ActorState::default());
    }
}

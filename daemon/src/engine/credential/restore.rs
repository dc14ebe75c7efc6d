//! How a credential goes on where a restart interrupted it: as if nothing had happened.

use std::sync::Arc;
use std::time::Duration;

use super::{Schedule, Snapshot, Token};
use crate::clock::Instant;
use crate::engine::schedule::{Jitter, renew_at};
use crate::fingerprint::Fingerprinter;
use crate::store::record::{FailureRecord, Record, TokenRecord};
use crate::store::{PreviousExit, RecordWriter};

/// What a credential begins with: what is kept of it, and the way to keep what follows.
#[derive(Debug, Default)]
pub struct Kept {
    /// Where its state is kept.
    pub keep: RecordWriter,
    /// Its state before the restart.
    pub record: Option<Record>,
    /// Whether the wait after a failure is over, because somebody has perhaps put something right.
    pub previous_exit: PreviousExit,
}

/// The part of an actor's state that only it knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ActorState {
    pub(super) jitter: Jitter,
    pub(super) longest_life: Duration,
    pub(super) last_attempt: Option<Instant>,
    pub(super) unused_renewals: u32,
    pub(super) interrupted_requests: u32,
}

impl ActorState {
    fn of(record: &Record, jitter: Jitter) -> Self {
        let token = record.token.as_ref();
        let sent_at = token.map(|token| token.validity.sent_at);
        let failed_at = record.failure.as_ref().map(|failure| failure.failed.at);
        Self {
            jitter: token.map_or(jitter, |token| Jitter::new(token.jitter)),
            longest_life: token.map_or(Duration::ZERO, |token| token.longest_lifetime),
            last_attempt: sent_at.max(failed_at),
            unused_renewals: record.unused_renewals,
            interrupted_requests: record.interrupted_requests,
        }
    }
}

/// What readers see first, and what the actor remembers. `first_attempt` is when a credential without a past would
/// ask for the first time, and `jitter` what it would have rolled.
pub(super) fn resume(
    record: &Record,
    previous_exit: PreviousExit,
    (schedule, first_attempt): (&Schedule, Option<Instant>),
    jitter: Jitter,
    fingerprinter: &Fingerprinter,
    now: Instant,
) -> (Snapshot, ActorState) {
    let memories = ActorState::of(record, jitter);
    let next_attempt = match (&record.token, &record.failure) {
        (_, Some(failure)) => after_failure(failure, previous_exit, first_attempt, now),
        (Some(token), None) => Some(renewal(token, schedule, first_attempt, now)),
        (None, None) => first_attempt,
    };
    let token = record.token.as_ref().map(|record: &TokenRecord| {
        Arc::new(Token {
            secret: record.secret.clone(),
            fingerprint: fingerprinter.fingerprint(&record.secret),
            validity: record.validity,
            token_type: Arc::clone(&record.token_type),
            scope: record.scope.clone(),
        })
    });
    let snapshot = Snapshot {
        token,
        failures: record.failure.as_ref().map_or(0, |failure| failure.failures),
        last_error: record.failure.as_ref().map(|failure| failure.failed.clone()),
        next_attempt,
        ..Snapshot::default()
    };
    (snapshot, memories)
}

/// When it would have been renewed. What is overdue is spread as at any start, and not beyond its end.
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
        // It rests, and a caller wakes it.
        (None, _) => first_attempt,
        (Some(at), PreviousExit::Crashed) => Some(at.max(first_attempt.unwrap_or(now))),
        (Some(at), PreviousExit::Orderly) => Some(at.min(first_attempt.unwrap_or(now)).max(now)),
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

    /// A token of an hour that was asked for so long ago. Without jitter it is renewed after 2,880 seconds.
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

    /// What a credential begins with that would else ask in 20 seconds.
    fn resumed(
        token: Option<TokenRecord>,
        failure: Option<FailureRecord>,
        previous_exit: PreviousExit,
    ) -> (Snapshot, ActorState) {
        let record = Record { token, failure, ..Record::default() };
        let schedule =
            Schedule { names: "t".into(), refresh_before: None, renewal_mode: RenewalMode::Always };
        let fingerprinter = Fingerprinter::generate().unwrap();
        resume(&record, previous_exit, (&schedule, Some(after(20))), Jitter::new(0.9), &fingerprinter, NOW)
    }

    #[test]
    fn a_token_is_renewed_when_it_would_have_been() {
        let (snapshot, memories) = resumed(Some(token(1_000)), None, PreviousExit::Crashed);
        assert_eq!(snapshot.next_attempt, Some(after(1_880)));
        assert!(snapshot.usable(NOW, Duration::from_secs(2_600)).is_some());
        assert_eq!(memories.jitter, Jitter::new(0.0), "not rolled again");
        assert_eq!(memories.last_attempt, Some(NOW.before(Duration::from_secs(1_000))));
    }

    #[test]
    fn what_is_overdue_is_spread_and_not_beyond_its_end() {
        let next = |age| resumed(Some(token(age)), None, PreviousExit::Crashed).0.next_attempt;
        assert_eq!(next(3_000), Some(after(20)));
        assert_eq!(next(3_595), Some(after(5)));
    }

    #[test]
    fn a_crash_ends_no_wait_and_a_restart_on_purpose_does() {
        let next = |at, previous_exit| {
            let (snapshot, _) = resumed(Some(token(1_000)), Some(failure(at)), previous_exit);
            assert_eq!((snapshot.failures, snapshot.last_error.is_some()), (4, true));
            snapshot.next_attempt
        };
        assert_eq!(next(Some(after(500)), PreviousExit::Crashed), Some(after(500)));
        assert_eq!(next(Some(NOW), PreviousExit::Crashed), Some(after(20)), "what is overdue is spread");
        assert_eq!(next(Some(after(500)), PreviousExit::Orderly), Some(after(20)));
        assert_eq!(next(Some(after(5)), PreviousExit::Orderly), Some(after(5)), "and puts nothing off");
        let long_ago = NOW.before(Duration::from_secs(60));
        assert_eq!(next(Some(long_ago), PreviousExit::Orderly), Some(NOW), "it was not slept through");
    }

    #[test]
    fn a_credential_without_a_past_begins_as_ever() {
        let (snapshot, memories) = resumed(None, None, PreviousExit::Crashed);
        assert_eq!((snapshot.next_attempt, snapshot.failures), (Some(after(20)), 0));
        assert_eq!((memories.jitter, memories.last_attempt), (Jitter::new(0.9), None));
    }
}

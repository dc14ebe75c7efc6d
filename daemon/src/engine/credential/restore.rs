//! How a credential goes on where a restart interrupted it: as if nothing had happened.

use std::sync::Arc;
use std::time::Duration;

use super::{Schedule, Snapshot, Token};
use crate::clock::Instant;
use crate::engine::schedule::{Jitter, renew_at};
use crate::fingerprint::Fingerprinter;
use crate::process::memlock;
use crate::store::Keep;
use crate::store::record::{KeptFailure, KeptToken, Record};

/// What a credential begins with: what is kept of it, and the way to keep what follows.
#[derive(Debug, Default)]
pub struct Kept {
    /// Where its state is kept.
    pub keep: Keep,
    /// Its state before the restart.
    pub record: Option<Record>,
    /// Whether the wait after a failure is over, because somebody has perhaps put something right.
    pub patience: Patience,
}

/// What a restart means for the wait after a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Patience {
    /// The process crashed. A crash is no reason to ask sooner, or a crash loop would be an attack.
    #[default]
    Kept,
    /// Somebody restarted the daemon. It ends the wait, as a reload does.
    Ended,
}

/// The part of an actor's state that only it knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Memories {
    pub(super) jitter: Jitter,
    pub(super) longest_life: Duration,
    pub(super) last_attempt: Option<Instant>,
    pub(super) unused_renewals: u32,
    pub(super) cut_off: u32,
}

impl Memories {
    fn of(record: &Record, jitter: Jitter) -> Self {
        let token = record.token.as_ref();
        let sent_at = token.map(|token| token.life.sent_at);
        let failed_at = record.failure.as_ref().map(|failure| failure.failed.at);
        Self {
            jitter: token.map_or(jitter, |token| token.jitter),
            longest_life: token.map_or(Duration::ZERO, |token| token.longest_life),
            last_attempt: sent_at.max(failed_at),
            unused_renewals: record.unused_renewals,
            cut_off: record.cut_off,
        }
    }
}

/// What readers see first, and what the actor remembers. `first_attempt` is when a credential without a past would
/// ask for the first time, and `jitter` what it would have rolled.
pub(super) fn resume(
    record: &Record,
    patience: Patience,
    (schedule, first_attempt): (&Schedule, Option<Instant>),
    jitter: Jitter,
    fingerprinter: &Fingerprinter,
    now: Instant,
) -> (Snapshot, Memories) {
    let memories = Memories::of(record, jitter);
    let next_attempt = match (&record.token, &record.failure) {
        (_, Some(failure)) => after_failure(failure, patience, first_attempt, now),
        (Some(token), None) => Some(renewal(token, schedule, first_attempt, now)),
        (None, None) => first_attempt,
    };
    let token = record.token.as_ref().map(|KeptToken { secret, life, .. }| {
        memlock::keep_out(secret);
        let fingerprint = fingerprinter.fingerprint(secret);
        Arc::new(Token { secret: secret.clone(), fingerprint, life: *life })
    });
    let snapshot = Snapshot {
        token,
        failures: record.failure.as_ref().map_or(0, |failure| failure.failures),
        last_error: record.failure.as_ref().map(|failure| failure.failed.clone()),
        ..Snapshot::pending(next_attempt)
    };
    (snapshot, memories)
}

/// When it would have been renewed. What is overdue is spread as at any start, and not beyond its end.
fn renewal(token: &KeptToken, schedule: &Schedule, first_attempt: Option<Instant>, now: Instant) -> Instant {
    let due = renew_at(token.life, schedule.refresh_before, token.longest_life, token.jitter);
    if due > now {
        return due;
    }
    first_attempt.map_or(now, |spread| spread.min(token.life.expires_at()))
}

fn after_failure(
    failure: &KeptFailure,
    patience: Patience,
    first_attempt: Option<Instant>,
    now: Instant,
) -> Option<Instant> {
    match (failure.next_attempt, patience) {
        // It rests, and a caller wakes it.
        (None, _) => first_attempt,
        (Some(at), Patience::Kept) => Some(at.max(first_attempt.unwrap_or(now))),
        (Some(at), Patience::Ended) => Some(at.min(first_attempt.unwrap_or(now)).max(now)),
    }
}

#[cfg(test)]
mod tests {
    use tokend_protocol::{ErrorClass, Secret};

    use super::*;
    use crate::engine::credential::{Failed, Warmth};
    use crate::engine::schedule::Life;

    const NOW: Instant = Instant::at(Duration::from_secs(100_000));

    fn after(seconds: u64) -> Instant {
        NOW.after(Duration::from_secs(seconds))
    }

    /// A token of an hour that was asked for so long ago. Without jitter it is renewed after 2,880 seconds.
    fn token(age: u64) -> KeptToken {
        KeptToken {
            secret: Secret::from("a token".to_owned()),
            life: Life {
                sent_at: NOW.before(Duration::from_secs(age)),
                lifetime: Duration::from_secs(3_600),
            },
            longest_life: Duration::from_secs(3_600),
            jitter: Jitter::new(0.0),
        }
    }

    fn failure(next_attempt: Option<Instant>) -> KeptFailure {
        let at = NOW.before(Duration::from_secs(10));
        let failed = Failed { class: ErrorClass::Refused, message: "refused".into(), detail: None, at };
        KeptFailure { failures: 4, failed, next_attempt }
    }

    /// What a credential begins with that would else ask in 20 seconds.
    fn resumed(
        token: Option<KeptToken>,
        failure: Option<KeptFailure>,
        patience: Patience,
    ) -> (Snapshot, Memories) {
        let record = Record { token, failure, ..Record::default() };
        let schedule = Schedule { names: "t".into(), refresh_before: None, warmth: Warmth::Always };
        let fingerprinter = Fingerprinter::generate().unwrap();
        resume(&record, patience, (&schedule, Some(after(20))), Jitter::new(0.9), &fingerprinter, NOW)
    }

    #[test]
    fn a_token_is_renewed_when_it_would_have_been() {
        let (snapshot, memories) = resumed(Some(token(1_000)), None, Patience::Kept);
        assert_eq!(snapshot.next_attempt, Some(after(1_880)));
        assert!(snapshot.usable(NOW, Duration::from_secs(2_600)).is_some());
        assert_eq!(memories.jitter, Jitter::new(0.0), "not rolled again");
        assert_eq!(memories.last_attempt, Some(NOW.before(Duration::from_secs(1_000))));
    }

    #[test]
    fn what_is_overdue_is_spread_and_not_beyond_its_end() {
        let next = |age| resumed(Some(token(age)), None, Patience::Kept).0.next_attempt;
        assert_eq!(next(3_000), Some(after(20)));
        assert_eq!(next(3_595), Some(after(5)));
    }

    #[test]
    fn a_crash_ends_no_wait_and_a_restart_on_purpose_does() {
        let next = |at, patience| {
            let (snapshot, _) = resumed(Some(token(1_000)), Some(failure(at)), patience);
            assert_eq!((snapshot.failures, snapshot.last_error.is_some()), (4, true));
            snapshot.next_attempt
        };
        assert_eq!(next(Some(after(500)), Patience::Kept), Some(after(500)));
        assert_eq!(next(Some(NOW), Patience::Kept), Some(after(20)), "what is overdue is spread");
        assert_eq!(next(Some(after(500)), Patience::Ended), Some(after(20)));
        assert_eq!(next(Some(after(5)), Patience::Ended), Some(after(5)), "and puts nothing off");
        let long_ago = NOW.before(Duration::from_secs(60));
        assert_eq!(next(Some(long_ago), Patience::Ended), Some(NOW), "it was not slept through");
    }

    #[test]
    fn a_credential_without_a_past_begins_as_ever() {
        let (snapshot, memories) = resumed(None, None, Patience::Kept);
        assert_eq!((snapshot.next_attempt, snapshot.failures), (Some(after(20)), 0));
        assert_eq!((memories.jitter, memories.last_attempt), (Jitter::new(0.9), None));
    }
}

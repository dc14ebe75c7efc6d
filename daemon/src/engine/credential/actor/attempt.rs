//! One attempt to get a new token: whether the issuer may be asked, the request, and what its outcome changes.

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::ErrorClass;

use super::Actor;
use crate::clock::{Instant, Validity};
use crate::engine::credential::{Attempted, Failed, Snapshot, Token};
use crate::engine::schedule::{Jitter, Recovery, back_off, issuer_pause};
use crate::engine::throttle::{Admission, Held, Urgency};
use crate::oauth::{Failure, Granted, Outcome, Provider, SecretInUse};
use crate::store::record::{FailureRecord, Record};

/// Tokens that were held back by their issuer's condition come back spread over so long.
const HELD_SPREAD: Duration = Duration::from_secs(5);

/// Token requests in a row during which the process may end without that being a failure of theirs. A kill may fall into
/// one, and into the next; where it always does, what comes back may be what ends the process.
const INTERRUPTED_MAX: u32 = 2;

/// The longest message or detail that is kept of a failure, in characters.
const WORDS_MAX: usize = 500;

impl<P: Provider> Actor<P> {
    /// One request to the provider and what follows from it.
    pub(super) async fn attempt(&mut self, urgency: Urgency) -> Attempted {
        self.update(|snapshot| snapshot.in_flight = true);
        let (issuer, clock) = (Arc::clone(&self.issuer), self.clock.clone());
        let discarded = self.inbox.discarded.clone();
        let Some(admitted) = discarded.run_until_cancelled(issuer.admit(urgency, &clock)).await else {
            return self.give_up();
        };
        match admitted {
            Ok(_) if self.inbox.stop.is_cancelled() => self.give_up(),
            Ok(admission) => self.exchange(admission).await,
            // Those who wait are answered only by an exchange: what holds the schedule back need not hold them.
            Err(held) => self.hold_back(held),
        }
    }

    async fn exchange(&mut self, admission: Admission<'_>) -> Attempted {
        let sent_at = self.clock.now();
        self.last_attempt = Some(sent_at);
        self.interrupted_requests = self.interrupted_requests.saturating_add(1);
        self.keep.changed(self.record_if_cut_off(sent_at));
        let requested = self.inbox.discarded.run_until_cancelled(self.provider.request()).await;
        let Some(Outcome { result, deviations, requests, client_secret, clock_skew }) = requested else {
            return self.give_up();
        };
        self.interrupted_requests = 0;
        self.issuer.also_sent(requests.saturating_sub(1), self.clock.now());
        self.note_client_secret(client_secret);
        self.update(|snapshot| {
            snapshot.requests += u64::from(requests);
            snapshot.clock_skew = clock_skew.or(snapshot.clock_skew);
            for deviation in deviations {
                *snapshot.deviations.entry(deviation).or_default() += 1;
            }
        });
        let attempted = match result {
            Ok(granted) => {
                self.issuer.answered();
                // What follows may wait for a disk, and the issuer's other tokens need not.
                drop(admission);
                self.granted(granted, sent_at).await
            }
            Err(failure) => self.failed(failure),
        };
        self.answer_those_who_waited(&attempted);
        attempted
    }

    /// What a successor is to go on from if the process ends during the request that is sent now.
    fn record_if_cut_off(&self, sent_at: Instant) -> Record {
        let snapshot = self.snapshot();
        let mut record = self.record(&snapshot);
        if self.interrupted_requests > INTERRUPTED_MAX {
            let failures = snapshot.failures.saturating_add(1);
            let remaining =
                snapshot.usable(sent_at, Duration::ZERO).map(|token| token.validity.remaining(sent_at));
            let delay = back_off(Recovery::Time, failures, remaining, None, Jitter::new((self.roll)()));
            let message = "the daemon ended during each of its last token requests".into();
            let failed = Failed { class: ErrorClass::Internal, message, detail: None, at: sent_at };
            record.failure =
                Some(FailureRecord { failures, failed, next_attempt: Some(sent_at.after(delay)) });
        }
        record
    }

    fn note_client_secret(&self, used: Option<SecretInUse>) {
        let Some(used) = used else { return };
        let before = self.snapshot().client_secret.map_or(0, |secret| secret.index);
        if before != used.index {
            tracing::warn!(token = self.names(), "{}: of the client secrets {used}", self.names());
        }
        self.update(|snapshot| snapshot.client_secret = Some(used));
    }

    async fn granted(&mut self, granted: Granted, sent_at: Instant) -> Attempted {
        let life = Validity { sent_at, lifetime: granted.lifetime };
        if life.remaining(self.clock.now()).is_zero() {
            let failure = Failure::new(ErrorClass::Malformed, "an access token that expired on its way");
            return self.failed(failure);
        }
        let fingerprint = self.fingerprinter.fingerprint(&granted.token);
        let held = self.snapshot().token.clone();
        let attempted = match held {
            Some(held) if held.fingerprint == fingerprint => Attempted::Unchanged,
            _ => Attempted::Changed,
        };
        if attempted == Attempted::Changed {
            self.jitter = Jitter::new((self.roll)());
            self.longest_life = granted.lifetime;
        }
        self.longest_life = self.longest_life.max(granted.lifetime);
        let next_attempt = Some(self.renewal(life));
        let token = Arc::new(Token {
            secret: granted.token,
            fingerprint,
            validity: life,
            token_type: granted.token_type,
            scope: granted.scope,
        });
        self.changes_in_vain = 0;
        let renewed = |snapshot: &mut Snapshot| {
            snapshot.token = Some(token);
            snapshot.in_flight = false;
            snapshot.last_error = None;
            snapshot.failures = 0;
            snapshot.next_attempt = next_attempt;
        };
        let mut kept = Snapshot::clone(&self.snapshot());
        renewed.clone()(&mut kept);
        // Nobody is given a token that a crash could lose.
        self.keep.renewed(self.record(&kept)).await;
        self.update(renewed);
        let lifetime = granted.lifetime.as_secs();
        tracing::info!(token = self.names(), %fingerprint, lifetime, changed = attempted == Attempted::Changed, "{} renewed", self.names());
        attempted
    }

    pub(super) fn failed(&mut self, failure: Failure) -> Attempted {
        let now = self.clock.now();
        let snapshot = self.snapshot();
        let remaining = snapshot.usable(now, Duration::ZERO).map(|token| token.validity.remaining(now));
        let failures = snapshot.failures.saturating_add(1);
        let jitter = Jitter::new((self.roll)());
        let delay =
            back_off(Recovery::after(failure.class), failures, remaining, failure.retry_after, jitter);
        self.tell_issuer(&failure, now, jitter);
        let Failure { class, message, detail, .. } = failure;
        let detail = detail.map(|text| capped(&text));
        let failed = Failed { class, message: capped(&message), detail, at: now };
        let next_attempt = Some(now.after(delay));
        self.update(|snapshot| {
            snapshot.in_flight = false;
            snapshot.last_error = Some(failed.clone());
            snapshot.failures = failures;
            snapshot.next_attempt = next_attempt;
        });
        self.keep.changed(self.record(&self.snapshot()));
        tracing::warn!(
            token = self.names(),
            class = failed.class.as_str(),
            reason = &*failed.message,
            detail = failed.detail.as_deref(),
            failures,
            retry_in = delay.as_secs(),
            token_valid_for = remaining.map(|rest| rest.as_secs()),
            "{} not renewed: {}",
            self.names(),
            failed.message
        );
        Attempted::Failed(failed, next_attempt)
    }

    /// What a failure says about the issuer, and so about its other tokens.
    fn tell_issuer(&self, failure: &Failure, now: Instant, jitter: Jitter) {
        // With any other failure it speaks to this token alone, whose own back-off heeds it.
        let speaks_to_all = matches!(failure.class, ErrorClass::Throttled | ErrorClass::Server);
        if let Some(asked) = failure.retry_after.filter(|_| speaks_to_all) {
            let pause = issuer_pause(asked);
            tracing::warn!(
                token = self.names(),
                pause = pause.as_secs(),
                "the issuer asks all its clients for quiet"
            );
            self.issuer.keep_quiet(now.after(pause));
        }
        match failure.class {
            ErrorClass::Unreachable | ErrorClass::Timeout | ErrorClass::Tls | ErrorClass::Server => {
                self.issuer.failed(failure.class, now, jitter);
            }
            // It answered, whatever it said to this one.
            ErrorClass::Refused => self.issuer.answered(),
            ErrorClass::Throttled | ErrorClass::Malformed | ErrorClass::Secret | ErrorClass::Internal => (),
        }
    }

    /// Sends nothing for now, because of the issuer's condition. No failure of this token's own.
    fn hold_back(&mut self, held: Held) -> Attempted {
        let message = match held.class {
            ErrorClass::Throttled => "the provider asked for fewer requests",
            _ => "the provider does not answer",
        };
        let now = self.clock.now();
        let failed = Failed { class: held.class, message: message.into(), detail: None, at: now };
        let until = held.until.after(HELD_SPREAD.mul_f64((self.roll)()));
        let snapshot = self.snapshot();
        if snapshot.last_error.is_none() {
            tracing::warn!(
                token = self.names(),
                class = held.class.as_str(),
                "{} held back: {message}",
                self.names()
            );
        }
        // An order that came long before the renewal is due changes nothing about the renewal.
        let is_due = snapshot.next_attempt.is_none_or(|at| at <= until);
        self.update(|snapshot| {
            snapshot.in_flight = false;
            if is_due {
                snapshot.last_error.get_or_insert_with(|| failed.clone());
                snapshot.next_attempt = Some(until);
            }
        });
        Attempted::Failed(failed, Some(until))
    }

    /// Ends an attempt that nobody has a use for any more.
    fn give_up(&mut self) -> Attempted {
        self.update(|snapshot| snapshot.in_flight = false);
        let message = "the configuration of the token changed".into();
        let at = self.clock.now();
        Attempted::Failed(Failed { class: ErrorClass::Internal, message, detail: None, at }, None)
    }
}

fn capped(text: &str) -> Arc<str> {
    text.chars().take(WORDS_MAX).collect::<String>().into()
}

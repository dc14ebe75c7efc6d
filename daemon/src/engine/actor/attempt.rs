//! One attempt to get a new token: waits for the throttle, sends the request, applies the outcome.

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::ErrorClass;

use super::{Actor, Command};
use crate::clock::{Instant, Validity};
use crate::engine::credential::{Attempted, Failed, Snapshot, Token};
use crate::engine::schedule::{RETRY_AFTER_MOST, back_off, renew_at};
use crate::engine::throttle::{Admission, EndpointThrottle, HeldBack, Urgency};
use crate::oauth::{Failure, Granted, Outcome, Provider, SecretInUse};
use crate::store::record::{FailureRecord, Record};

/// The next attempts of tokens that the throttle held back are spread over this time.
const HELD_SPREAD: Duration = Duration::from_secs(5);

/// How many token requests in a row may be interrupted by the end of the process before that counts as a failure. Two
/// may be chance; after that, the reply may be what crashes the daemon.
const INTERRUPTED_MAX: u32 = 2;

/// The longest message or detail of a failure that is stored, in characters.
const MESSAGE_MAX: usize = 500;

impl<P: Provider> Actor<P> {
    /// Waits for a turn, sends one request, and publishes what it brings. `None` if the actor was stopped meanwhile.
    pub(super) async fn attempt(&mut self, urgency: Urgency) -> Option<Attempted> {
        self.update(|snapshot| snapshot.in_flight = true);
        let throttle = Arc::clone(&self.throttle);
        let mut waiting = None;
        let attempted = match self.admission(&throttle, urgency, &mut waiting).await {
            None => None,
            Some(Ok(admission)) => self.exchange(admission).await,
            Some(Err(held)) => Some(self.hold_back(held)),
        };
        let Some(attempted) = attempted else {
            self.update(|snapshot| snapshot.in_flight = false);
            return None;
        };
        if let Some(command) = waiting {
            self.answer(command, &attempted);
        }
        Some(attempted)
    }

    /// Waits for the throttle. If a caller's command arrives while a scheduled request waits, it is put in `waiting`,
    /// and the request moves to the callers' line.
    async fn admission<'a>(
        &mut self,
        throttle: &'a EndpointThrottle,
        urgency: Urgency,
        waiting: &mut Option<Command>,
    ) -> Option<Result<Admission<'a>, HeldBack>> {
        let (stop, clock) = (self.stop.clone(), self.context.clock.clone());
        if urgency == Urgency::Scheduled {
            let caller = async {
                loop {
                    match self.commands.recv().await {
                        Some(Command::Wake | Command::Retry) => (),
                        Some(command) => break command,
                        None => std::future::pending().await,
                    }
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                admitted = throttle.admit(Urgency::Scheduled, &clock) => return Some(admitted),
                command = caller => *waiting = Some(command),
            }
        }
        stop.run_until_cancelled(throttle.admit(Urgency::Needed, &clock)).await
    }

    async fn exchange(&mut self, admission: Admission<'_>) -> Option<Attempted> {
        let sent_at = self.context.clock.now();
        self.state.last_attempt = Some(sent_at);
        self.state.interrupted_requests = self.state.interrupted_requests.saturating_add(1);
        self.writer.changed(self.record_if_interrupted(sent_at));
        let requested = self.discarded.run_until_cancelled(self.provider.request()).await?;
        let Outcome { result, deviations, requests, client_secret, facts, clock_skew } = requested;
        self.state.interrupted_requests = 0;
        self.throttle.also_sent(requests.saturating_sub(1), self.context.clock.now());
        self.note_client_secret(client_secret);
        self.update(|snapshot| {
            snapshot.requests += u64::from(requests);
            snapshot.clock_skew = clock_skew.or(snapshot.clock_skew);
            snapshot.facts = Arc::new(facts);
            for deviation in deviations {
                *snapshot.deviations.entry(deviation).or_default() += 1;
            }
        });
        let attempted = match result {
            Ok(granted) => {
                self.throttle.reset();
                // The store may wait for a disk, and other tokens need not wait for that.
                drop(admission);
                self.granted(granted, sent_at).await
            }
            Err(failure) => self.failed(failure),
        };
        while let Ok(command) = self.commands.try_recv() {
            self.answer(command, &attempted);
        }
        Some(attempted)
    }

    /// The record from which the next process resumes if this one ends during the request.
    fn record_if_interrupted(&self, sent_at: Instant) -> Record {
        let snapshot = self.snapshot();
        let mut record = self.record(&snapshot);
        if self.state.interrupted_requests > INTERRUPTED_MAX {
            let failures = snapshot.failures.saturating_add(1);
            let remaining = remaining(&snapshot, sent_at);
            let (class, jitter) = (ErrorClass::Internal, (self.context.roll)());
            let next_attempt = Some(sent_at.after(back_off(class, failures, remaining, None, jitter)));
            let message = "the daemon ended during each of its last token requests";
            let failed = Failed::new(class, message, sent_at);
            record.failure = Some(FailureRecord { failures, failed, next_attempt });
        }
        record
    }

    fn note_client_secret(&self, used: Option<SecretInUse>) {
        let Some(used) = used else { return };
        let before = self.snapshot().client_secret.map_or(0, |secret| secret.index);
        if before != used.index {
            let names = self.names();
            tracing::warn!(token = names, "{names}: client secret: {used}");
        }
        self.update(|snapshot| snapshot.client_secret = Some(used));
    }

    async fn granted(&mut self, granted: Granted, sent_at: Instant) -> Attempted {
        let validity = Validity { sent_at, lifetime: granted.lifetime };
        if validity.remaining(self.context.clock.now()).is_zero() {
            let message = "an access token that had expired when it arrived";
            return self.failed(Failure::new(ErrorClass::Malformed, message));
        }
        let fingerprint = self.context.fingerprinter.fingerprint(&granted.token);
        let mut renewed = Snapshot::clone(&self.snapshot());
        let same = renewed.token.filter(|held| held.fingerprint == fingerprint);
        let (changed, lifetime) = (same.is_none(), granted.lifetime);
        let token = Token {
            secret: granted.token,
            fingerprint,
            validity,
            longest_lifetime: same.as_ref().map_or(lifetime, |held| held.longest_lifetime.max(lifetime)),
            jitter: same.map_or_else(self.context.roll, |held| held.jitter),
            scope: granted.scope,
        };
        self.state.changes_in_vain = 0;
        renewed.in_flight = false;
        renewed.last_error = None;
        renewed.failures = 0;
        renewed.next_attempt = Some(renew_at(&token, self.schedule.refresh_before));
        renewed.token = Some(Arc::new(token));
        // Stored before it is published: nobody is given a token that a crash could lose.
        self.writer.renewed(self.record(&renewed)).await;
        self.publish.send_replace(Arc::new(renewed));
        let (names, lifetime) = (self.names(), lifetime.as_secs());
        tracing::info!(token = names, %fingerprint, lifetime, changed, "{names} renewed");
        if changed { Attempted::Changed } else { Attempted::Unchanged }
    }

    pub(super) fn failed(&mut self, failure: Failure) -> Attempted {
        let now = self.context.clock.now();
        let snapshot = self.snapshot();
        let remaining = remaining(&snapshot, now);
        let failures = snapshot.failures.saturating_add(1);
        let jitter = (self.context.roll)();
        let delay = back_off(failure.class, failures, remaining, failure.retry_after, jitter);
        self.tell_throttle(&failure, now);
        let Failure { class, message, detail, needs_operator, .. } = failure;
        let detail = detail.map(|text| capped(&text));
        let failed = Failed { class, message: capped(&message), detail, at: now, needs_operator };
        let next_attempt = Some(now.after(delay));
        self.update(|snapshot| {
            snapshot.in_flight = false;
            snapshot.last_error = Some(failed.clone());
            snapshot.failures = failures;
            snapshot.next_attempt = next_attempt;
        });
        self.writer.changed(self.record(&self.snapshot()));
        let detail = failed.detail.as_deref();
        let retry_in = delay.as_secs();
        tracing::warn!(
            token = self.names(),
            class = failed.class.as_str(),
            reason = &*failed.message,
            detail,
            failures,
            retry_in,
            token_valid_for = remaining.map(|rest| rest.as_secs()),
            "{} not renewed: {}{}{}; next attempt in {retry_in} s",
            self.names(),
            failed.message,
            detail.map_or("", |_| ": "),
            detail.unwrap_or_default(),
        );
        Attempted::Failed(failed, next_attempt)
    }

    /// Reports a failure to the throttle, if it concerns other tokens of the provider too.
    fn tell_throttle(&self, failure: &Failure, now: Instant) {
        // Other failures concern this token only; its own back-off respects their `Retry-After`.
        let concerns_all = matches!(failure.class, ErrorClass::Throttled | ErrorClass::Server);
        if let Some(asked) = failure.retry_after.filter(|_| concerns_all) {
            let pause = asked.min(RETRY_AFTER_MOST);
            let (names, seconds) = (self.names(), pause.as_secs());
            tracing::warn!(
                token = names,
                pause = seconds,
                "the provider of {names} asked for no requests for {seconds} s; all tokens of its host wait"
            );
            self.throttle.origin().keep_quiet(now.after(pause));
        }
        match failure.class {
            ErrorClass::Unreachable | ErrorClass::Timeout | ErrorClass::Tls | ErrorClass::Server => {
                self.throttle.failed(failure.class, now, (self.context.roll)());
            }
            // The endpoint answered, so it is not down.
            ErrorClass::Refused => self.throttle.reset(),
            ErrorClass::Throttled | ErrorClass::Malformed | ErrorClass::Secret | ErrorClass::Internal => (),
        }
    }

    /// Waits because the throttle holds the request back. This is not counted as a failure of the token.
    fn hold_back(&mut self, held: HeldBack) -> Attempted {
        let now = self.context.clock.now();
        let failed = held.failed(now);
        let until = self.spread(held.until, HELD_SPREAD);
        let snapshot = self.snapshot();
        if snapshot.last_error.is_none() {
            let (names, message, class) = (self.names(), &failed.message, held.class.as_str());
            let wait = until.since(now).as_secs();
            tracing::warn!(token = names, class, "{names} waits: {message}; next attempt in {wait} s");
        }
        // A command that came long before the renewal is due changes nothing about the renewal.
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
}

/// How long the held token remains valid, if it is.
fn remaining(snapshot: &Snapshot, now: Instant) -> Option<Duration> {
    snapshot.usable(now, Duration::ZERO).map(|token| token.validity.remaining(now))
}

fn capped(text: &str) -> Arc<str> {
    text.chars().take(MESSAGE_MAX).collect::<String>().into()
}

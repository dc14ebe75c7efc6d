//! One attempt to get a new token: waits for the throttle, sends the request, applies the outcome.

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::ErrorClass;

use super::Actor;
use crate::clock::{Instant, Validity};
use crate::engine::credential::{Attempted, Failed, Snapshot, Token};
use crate::engine::schedule::{MIN_GAP, Pace, RETRY_AFTER_MOST, callers_from, passes, renew_at, retry_at};
use crate::engine::throttle::{Admission, HeldBack, Urgency};
use crate::oauth::{CA_FILE_UNUSABLE, EXPIRED_ON_ARRIVAL, Failure, Granted, Outcome, Provider, SecretInUse};
use crate::store::record::{FailureRecord, Record};

/// The next attempts of tokens that the throttle held back are spread over this time.
const HELD_SPREAD: Duration = Duration::from_secs(5);

/// How long a token without a valid one waits at most for a token endpoint that is down, before it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The longest wait for the provider's own expiry of a token. A longer one means that the clocks disagree.
const EXPIRY_WAIT_MOST: Duration = Duration::from_secs(5);

/// How many token requests in a row may be interrupted by the end of the process before that counts as a failure. Two
/// may be chance; after that, the reply may be what crashes the daemon.
const INTERRUPTED_MAX: u32 = 2;

/// The longest message or detail of a failure that is stored, in characters.
const MESSAGE_MAX: usize = 500;

impl<P: Provider> Actor<P> {
    /// Waits for a turn, sends one request, and publishes what it brings. `None` if the actor was stopped meanwhile. If a
    /// caller's command arrives while a scheduled request waits, the request moves to the callers' line.
    pub(super) async fn attempt(&mut self, mut urgency: Urgency) -> Option<Attempted> {
        self.update(|snapshot| snapshot.in_flight = true);
        if let Some(at) = self.provider_expiry() {
            Box::pin(self.wait_for_expiry(at)).await;
        }
        let throttle = Arc::clone(&self.core.throttle);
        let mut has_caller = false;
        let admitted = loop {
            let is_scheduled = urgency == Urgency::Scheduled;
            tokio::select! {
                biased;
                interruption = self.core.interruption(is_scheduled) => {
                    let Some(is_ordered) = interruption else { break None };
                    urgency = if is_ordered { Urgency::Ordered } else { self.needed() };
                    has_caller = true;
                }
                admitted = throttle.admit(urgency, &self.core.context.clock) => break Some(admitted),
            }
        };
        // Boxed, because a request is large, and many more actors wait for their turn than send one.
        Box::pin(self.go_on(admitted, has_caller)).await
    }

    /// Sends the request, if it was admitted. If a caller came meanwhile, its command is answered.
    async fn go_on(
        &mut self,
        admitted: Option<Result<Admission<'_>, HeldBack>>,
        has_caller: bool,
    ) -> Option<Attempted> {
        let attempted = match admitted {
            None => None,
            Some(Ok(admission)) => self.exchange(admission).await,
            Some(Err(held)) => Some(self.hold_back(held)),
        };
        let Some(attempted) = attempted else {
            self.update(|snapshot| snapshot.in_flight = false);
            return None;
        };
        if has_caller && let Some(command) = self.core.take_command() {
            self.answer(command, &attempted);
        }
        Some(attempted)
    }

    /// When a token that is not served any more expires for its provider too, where that gives a new one only then
    /// (`refresh_before = "0s"`).
    fn provider_expiry(&self) -> Option<Instant> {
        let now = self.core.context.clock.now();
        let is_served = self.snapshot().usable(now, Duration::ZERO).is_some();
        let waits = self.schedule.refresh_before == Some(Duration::ZERO) && !is_served;
        let expiry = self.kept.state.expired_at_provider.filter(|_| waits);
        expiry.filter(|at| *at > now && at.since(now) <= EXPIRY_WAIT_MOST)
    }

    /// Waits until then. Callers wait for the request meanwhile.
    async fn wait_for_expiry(&self, at: Instant) {
        tokio::select! {
            biased;
            () = self.core.stopped() => (),
            () = self.core.context.clock.sleep_until(at) => (),
        }
    }

    async fn exchange(&mut self, admission: Admission<'_>) -> Option<Attempted> {
        let sent_at = self.core.context.clock.now();
        self.kept.state.last_attempt = Some(sent_at);
        self.kept.state.interrupted_requests = self.kept.state.interrupted_requests.saturating_add(1);
        self.core.writer.changed(self.record_if_interrupted(sent_at));
        let requested = tokio::select! {
            biased;
            () = self.core.discarded() => return None,
            outcome = self.request() => outcome,
        };
        let Outcome { result, deviations, requests, client_secret, facts, clock_skew } = requested;
        self.kept.state.interrupted_requests = 0;
        self.core.throttle.origin().also_sent(requests.saturating_sub(1), self.core.context.clock.now());
        self.note_client_secret(client_secret);
        let facts = facts.into_iter().map(|(name, value)| (name, value.into())).collect();
        let facts = self.core.throttle.share(facts);
        self.update(|snapshot| {
            snapshot.requests = snapshot.requests.saturating_add(requests);
            snapshot.clock_skew = clock_skew.or(snapshot.clock_skew);
            snapshot.facts = facts;
            snapshot.count_deviations(deviations);
        });
        let attempted = match result {
            Ok(granted) => {
                self.core.throttle.granted();
                // The store may wait for a disk, and other tokens need not wait for that.
                drop(admission);
                self.granted(granted, sent_at).await
            }
            Err(failure) => self.failed(failure),
        };
        while let Some(command) = self.core.take_command() {
            self.answer(command, &attempted);
        }
        Some(attempted)
    }

    /// Sends one request. Where a provider gives a new token only once the old one has expired (`refresh_before = "0s"`), and
    /// this was a moment too early, it sends another one a second later: a provider counts in whole seconds.
    async fn request(&self) -> Outcome {
        let outcome = self.kept.provider.request().await;
        let is_too_early = match &outcome.result {
            Ok(granted) => granted.lifetime.is_zero(),
            Err(failure) => failure.message == EXPIRED_ON_ARRIVAL,
        };
        if self.schedule.refresh_before != Some(Duration::ZERO) || !is_too_early {
            return outcome;
        }
        self.core.context.clock.sleep_until(self.core.context.clock.now().after(MIN_GAP)).await;
        let again = self.kept.provider.request().await;
        Outcome { requests: outcome.requests.saturating_add(again.requests), ..again }
    }

    /// The record from which the next process resumes if this one ends during the request.
    fn record_if_interrupted(&self, sent_at: Instant) -> Record {
        let snapshot = self.snapshot();
        let mut record = self.record(&snapshot);
        if self.kept.state.interrupted_requests > INTERRUPTED_MAX {
            let failures = snapshot.failures.saturating_add(1);
            let (class, jitter) = (ErrorClass::Internal, (self.core.context.roll)());
            let held = held(&snapshot, sent_at);
            let next_attempt = Some(retry_at(Pace::Transient, failures, held, None, sent_at, jitter));
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
        let now = self.core.context.clock.now();
        let skew = self.snapshot().clock_skew.unwrap_or_default().unsigned_abs();
        let validity = Validity { sent_at, lifetime: granted.lifetime }.with_clock_skew(skew);
        let lifetime = validity.lifetime;
        if validity.remaining(now).is_zero() {
            return self.failed(Failure::new(ErrorClass::Malformed, EXPIRED_ON_ARRIVAL));
        }
        let fingerprint = self.core.context.fingerprinter.fingerprint(&granted.token);
        let mut renewed = Snapshot::clone(&self.snapshot());
        let same = renewed.token.filter(|held| held.fingerprint == fingerprint);
        let changed = same.is_none();
        let token = Token {
            secret: granted.token,
            fingerprint,
            validity,
            longest_lifetime: same.as_ref().map_or(lifetime, |held| held.longest_lifetime.max(lifetime)),
            jitter: same.map_or_else(self.core.context.roll, |held| held.jitter),
            scope: granted.scope,
        };
        self.kept.state.changes_in_vain = 0;
        self.kept.state.streak = None;
        self.kept.state.password_failures = 0;
        self.kept.state.without_code_since = None;
        self.kept.state.expired_at_provider = Some(now.after(granted.lifetime));
        renewed.in_flight = false;
        renewed.last_error = None;
        renewed.failures = 0;
        renewed.callers_from = None;
        renewed.next_attempt = Some(renew_at(&token, self.schedule.refresh_before));
        renewed.token = Some(Arc::new(token));
        // Stored before it is published: nobody is given a token that a crash could lose.
        self.core.writer.renewed(self.record(&renewed)).await;
        self.core.published.replace(renewed);
        let (names, lifetime) = (self.names(), lifetime.as_secs());
        tracing::info!(token = names, %fingerprint, lifetime, changed, "{names} renewed");
        if changed { Attempted::Changed } else { Attempted::Unchanged }
    }

    pub(super) fn failed(&mut self, failure: Failure) -> Attempted {
        let now = self.core.context.clock.now();
        let snapshot = self.snapshot();
        let failures = snapshot.failures.saturating_add(1);
        let without_code_for = self.without_code_for(&failure, now);
        let pace = Pace::of(&failure, without_code_for);
        let passes = passes(&failure, without_code_for);
        let in_a_row = match self.kept.state.streak {
            None => failures,
            Some(_) if pace == Pace::Password => self.kept.state.password_failures.saturating_add(1),
            Some((before, in_a_row)) if before == pace => in_a_row.saturating_add(1),
            Some(_) => 1,
        };
        self.kept.state.streak = Some((pace, in_a_row));
        if pace == Pace::Password {
            self.kept.state.password_failures = in_a_row;
        }
        let (held, jitter) = (held(&snapshot, now), (self.core.context.roll)());
        let next_attempt = retry_at(pace, in_a_row, held, failure.retry_after, now, jitter);
        self.tell_throttle(&failure, passes, now);
        let Failure { class, message, detail, needs_operator, .. } = failure;
        let needs_operator = needs_operator && !passes;
        let detail = detail.map(|text| capped(&text));
        let failed = Failed { class, message: capped(&message), detail, at: now, needs_operator };
        self.update(|snapshot| {
            snapshot.in_flight = false;
            snapshot.last_error = Some(Arc::new(failed.clone()));
            snapshot.failures = failures;
            snapshot.count_failure(class);
            snapshot.next_attempt = Some(next_attempt);
            snapshot.callers_from = Some(callers_from(&failed, next_attempt));
        });
        self.core.writer.changed(self.record(&self.snapshot()));
        let detail = failed.detail.as_deref();
        let retry_in = self.core.throttle.scheduled_from(next_attempt, now).since(now).as_secs();
        tracing::warn!(
            token = self.names(),
            class = failed.class.as_str(),
            reason = &*failed.message,
            detail,
            failures,
            retry_in,
            token_valid_for = held.map(|held| held.remaining(now).as_secs()),
            "{} not renewed: {}{}{}; next attempt in {retry_in} s",
            self.names(),
            failed.message,
            detail.map_or("", |_| ": "),
            detail.unwrap_or_default(),
        );
        Attempted::Failed(failed, Some(next_attempt))
    }

    /// How long the refusals without an OAuth error code last, of which this failure may be one.
    fn without_code_for(&mut self, failure: &Failure, now: Instant) -> Duration {
        let since = failure.may_be_a_gateways().then(|| self.kept.state.without_code_since.unwrap_or(now));
        self.kept.state.without_code_since = since;
        since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Reports a failure to the throttle, if it concerns other tokens of the provider too.
    fn tell_throttle(&self, failure: &Failure, passes: bool, now: Instant) {
        // Other failures concern this token only; its own back-off respects their `Retry-After`.
        let concerns_all = matches!(failure.class, ErrorClass::Throttled | ErrorClass::Server);
        if let Some(asked) = failure.retry_after.filter(|_| concerns_all) {
            let pause = asked.min(RETRY_AFTER_MOST);
            let (names, seconds) = (self.names(), pause.as_secs());
            tracing::warn!(
                token = names,
                pause = seconds,
                "the provider of {names} asked for no requests for {seconds} s; all tokens of this client wait"
            );
            self.core.throttle.keep_quiet(now.after(pause), now);
        }
        match failure.class {
            ErrorClass::Tls if failure.message == CA_FILE_UNUSABLE => (),
            ErrorClass::Unreachable | ErrorClass::Timeout | ErrorClass::Tls | ErrorClass::Server => {
                let is_first = self.snapshot().failures == 0;
                self.core.throttle.endpoint.failed(failure.class, is_first, now, (self.core.context.roll)());
            }
            // The endpoint answered, so it is not down.
            ErrorClass::Refused if !passes => self.core.throttle.endpoint.reset(),
            _ => (),
        }
    }

    /// Waits because the throttle holds the request back. This is not counted as a failure of the token.
    fn hold_back(&mut self, held: HeldBack) -> Attempted {
        let now = self.core.context.clock.now();
        let failed = held.failed(now);
        let snapshot = self.snapshot();
        // Costs no request while the throttle holds it back, and another token may have ended the outage by then.
        let look_again = now.after(LOOK_AGAIN);
        let may_end_sooner =
            held.class != ErrorClass::Throttled && snapshot.usable(now, Duration::ZERO).is_none();
        let until = if may_end_sooner { held.until.min(look_again) } else { held.until };
        let until = self.spread(until, HELD_SPREAD);
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
                snapshot.last_error.get_or_insert_with(|| Arc::new(failed.clone()));
                snapshot.next_attempt = Some(until);
            }
        });
        Attempted::Failed(failed, Some(until))
    }
}

/// The validity of the held token, if it is still valid.
fn held(snapshot: &Snapshot, now: Instant) -> Option<Validity> {
    snapshot.usable(now, Duration::ZERO).map(|token| token.validity)
}

fn capped(text: &str) -> Arc<str> {
    text.chars().take(MESSAGE_MAX).collect::<String>().into()
}

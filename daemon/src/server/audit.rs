//! The audit trail: every hand-out and every refusal is in it, under the target `tokend::server::audit`.
//!
//! A record names the token, its fingerprint, the peer and the grounds, and never a secret. One that repeats
//! another is counted instead of written, and the count is written when the window ends: see `audit/aggregator.rs`.

mod aggregator;
mod record;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokend_protocol::{Fingerprint, TokenName, Variant};
use tokio::sync::Notify;

use self::aggregator::Aggregator;
use self::record::{Count, Decided, Outcome};
use crate::access::Facts;
use crate::access::Reason;
use crate::clock::Clock;

/// How long repetitions are counted before the count is written. What a process that is killed has counted since
/// then is lost, so it is not long.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts that are written in one go, between which others have their turn.
const WRITTEN_AT_ONCE: usize = 16;

/// What a peer asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// To be connected.
    Connect,
    /// Something or other: it was refused before that was looked at.
    Request,
    /// The token.
    Get,
    /// The header set.
    Headers,
    /// A new token from the provider.
    Refresh,
    /// To report a refused token.
    Reject,
    /// To be told of changes.
    Watch,
    /// To be told the condition of one token.
    Status,
    /// To be told why somebody may have the token or may not.
    Explain,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Status => "status",
            Self::Request => "request",
            Self::Get => "get",
            Self::Headers => "headers",
            Self::Refresh => "refresh",
            Self::Reject => "reject",
            Self::Watch => "watch",
            Self::Explain => "explain",
        }
    }
}

/// Why a peer was refused, for the journal alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No rule of the token lets it.
    NoRule,
    /// It may have the token, but not with these scopes, resources or audiences.
    NoRuleOfForm,
    /// It may have the token, and the configuration lets nobody ask for it in this form.
    NoSuchForm,
    /// No such token is configured.
    NoSuchToken,
    /// One of those that a caller is not to tell apart, of which several were counted together.
    NothingForIt,
    /// It is not an operator.
    NotAnOperator,
    /// It, or its user, has too much of something: of what, in words.
    TooMuch(&'static str),
}

impl Refusal {
    /// What it is counted as together with others. Those that look the same to a caller are one, so that the time
    /// which a record takes tells them apart neither.
    fn generalised(self) -> Self {
        match self {
            Self::NoRule | Self::NoSuchToken => Self::NothingForIt,
            other => other,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::NoRule => "no rule of the token's allow list matches",
            Self::NoRuleOfForm => "no rule of a scope, resource or audience of this form matches",
            Self::NoSuchForm => "the configuration lets nobody ask for this form",
            Self::NoSuchToken => "no such token",
            Self::NothingForIt => "no rule matches, or no such token",
            Self::NotAnOperator => "not an operator",
            Self::TooMuch(of_what) => of_what,
        }
    }
}

/// The trail of this process.
#[derive(Debug, Default)]
pub struct Audit {
    /// Held for a look or a change, never across an await.
    folds: Mutex<Aggregator>,
    begun: Notify,
}

impl Audit {
    /// Records that a peer was given a token, in a form as the configuration writes it: the same form in other words
    /// is no other kind.
    pub fn handed_out(
        &self,
        peer: &Facts,
        verb: Operation,
        (token, variant): (&TokenName, &Variant),
        fingerprint: Fingerprint,
        grounds: &Reason,
    ) {
        let rule = grounds.to_string();
        let (token, variant, fingerprint) = (Some(token), Some(variant), Some(fingerprint));
        let outcome = Outcome::Allow(&rule);
        self.note(Decided { peer, verb, token, variant, fingerprint, outcome });
    }

    /// Records that a peer was allowed something that gives no token away.
    pub fn allowed(&self, peer: &Facts, verb: Operation, token: &TokenName, grounds: &Reason) {
        let rule = grounds.to_string();
        let outcome = Outcome::Allow(&rule);
        self.note(Decided { peer, verb, token: Some(token), variant: None, fingerprint: None, outcome });
    }

    /// Records that a peer was refused.
    pub fn refused(&self, peer: &Facts, verb: Operation, token: &TokenName, refusal: Refusal) {
        let outcome = Outcome::Deny(refusal);
        self.note(Decided { peer, verb, token: Some(token), variant: None, fingerprint: None, outcome });
    }

    /// Records that a peer was refused a form of a token that it may have otherwise. Only those terms of the form are
    /// to be given that are configured: others are the peer's own words.
    pub fn refused_form(&self, peer: &Facts, verb: Operation, (token, variant): (&TokenName, &Variant)) {
        let outcome = Outcome::Deny(Refusal::NoRuleOfForm);
        let (token, variant) = (Some(token), Some(variant));
        self.note(Decided { peer, verb, token, variant, fingerprint: None, outcome });
    }

    /// Records that a peer was turned away before it could ask for anything.
    pub fn turned_away(&self, peer: &Facts, refusal: Refusal) {
        self.without_a_name(peer, Operation::Connect, refusal);
    }

    /// Records that a request was refused whatever it asked for.
    pub fn over_quota(&self, peer: &Facts, refusal: Refusal) {
        self.without_a_name(peer, Operation::Request, refusal);
    }

    fn without_a_name(&self, peer: &Facts, verb: Operation, refusal: Refusal) {
        let outcome = Outcome::Deny(refusal);
        self.note(Decided { peer, verb, token: None, variant: None, fingerprint: None, outcome });
    }

    /// Writes the counts of each window that ends. Never returns.
    pub async fn keep(&self, clock: &Clock) {
        loop {
            if self.folds().is_empty() {
                self.begun.notified().await;
            }
            clock.sleep_until(clock.now().after(WINDOW)).await;
            self.folds().end_window();
            while self.write_due(WRITTEN_AT_ONCE) == WRITTEN_AT_ONCE {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Writes all counts now, at the end.
    pub fn close(&self) {
        self.folds().end_window();
        self.write_due(usize::MAX);
    }

    fn note(&self, decided: Decided<'_>) {
        let mut folds = self.folds();
        let is_first = folds.is_empty();
        let record = folds.note(decided);
        drop(folds);
        if is_first {
            self.begun.notify_one();
        }
        if let Some(record) = record {
            record.write(Count::One);
        }
    }

    /// Writes up to `most` counts: how many it wrote.
    fn write_due(&self, most: usize) -> usize {
        let due = std::iter::from_fn(|| self.folds().next_due()).take(most);
        due.map(|(record, more)| record.write(Count::More(more))).count()
    }

    fn folds(&self) -> MutexGuard<'_, Aggregator> {
        self.folds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

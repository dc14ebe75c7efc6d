//! What the judge knows of one token.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokend::clock::Instant;
use tokend::engine::credential::Snapshot;
use tokend::oauth::{Failure, Refusal};
use tokend_protocol::{BootInstant, ErrorClass};
use tokio::sync::watch;

use crate::plan::TokenPlan;

/// A token, as the judge sees it.
#[derive(Debug)]
pub struct Key {
    pub site: usize,
    /// What readers see of it, while it is configured.
    pub seen: Option<watch::Receiver<Arc<Snapshot>>>,
    pub plan: TokenPlan,
    pub in_flight: bool,
    /// The latest grants, the newest last.
    pub grants: VecDeque<Grant>,
    /// When the schedule, and when a caller's need, may lead to the next request.
    pub next: Option<(Instant, Instant)>,
    pub last_sent: Option<Instant>,
    /// The kind of its last failure, and how many of that kind there were in a row.
    pub streak: Option<(Kind, u32)>,
    /// When the first of its last refusals in a row with a gateway's page was.
    pub page_since: Option<Instant>,
    /// Whether the request under way follows one that came a moment too early.
    pub asks_again: bool,
    /// When a caller was last sent away, and until when.
    pub announced: Option<(Instant, Instant)>,
    /// Callers that wait for a token.
    pub needs: u32,
    /// Operators that ordered a new one, and callers that complained.
    pub orders: u32,
    /// Whether one of them left before the request that it caused went out, or a secret was replaced since.
    pub is_abandoned: bool,
}

/// The kind of a failure, which decides how long the wait is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Passing,
    Secret,
    Refusal,
}

/// A token that was given.
#[derive(Clone, Debug)]
pub struct Grant {
    pub number: u64,
    pub sent_at: Instant,
    pub lifetime: Duration,
    /// Until when it is valid for its issuer.
    pub valid_until: Instant,
    pub granted_at: Instant,
    /// The longest lifetime with which it was given.
    pub longest: Duration,
}

impl Grant {
    /// Until when it is served: a second less than it lives, because issuers round the time of issue down.
    pub fn expires(&self) -> Instant {
        let served_for = self.lifetime.saturating_sub(Duration::from_secs(1).min(self.lifetime / 10));
        // The daemon rounds an expiry down to whole milliseconds, because the protocol has no smaller unit.
        let BootInstant(milliseconds) = self.sent_at.after(served_for).to_wire();
        Instant::at(Duration::from_millis(milliseconds))
    }
}

impl Key {
    pub fn new(site: usize, plan: &TokenPlan) -> Self {
        Self {
            site,
            seen: None,
            plan: plan.clone(),
            in_flight: false,
            grants: VecDeque::new(),
            next: None,
            last_sent: None,
            streak: None,
            page_since: None,
            asks_again: false,
            announced: None,
            needs: 0,
            orders: 0,
            is_abandoned: false,
        }
    }

    /// Whether it is renewed as the policy chooses, by an issuer that gives a new token each time.
    pub fn is_plain(&self) -> bool {
        self.plan.refresh_before.is_none() && !self.plan.is_cached
    }

    /// The age at which the schedule may renew a token, at the earliest.
    pub fn earliest_renewal(&self, grant: &Grant) -> Duration {
        let chosen = match self.plan.refresh_before {
            Some(before) => grant.lifetime.saturating_sub(before.mul_f64(1.1)),
            None => grant.lifetime.mul_f64(0.6),
        };
        chosen.max(gap(grant.longest)).min(grant.expires().since(grant.sent_at))
    }

    /// When the held token has its last chance, if it is to be served after `now`: shortly before it expires, or then.
    pub fn last_chance(&self, now: Instant) -> Option<Instant> {
        let grant = self.grants.back()?;
        let expires = grant.expires();
        let shortly_before = expires.before(Duration::from_secs(30).min(grant.lifetime / 10));
        [shortly_before, expires].into_iter().find(|at| at.since(now) >= Duration::from_secs(1))
    }

    /// The kind of a failure that has just happened, and how many of it there were in a row.
    pub fn count(&mut self, failure: &Failure, failures: u32, now: Instant) -> (Kind, u32) {
        let is_page = matches!(failure.refusal, Some(Refusal::WithoutCode(_)));
        let page_since = is_page.then(|| self.page_since.unwrap_or(now));
        self.page_since = page_since;
        let kind = match failure.class {
            ErrorClass::Secret => Kind::Secret,
            ErrorClass::Refused if page_since.is_none_or(|since| now.since(since).as_secs() >= 600) => {
                Kind::Refusal
            }
            _ => Kind::Passing,
        };
        let count = match self.streak {
            Some((before, count)) if before == kind => count + 1,
            Some(_) => 1,
            None => failures + 1,
        };
        self.streak = Some((kind, count));
        (kind, count)
    }

    /// The token is this key's, the newest that was given, and valid for its issuer.
    pub fn check(&self, number: usize, text: &str, now: Instant) -> Result<(), String> {
        let Some(grant) = self.grants.back() else {
            return Err(format!("token {number}: {text} was never given"));
        };
        if text != token_text(number, grant.number) {
            return Err(format!("token {number}: {text} is shown instead of {grant:?}"));
        }
        if grant.valid_until <= now {
            return Err(format!("token {number}: {text} had expired"));
        }
        Ok(())
    }
}

/// The least time between two requests that both bring a token.
pub fn gap(lifetime: Duration) -> Duration {
    Duration::from_secs(1).max(lifetime.mul_f64(0.1)).min(lifetime)
}

/// What a token looks like.
pub fn token_text(key: usize, number: u64) -> String {
    format!("token-{key}-{number}")
}

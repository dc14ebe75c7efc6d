//! The audit trail: a record of every hand-out and every refusal, under the target `tokend::server::audit`.
//!
//! A record names the token, its fingerprint, the peer and the reason, and no secret.

mod aggregator;
mod record;
mod sample;

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use self::aggregator::Aggregator;
pub use self::aggregator::Place;
pub use self::record::Record;
use crate::clock::Clock;
use crate::peer::Peer;

/// How long repetitions are counted before their count is recorded. A process that is killed loses the last window.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts that are written at a time, and the pause after them: so slowly that the log can follow.
const BATCH: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// The operation that a peer asked for. The field `verb` has its name in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Connect,
    /// Any request: it was refused before it was looked at.
    Request,
    Get,
    Headers,
    Refresh,
    Reject,
    Watch,
    Status,
    Explain,
}

/// The reason why a peer was refused. Only the journal has it in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    #[error("no rule of the token's allow list matches")]
    NoRule,
    #[error("no rule of a scope, resource or audience of this variant matches")]
    NoRuleForVariant,
    #[error("the configuration lets nobody ask for this variant")]
    NoSuchVariant,
    #[error("no such token")]
    NoSuchToken,
    #[error("not an operator")]
    NotAnOperator,
    #[error("the request of a web page")]
    WebPage,
    /// The peer, or its user, exceeds a limit; these words name it.
    #[error("{0}")]
    TooMuch(&'static str),
}

#[derive(Debug, Default)]
pub struct Audit {
    /// Never held across an await.
    aggregator: Mutex<Aggregator>,
    /// Notified when the first decision of a window is recorded.
    begun: Notify,
}

impl Audit {
    /// Records the counts of each window when it ends. Never returns.
    pub async fn write_windows(&self, clock: &Clock) {
        loop {
            if self.aggregator().counts.is_empty() {
                self.begun.notified().await;
            }
            clock.sleep_until(clock.now().after(WINDOW)).await;
            self.aggregator().end_window();
            while (0..BATCH).all(|_| self.write_count()) {
                clock.sleep_until(clock.now().after(PAUSE)).await;
            }
        }
    }

    /// Records all counts now, at the end of the process.
    pub fn close(&self) {
        self.aggregator().end_window();
        while self.write_count() {}
    }

    /// Records a decision about a connected process: at once if it is the first of its kind, and then with the unit and the
    /// program of the process. Returns where to count it if it is repeated: see [`Audit::repeat`].
    pub fn record(&self, record: &Record<'_>, peer: &Peer) -> Option<Place> {
        let known = self.aggregator().place(record);
        if known.is_some_and(|place| self.repeat(place)) {
            return known;
        }
        self.record_as_it_is(&Record { peer: Cow::Borrowed(&peer.description()), ..record.clone() })
    }

    /// Records a decision with no more facts than it has.
    pub fn record_as_it_is(&self, record: &Record<'_>) -> Option<Place> {
        let mut aggregator = self.aggregator();
        let begins = aggregator.counts.is_empty();
        let (is_first, place) = aggregator.add(record);
        drop(aggregator);
        if begins {
            self.begun.notify_one();
        }
        if is_first {
            record.write(None);
        }
        place
    }

    /// Counts a repetition of a recorded decision. Returns `false` if the window has ended, so that it must be recorded anew.
    pub fn repeat(&self, place: Place) -> bool {
        self.aggregator().repeat(place)
    }

    /// Writes a count that is due. Returns whether there was one.
    fn write_count(&self) -> bool {
        let due = self.aggregator().due.pop_front();
        due.inspect(|count| count.record.write(Some(count))).is_some()
    }

    /// Whether no decision is recorded in the present window.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.aggregator().counts.is_empty()
    }

    fn aggregator(&self) -> MutexGuard<'_, Aggregator> {
        self.aggregator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::access::Facts;

    #[tokio::test(start_paused = true)]
    async fn a_window_that_a_decision_has_begun_ends_by_itself() {
        let (clock, audit) = (Clock::simulated(), Arc::new(Audit::default()));
        let (facts, writer) = (Facts::default(), Arc::clone(&audit));
        let windows = clock.clone();
        tokio::spawn(async move { writer.write_windows(&windows).await });
        for _ in 0..2 {
            // Longer than a window, with nothing in it.
            clock.sleep_until(clock.now().after(WINDOW * 2)).await;
            let record = Record::new(&facts, Operation::Get, None, Ok("any"));
            let place = audit.record_as_it_is(&record).unwrap();
            assert!(audit.repeat(place));
            clock.sleep_until(clock.now().after(WINDOW + PAUSE)).await;
            assert!(!audit.repeat(place), "its window has ended");
        }
    }
}

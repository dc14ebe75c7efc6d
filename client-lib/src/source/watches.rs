//! The watches of all sources of a client on one connection, and the waits between connections.

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{Frame, Reply, Request, WatchRequest, encode};

use super::Subscription;
use crate::deadline::Deadline;
use crate::failure::{Failure, unless_stopping};
use crate::{Error, reply};

/// How long after a refusal a watch is tried again, because a reload may permit it. Shorter by up to a half, at random.
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// The second wait before another attempt to connect, and the longest one. Each wait is shorter by up to a half, at random.
const BACK_OFF_FIRST: Duration = Duration::from_millis(50);
const BACK_OFF_MOST: Duration = Duration::from_secs(5);

/// The watches on one connection.
#[derive(Default)]
pub(crate) struct Watches {
    last_id: u32,
    watches: Vec<OneWatch>,
}

struct OneWatch {
    id: u32,
    subscription: Arc<Subscription>,
    /// When it is tried again, after the daemon refused it.
    retry: Option<Deadline>,
}

impl Watches {
    /// The frames of the watches that are to be sent. `None` if nobody wants one of the watches any more: only the end of
    /// the connection ends it.
    pub(crate) fn update(&mut self, wanted: &[Arc<Subscription>]) -> Option<Vec<u8>> {
        let is_same = |watch: &OneWatch, other| Arc::ptr_eq(&watch.subscription, other);
        let is_wanted = |watch: &OneWatch| wanted.iter().any(|other| is_same(watch, other));
        if self.watches.iter().any(|watch| watch.retry.is_none() && !is_wanted(watch)) {
            return None;
        }
        self.watches
            .retain(|watch| is_wanted(watch) && watch.retry.is_none_or(|at| !at.remaining().is_zero()));
        let mut wire = Vec::new();
        for subscription in wanted {
            if self.watches.iter().any(|watch| is_same(watch, subscription)) {
                continue;
            }
            self.last_id += 1;
            let mut watch =
                OneWatch { id: self.last_id, subscription: Arc::clone(subscription), retry: None };
            let tokens = vec![subscription.watched().clone()];
            let message = Request::Watch(WatchRequest { tokens, with_tokens: true });
            if let Err(error) = encode(&Frame { id: watch.id, message }, &mut wire) {
                watch.refused(Error::InvalidRequest { message: error.to_string() });
            }
            self.watches.push(watch);
        }
        Some(wire)
    }

    /// When a refused watch is tried again.
    pub(crate) fn next_retry(&self) -> Option<Duration> {
        self.watches.iter().filter_map(|watch| watch.retry).map(Deadline::remaining).min()
    }

    /// Handles a reply.
    pub(crate) fn receive(&mut self, frame: Frame<Reply>) -> Result<(), Failure> {
        if let Frame { id: 0, message: Reply::Error(error) } = frame {
            return Err(Failure::of_all(error));
        }
        let Some(watch) = self.watches.iter_mut().find(|watch| watch.id == frame.id) else {
            return Ok(());
        };
        match reply::watch(unless_stopping(frame.message)?) {
            Ok(event) => watch.subscription.event(event),
            Err(error) => watch.refused(error),
        }
        Ok(())
    }
}

impl OneWatch {
    fn refused(&mut self, error: Error) {
        self.subscription.refused(error);
        self.retry = Some(Deadline::after(shortened(REFUSED_WAIT)));
    }
}

/// The waits between attempts to connect. There is none before the first attempt after a connection that lasted for
/// [`BACK_OFF_MOST`]. Shorter ones count as failures, because a daemon may end each connection soon after its first answer.
#[derive(Default)]
pub(crate) struct BackOff {
    failures: u32,
    /// When the present connection will have lasted.
    lasted: Option<Deadline>,
}

impl BackOff {
    /// Notes that there is a connection.
    pub(crate) fn connected(&mut self) {
        self.lasted = Some(Deadline::after(BACK_OFF_MOST));
    }

    /// The wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        if self.lasted.take().is_some_and(|at| at.remaining().is_zero()) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        match self.failures {
            1 => Duration::ZERO,
            failures => shortened((BACK_OFF_FIRST * (1 << (failures - 2).min(16))).min(BACK_OFF_MOST)),
        }
    }
}

/// A wait that is shorter by up to a half, so that the callers of a daemon that restarts do not come all at once.
fn shortened(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + 0.5 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_retry_is_at_once_and_later_ones_are_bounded_and_spread() {
        let mut back_off = BackOff::default();
        assert_eq!(back_off.next(), Duration::ZERO);
        let second = back_off.next();
        assert!(second >= BACK_OFF_FIRST / 2 && second <= BACK_OFF_FIRST, "{second:?}");
        let later: Vec<_> = (0..100).map(|_| back_off.next()).collect();
        assert!(later.iter().all(|wait| *wait <= BACK_OFF_MOST));
        assert!(later[50..].iter().all(|wait| *wait >= BACK_OFF_MOST / 2));
        assert_ne!(later[98], later[99]);
        back_off.connected();
        assert_ne!(back_off.next(), Duration::ZERO, "the connection was short");
        back_off.lasted = Some(Deadline::after(Duration::ZERO));
        assert_eq!(back_off.next(), Duration::ZERO, "the connection has lasted");
    }
}

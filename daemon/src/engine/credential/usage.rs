//! Whether anybody uses a token, and whether it is renewed while nobody does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Instant;

/// When a token was last used. Written by every caller and read by the actor, so it is one atomic number.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// Milliseconds since boot.
    last: AtomicU64,
}

impl Usage {
    pub(super) fn note(&self, now: Instant) {
        let millis = now.since(Instant::at(Duration::ZERO)).as_millis();
        self.last.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn last(&self) -> Instant {
        Instant::at(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

//! Whether anybody uses a token, and whether it is renewed while nobody does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Instant;

/// Whether a token is renewed while nobody uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Warmth {
    /// Always: it is ready whenever somebody comes.
    #[default]
    Always,
    /// It is fetched at its first use, and rests when nobody has used it for so long.
    OnDemand(Duration),
    /// It is fetched at its first use, and rests after so many renewals between which nobody used it.
    UnusedRenewals(u32),
}

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

impl Warmth {
    /// Whether a token is to rest instead of being renewed now.
    pub(super) fn rests(self, now: Instant, last_used: Instant, unused_renewals: u32) -> bool {
        match self {
            Self::Always => false,
            Self::OnDemand(idle_timeout) => now.since(last_used) >= idle_timeout,
            Self::UnusedRenewals(most) => unused_renewals >= most,
        }
    }
}

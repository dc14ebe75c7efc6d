//! Notices that the event loop hangs or has panicked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Whether the event loop gets on with its work, without waking it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// How often it has begun or ended a step. While it waits for events, the number is even.
    now: AtomicU64,
    /// The number when somebody last asked.
    asked: AtomicU64,
}

impl Progress {
    pub(super) fn note(&self) {
        self.now.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_made(&self) -> bool {
        let now = self.now.load(Ordering::Relaxed);
        let asked = self.asked.swap(now, Ordering::Relaxed);
        now.is_multiple_of(2) || now != asked
    }
}

/// Ends the process if its thread panics: a daemon that serves nobody must be started again.
pub(super) struct EndOfProcess;

impl Drop for EndOfProcess {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_is_noticed_and_one_that_waits_is_alive() {
        let progress = Progress::default();
        assert!([(); 3].iter().all(|()| progress.is_made()), "it waits");
        progress.note();
        assert!(progress.is_made(), "it has begun a step");
        assert!(!progress.is_made(), "it has not ended it");
        (0..2).for_each(|_| progress.note());
        assert!(progress.is_made(), "it is in another step");
    }
}

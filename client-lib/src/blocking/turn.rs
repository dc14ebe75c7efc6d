//! A lock that a caller waits for until its deadline. A mutex of the standard library has no time limit.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::deadline::Deadline;

/// Lets one caller at a time make a request.
#[derive(Default)]
pub(super) struct Turn {
    is_taken: Mutex<bool>,
    ended: Condvar,
}

/// The turn of a caller. It ends when dropped.
pub(super) struct Taken<'a>(&'a Turn);

impl Turn {
    /// Waits for the turn. Returns `None` at the deadline.
    pub(super) fn take(&self, deadline: Deadline) -> Option<Taken<'_>> {
        let is_taken = self.is_taken.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.ended.wait_timeout_while(is_taken, deadline.remaining(), |is_taken| *is_taken);
        let (mut is_taken, _) = ended.unwrap_or_else(PoisonError::into_inner);
        if *is_taken {
            return None;
        }
        *is_taken = true;
        Some(Taken(self))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.is_taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_turn_is_waited_for_until_the_deadline_and_no_longer() {
        let (turn, is_first_in) = (Turn::default(), AtomicBool::new(true));
        let soon = || Deadline::after(Duration::from_millis(10));
        let first = turn.take(soon()).expect("nobody has it");
        assert!(turn.take(soon()).is_none(), "it is taken");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let _turn = turn.take(Deadline::after(Duration::from_secs(60))).expect("it ends in time");
                is_first_in.load(Ordering::SeqCst)
            });
            is_first_in.store(false, Ordering::SeqCst);
            drop(first);
            assert!(!waiting.join().unwrap(), "two had the turn");
        });
        assert!(turn.take(soon()).is_some(), "it is free again");
    }
}

//! Which of several client secrets is sent. While a secret is replaced, the old one and the new one are both
//! configured, and which of them the provider takes may change at any moment, in either order.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Remembers the secret that worked last. Before any has, the first is preferred.
#[derive(Debug, Default)]
pub struct SecretChoice {
    preferred: AtomicUsize,
}

/// The secret with which a token was obtained, out of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretInUse {
    /// Its place among the configured ones, from 0.
    pub index: usize,
    /// How many are configured.
    pub of: usize,
}

impl SecretChoice {
    /// The places of all `of` secrets, each once, the one that worked last first.
    pub fn order(&self, of: usize) -> impl Iterator<Item = usize> + use<> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        (0..of).map(move |step| (preferred + step) % of)
    }

    /// Notes that a token was obtained with this one.
    pub fn worked(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
    }
}

impl SecretInUse {
    /// Whether an operator has something to finish: the secret that should be in use is not.
    pub fn is_not_the_first(self) -> bool {
        self.index > 0
    }
}

impl fmt::Display for SecretInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.index {
            0 => "first",
            1 => "second",
            2 => "third",
            _ => "last",
        };
        write!(f, "the {place} of {} is in use", self.of)?;
        if self.is_not_the_first() {
            f.write_str("; the first is refused or cannot be read")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_tried_once_beginning_with_the_one_that_worked_last() {
        let choice = SecretChoice::default();
        let order = |of| choice.order(of).collect::<Vec<_>>();
        assert_eq!((order(0), order(1), order(3)), (vec![], vec![0], vec![0, 1, 2]));
        choice.worked(1);
        assert_eq!(order(3), [1, 2, 0]);
    }

    #[test]
    fn only_another_than_the_first_is_something_to_tell() {
        assert!(!SecretInUse { index: 0, of: 2 }.is_not_the_first());
        assert_eq!(
            SecretInUse { index: 1, of: 2 }.to_string(),
            "the second of 2 is in use; the first is refused or cannot be read"
        );
    }
}

//! What each user has taken of its quota, over all of its connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Clock;
use crate::quota::{Quota, QuotaExceeded, Rate, Resource, Usage};

/// Users with nothing in use who are remembered for the sake of their rates. With more, the blank ones are dropped.
const REMEMBERED: usize = 1024;

/// The accounts of all users.
#[derive(Debug)]
pub struct Allowances {
    quota: Quota,
    clock: Clock,
    /// Held for a look or a change, never across an await.
    users: Mutex<HashMap<u32, Arc<Allowance>>>,
}

/// The account of one user.
#[derive(Debug)]
pub struct Allowance {
    quota: Quota,
    clock: Clock,
    /// Held for a look or a change, never across an await.
    usage: Mutex<Usage>,
}

/// A part of a quota, until it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once, it limits nothing"]
pub struct Held {
    allowance: Arc<Allowance>,
    kind: Resource,
    amount: usize,
}

impl Allowances {
    /// Accounts with this quota for each user, of whom none has taken anything.
    pub fn new(quota: Quota, clock: Clock) -> Self {
        Self { quota, clock, users: Mutex::default() }
    }

    /// The account of a user.
    pub fn of(&self, uid: u32) -> Arc<Allowance> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() >= REMEMBERED && !users.contains_key(&uid) {
            let now = self.clock.now();
            users.retain(|_, user| Arc::strong_count(user) > 1 || !user.usage().is_blank(now));
        }
        let fresh = || {
            let (quota, clock) = (self.quota, self.clock.clone());
            Arc::new(Allowance { quota, clock, usage: Mutex::default() })
        };
        Arc::clone(users.entry(uid).or_insert_with(fresh))
    }
}

impl Allowance {
    /// Takes a part of the quota.
    ///
    /// # Errors
    /// There is not as much left.
    pub fn take(self: &Arc<Self>, kind: Resource, amount: usize) -> Result<Held, QuotaExceeded> {
        self.usage().take(&self.quota, kind, amount)?;
        Ok(Held { allowance: Arc::clone(self), kind, amount })
    }

    /// Counts what has a rate.
    ///
    /// # Errors
    /// It was too often.
    pub fn count(&self, rate: Rate) -> Result<(), QuotaExceeded> {
        self.usage().count(&self.quota, rate, self.clock.now())
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Whether it is a part of this quota.
    pub fn is_of(&self, allowance: &Arc<Allowance>) -> bool {
        Arc::ptr_eq(&self.allowance, allowance)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.allowance.usage().give_back(self.kind, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_of_a_user_share_an_account_and_other_users_have_their_own() {
        let quota = Quota { watches: 1, ..Quota::default() };
        let allowances = Allowances::new(quota, Clock::simulated());
        let held = allowances.of(7).take(Resource::Watches, 1).unwrap();
        assert_eq!(
            allowances.of(7).take(Resource::Watches, 1).unwrap_err(),
            QuotaExceeded::TooMany(Resource::Watches)
        );
        drop(allowances.of(8).take(Resource::Watches, 1).unwrap());
        drop(held);
        drop(allowances.of(7).take(Resource::Watches, 1).unwrap());
    }

    #[tokio::test]
    async fn who_is_connected_is_not_forgotten() {
        let allowances = Allowances::new(Quota::default(), Clock::simulated());
        let connected = allowances.of(7);
        (100..10_000).for_each(|uid| drop(allowances.of(uid)));
        assert!(
            Arc::ptr_eq(&connected, &allowances.of(7)),
            "its next connection would have a quota of its own"
        );
    }

    #[tokio::test]
    async fn who_is_gone_is_forgotten_but_for_what_it_did_too_often() {
        let quota = Quota { refusals_per_minute: 1, ..Quota::default() };
        let allowances = Allowances::new(quota, Clock::simulated());
        allowances.of(1_000_000).count(Rate::Refusals).unwrap();
        (0..100_000).for_each(|uid| drop(allowances.of(uid)));
        assert!(allowances.users.lock().unwrap().len() <= REMEMBERED + 1);
        assert!(allowances.of(1_000_000).count(Rate::Refusals).is_err(), "coming back changes nothing");
    }
}

//! Per-user limits: how much a user may hold at a time, and how often it may cause work for others. No lock but
//! [`Allowance::reading_groups`] is held across an await.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::access::{GroupLists, Groups};
use crate::clock::Instant;
use crate::secret_source::UserTurns;

/// Bytes of the different lists of supplementary groups that a user's processes may have: four of the longest.
const GROUP_BYTES_MAX: usize = 1024 * 1024;

/// Accounts kept. Beyond this number, accounts with nothing in use and full buckets are dropped.
const REMEMBERED: usize = 1024;

/// Lists, and statuses of all tokens, that a user may have in memory. A page has up to 200 KiB.
const LONG_ANSWERS_MAX: usize = 8;

const MINUTE: Duration = Duration::from_secs(60);

/// The limits of one user: far above what services need, and low enough to leave the other users their share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub connections: usize,
    /// Unanswered requests, over all connections.
    pub in_flight: usize,
    /// Bytes of these requests.
    pub request_bytes: usize,
    /// Calls that wait for a provider.
    pub waiting: usize,
    pub watches: usize,
    /// Over all watches.
    pub watched_tokens: usize,
    /// Bytes of answers that callers have not read.
    pub unread_bytes: usize,
    /// Variants of tokens that exist because the user asked for them.
    pub variants: usize,
    /// Calls per minute that may cost a provider a request.
    pub provider_calls_per_minute: u32,
}

/// A resource that a user holds for a while: see the fields of [`Quota`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    Connections,
    InFlight,
    RequestBytes,
    Waiting,
    Watches,
    WatchedTokens,
    UnreadBytes,
    Variants,
}

/// The limit that a request would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaExceeded {
    /// Which one, for the caller and the journal.
    pub reason: &'static str,
    /// When the next attempt is possible. `None` if that depends on the user's other requests.
    pub possible_at: Option<Instant>,
}

/// The quota accounts of all users.
#[derive(Debug)]
pub struct Allowances {
    quota: Quota,
    users: Mutex<HashMap<u32, Arc<Allowance>>>,
}

/// The quota account of one user, shared by all its connections.
#[derive(Debug)]
pub struct Allowance {
    quota: Quota,
    usage: Mutex<Usage>,
    pub secret_turns: UserTurns,
    /// Taken for each long answer, until it is written. What is written and not read counts as [`Resource::UnreadBytes`].
    pub long_answers: Semaphore,
    /// Held while a long list of groups waits to be read and is, so that users take turns with it.
    pub reading_groups: tokio::sync::Mutex<()>,
}

/// A part of a user's quota, given back when dropped.
#[derive(Debug)]
#[must_use = "dropped at once, it limits nothing"]
pub struct Held {
    pub allowance: Arc<Allowance>,
    resource: Resource,
    amount: usize,
}

#[derive(Debug, Default)]
struct Usage {
    held: BTreeMap<Resource, usize>,
    /// A token bucket with a minute's worth of provider calls, stored as the time at which it will be full.
    full_at: Option<Instant>,
    group_lists: GroupLists,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            connections: 1024,
            in_flight: 1024,
            request_bytes: 1024 * 1024,
            waiting: 1024,
            watches: 1024,
            watched_tokens: 16 * 1024,
            unread_bytes: 4 * 1024 * 1024,
            variants: 256,
            provider_calls_per_minute: 600,
        }
    }
}

impl Allowances {
    pub fn new(quota: Quota) -> Self {
        Self { quota, users: Mutex::default() }
    }

    pub fn of(&self, uid: u32, now: Instant) -> Arc<Allowance> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() >= REMEMBERED && !users.contains_key(&uid) {
            users.retain(|_, user| Arc::strong_count(user) > 1 || !user.is_unused(now));
        }
        let new = || {
            Arc::new(Allowance {
                quota: self.quota,
                usage: Mutex::default(),
                secret_turns: UserTurns::default(),
                long_answers: Semaphore::new(LONG_ANSWERS_MAX),
                reading_groups: tokio::sync::Mutex::default(),
            })
        };
        Arc::clone(users.entry(uid).or_insert_with(new))
    }
}

impl Allowance {
    /// Takes a part of the quota, or takes nothing and returns the limit that it would exceed.
    pub fn take(self: &Arc<Self>, resource: Resource, amount: usize) -> Result<Held, QuotaExceeded> {
        let quota = &self.quota;
        let (limit, reason) = match resource {
            Resource::Connections => (quota.connections, "too many open connections"),
            Resource::InFlight => (quota.in_flight, "this user has too many unanswered requests"),
            Resource::RequestBytes => {
                (quota.request_bytes, "the unanswered requests of this user have too many bytes")
            }
            Resource::Waiting => (quota.waiting, "too many calls of this user wait for a provider"),
            Resource::Watches => (quota.watches, "this user has too many watches"),
            Resource::WatchedTokens => (quota.watched_tokens, "this user watches too many tokens"),
            Resource::UnreadBytes => (quota.unread_bytes, "this user leaves too many answers unread"),
            Resource::Variants => (quota.variants, "this user holds too many variants of tokens"),
        };
        let mut usage = self.usage();
        let held = usage.held.entry(resource).or_default();
        if held.saturating_add(amount) > limit {
            return Err(QuotaExceeded { reason, possible_at: None });
        }
        *held += amount;
        Ok(Held { allowance: Arc::clone(self), resource, amount })
    }

    /// How much of it the user holds.
    pub fn held(&self, resource: Resource) -> usize {
        self.usage().held.get(&resource).copied().unwrap_or_default()
    }

    /// Returns the one copy of a list of groups that the user's connections share.
    pub fn share_groups(&self, groups: Groups) -> Result<Groups, QuotaExceeded> {
        let reason = "the processes of this user have too many supplementary groups that differ";
        let shared = self.usage().group_lists.share(groups, GROUP_BYTES_MAX);
        shared.ok_or(QuotaExceeded { reason, possible_at: None })
    }

    /// Counts one more call that may cost a provider a request, or counts nothing and returns when the next one is possible.
    pub fn count_provider_call(&self, now: Instant) -> Result<(), QuotaExceeded> {
        let mut usage = self.usage();
        let full_at = usage.full_at.map_or(now, |full_at| full_at.max(now));
        let next = full_at.after(MINUTE / self.quota.provider_calls_per_minute.max(1));
        if next.since(now) > MINUTE {
            let reason = "this user asks a provider too often";
            return Err(QuotaExceeded { reason, possible_at: Some(next.before(MINUTE)) });
        }
        usage.full_at = Some(next);
        Ok(())
    }

    /// Whether the account is as a new one, so that it can be dropped.
    fn is_unused(&self, now: Instant) -> bool {
        let usage = self.usage();
        usage.held.values().all(|held| *held == 0)
            && usage.full_at.is_none_or(|at| at <= now)
            && usage.group_lists.is_unused()
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.allowance.usage().held.entry(self.resource).or_default() -= self.amount;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUOTA: Quota = Quota {
        connections: 1,
        in_flight: 3,
        request_bytes: 1,
        waiting: 1,
        watches: 1,
        watched_tokens: 1,
        unread_bytes: 1,
        variants: 1,
        provider_calls_per_minute: 6,
    };

    fn at(millis: u64) -> Instant {
        Instant::at(Duration::from_secs(1000) + Duration::from_millis(millis))
    }

    fn allowance() -> Arc<Allowance> {
        Allowances::new(QUOTA).of(7, at(0))
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let user = allowance();
        let first = user.take(Resource::InFlight, 2).unwrap();
        let refused = user.take(Resource::InFlight, 2).unwrap_err();
        assert_eq!(refused.possible_at, None);
        let second = user.take(Resource::InFlight, 1).unwrap();
        let other = user.take(Resource::Waiting, 1).unwrap();
        assert!(!user.is_unused(at(0)));
        drop((first, second, other));
        assert!(user.is_unused(at(0)));
        drop(user.take(Resource::InFlight, 3).unwrap());
    }

    #[test]
    fn a_minute_of_calls_is_available_at_once_and_then_one_at_a_time() {
        let user = allowance();
        for _ in 0..6 {
            user.count_provider_call(at(0)).unwrap();
        }
        let next = |now| user.count_provider_call(now).unwrap_err().possible_at;
        assert_eq!(next(at(0)), Some(at(10_000)));
        assert_eq!(next(at(9_999)), Some(at(10_000)), "a refused attempt costs nothing");
        user.count_provider_call(at(10_000)).unwrap();
        user.count_provider_call(at(10_000)).unwrap_err();
        assert!(!user.is_unused(at(69_999)) && user.is_unused(at(70_000)));
    }

    #[test]
    fn unused_calls_are_not_saved_up() {
        let user = allowance();
        user.count_provider_call(at(0)).unwrap();
        let an_hour_later = at(3_600_000);
        let granted = (0..100).filter(|_| user.count_provider_call(an_hour_later).is_ok());
        assert_eq!(granted.count(), 6);
    }

    proptest! {
        #[test]
        fn no_minute_has_more_than_twice_its_worth(gaps in prop::collection::vec(0_u64..5_000, 1..500)) {
            let user = allowance();
            let (mut now, mut granted) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                match user.count_provider_call(at(now)) {
                    Ok(()) => granted.push(now),
                    Err(refused) => {
                        let possible_at = refused.possible_at.unwrap();
                        prop_assert!(possible_at > at(now) && possible_at <= at(now + 10_000));
                    }
                }
            }
            for (index, begin) in granted.iter().enumerate() {
                let in_minute = granted[index..].iter().take_while(|at| **at < begin + 60_000).count();
                prop_assert!(in_minute <= 12);
            }
        }
    }

    #[test]
    fn connections_of_a_user_share_an_account_and_other_users_have_their_own() {
        let allowances = Allowances::new(QUOTA);
        let held = allowances.of(7, at(0)).take(Resource::Watches, 1).unwrap();
        allowances.of(7, at(0)).take(Resource::Watches, 1).unwrap_err();
        drop(allowances.of(8, at(0)).take(Resource::Watches, 1).unwrap());
        drop(held);
        drop(allowances.of(7, at(0)).take(Resource::Watches, 1).unwrap());
    }

    #[test]
    fn the_account_of_a_connected_user_is_kept() {
        let allowances = Allowances::new(QUOTA);
        let connected = allowances.of(7, at(0));
        (100..10_000).for_each(|uid| drop(allowances.of(uid, at(0))));
        assert!(Arc::ptr_eq(&connected, &allowances.of(7, at(0))));
    }

    #[test]
    fn unused_accounts_are_dropped_and_an_exhausted_rate_is_remembered() {
        let allowances = Allowances::new(Quota { provider_calls_per_minute: 1, ..QUOTA });
        allowances.of(1_000_000, at(0)).count_provider_call(at(0)).unwrap();
        (0..100_000).for_each(|uid| drop(allowances.of(uid, at(0))));
        assert!(allowances.users.lock().unwrap().len() <= REMEMBERED + 1);
        assert!(allowances.of(1_000_000, at(0)).count_provider_call(at(0)).is_err());
    }
}

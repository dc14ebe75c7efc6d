//! How much one user may have at a time, and how often it may ask for what costs others something. Pure: the time
//! is told, and what is over a limit comes back as a refusal.

pub mod accounts;

use std::time::Duration;

use crate::clock::Instant;

/// The limits of one user. The defaults are far above what services need, and low enough that one which misbehaves
/// leaves the rest of the host its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests that are not answered yet, over all connections.
    pub in_flight: usize,
    /// Of those, the ones that wait for a provider.
    pub waiting: usize,
    /// Watches.
    pub watches: usize,
    /// Tokens that are watched, over all watches.
    pub watched_tokens: usize,
    /// Bytes of answers that callers do not read.
    pub unread_bytes: usize,
    /// Forms of tokens that are held because the user asked for them.
    pub variants: usize,
    /// Calls in a minute that may cost a provider a request.
    pub provider_calls_per_minute: u32,
    /// Refused requests in a minute. With more, the refusal says nothing but that.
    pub refusals_per_minute: u32,
}

/// What there is at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Requests that are not answered yet.
    InFlight,
    /// Calls that wait for a provider.
    Waiting,
    /// Watches.
    Watches,
    /// Watched tokens.
    WatchedTokens,
    /// Bytes of answers that are not read.
    UnreadBytes,
    /// Forms of tokens.
    Variants,
}

/// What there is in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Calls that may cost a provider a request.
    ProviderCalls,
    /// Refused requests.
    Refusals,
}

/// What is beyond a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaExceeded {
    /// There is too much of it at once.
    TooMany(Resource),
    /// It was asked for too often; at this time it may be asked again.
    TooOften(Rate, Instant),
}

/// What one user has.
#[derive(Debug, Default)]
pub struct Usage {
    held: [usize; KINDS],
    provider_calls: Bucket,
    refusals: Bucket,
}

/// A bucket that fills up in a minute, by the time at which it will be full: so full is what has no such time.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Option<Instant>,
}

const KINDS: usize = 6;

const MINUTE: Duration = Duration::from_secs(60);

impl Default for Quota {
    fn default() -> Self {
        Self {
            in_flight: 1024,
            waiting: 1024,
            watches: 1024,
            watched_tokens: 16 * 1024,
            unread_bytes: 4 * 1024 * 1024,
            variants: 256,
            provider_calls_per_minute: 600,
            refusals_per_minute: 600,
        }
    }
}

impl Quota {
    fn of(&self, kind: Resource) -> usize {
        match kind {
            Resource::InFlight => self.in_flight,
            Resource::Waiting => self.waiting,
            Resource::Watches => self.watches,
            Resource::WatchedTokens => self.watched_tokens,
            Resource::UnreadBytes => self.unread_bytes,
            Resource::Variants => self.variants,
        }
    }
}

impl Usage {
    /// Takes so much more.
    ///
    /// # Errors
    /// It would be more than the quota, and nothing was taken.
    pub fn take(&mut self, quota: &Quota, kind: Resource, amount: usize) -> Result<(), QuotaExceeded> {
        let held = self.held.get(kind as usize).copied().unwrap_or_default().saturating_add(amount);
        if held > quota.of(kind) {
            return Err(QuotaExceeded::TooMany(kind));
        }
        if let Some(slot) = self.held.get_mut(kind as usize) {
            *slot = held;
        }
        Ok(())
    }

    /// Gives it back.
    pub fn give_back(&mut self, kind: Resource, amount: usize) {
        if let Some(slot) = self.held.get_mut(kind as usize) {
            *slot = slot.saturating_sub(amount);
        }
    }

    /// Counts one more of what has a rate.
    ///
    /// # Errors
    /// It was too often, and does not count.
    pub fn count(&mut self, quota: &Quota, rate: Rate, now: Instant) -> Result<(), QuotaExceeded> {
        let (bucket, per_minute) = match rate {
            Rate::ProviderCalls => (&mut self.provider_calls, quota.provider_calls_per_minute),
            Rate::Refusals => (&mut self.refusals, quota.refusals_per_minute),
        };
        bucket.draw(per_minute, now).map_err(|at| QuotaExceeded::TooOften(rate, at))
    }

    /// Whether forgetting it would change nothing.
    pub fn is_blank(&self, now: Instant) -> bool {
        let is_full = |bucket: &Bucket| bucket.full_at.is_none_or(|at| at <= now);
        self.held.iter().all(|held| *held == 0) && is_full(&self.provider_calls) && is_full(&self.refusals)
    }
}

impl Bucket {
    /// Takes one, or tells when there will be one.
    fn draw(&mut self, per_minute: u32, now: Instant) -> Result<(), Instant> {
        let one = MINUTE / per_minute.max(1);
        let full_at = self.full_at.map_or(now, |at| at.max(now)).after(one);
        if full_at.since(now) > MINUTE {
            return Err(full_at.before(MINUTE));
        }
        self.full_at = Some(full_at);
        Ok(())
    }
}

impl QuotaExceeded {
    /// What there is too much of, for the caller and the journal alike.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooMany(Resource::InFlight) => "too many requests of this user are unanswered",
            Self::TooMany(Resource::Waiting) => "too many calls of this user wait for a provider",
            Self::TooMany(Resource::Watches) => "this user has too many watches",
            Self::TooMany(Resource::WatchedTokens) => "this user watches too many tokens",
            Self::TooMany(Resource::UnreadBytes) => "this user leaves too many answers unread",
            Self::TooMany(Resource::Variants) => "too many forms of tokens are held for this user",
            Self::TooOften(Rate::ProviderCalls, _) => {
                "this user has asked too often for what costs a provider a request"
            }
            Self::TooOften(Rate::Refusals, _) => "too many requests of this user were refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUOTA: Quota = Quota {
        in_flight: 3,
        waiting: 1,
        watches: 1,
        watched_tokens: 1,
        unread_bytes: 1,
        variants: 1,
        provider_calls_per_minute: 6,
        refusals_per_minute: 60,
    };

    fn at(millis: u64) -> Instant {
        Instant::at(Duration::from_secs(1000) + Duration::from_millis(millis))
    }

    #[test]
    fn what_is_taken_up_to_the_limit_can_be_taken_again_once_it_is_given_back() {
        let mut usage = Usage::default();
        usage.take(&QUOTA, Resource::InFlight, 2).unwrap();
        assert_eq!(
            usage.take(&QUOTA, Resource::InFlight, 2),
            Err(QuotaExceeded::TooMany(Resource::InFlight))
        );
        usage.take(&QUOTA, Resource::InFlight, 1).unwrap();
        usage.take(&QUOTA, Resource::Waiting, 1).unwrap();
        assert!(!usage.is_blank(at(0)));
        usage.give_back(Resource::InFlight, 3);
        usage.give_back(Resource::Waiting, 1);
        assert!(usage.is_blank(at(0)));
        usage.take(&QUOTA, Resource::InFlight, 3).unwrap();
    }

    #[test]
    fn a_minute_s_worth_is_there_at_once_and_then_one_at_a_time() {
        let mut usage = Usage::default();
        for _ in 0..6 {
            usage.count(&QUOTA, Rate::ProviderCalls, at(0)).unwrap();
        }
        let hint = Err(QuotaExceeded::TooOften(Rate::ProviderCalls, at(10_000)));
        assert_eq!(usage.count(&QUOTA, Rate::ProviderCalls, at(0)), hint);
        assert_eq!(
            usage.count(&QUOTA, Rate::ProviderCalls, at(9_999)),
            hint,
            "asking again costs nothing more"
        );
        usage.count(&QUOTA, Rate::ProviderCalls, at(10_000)).unwrap();
        usage.count(&QUOTA, Rate::ProviderCalls, at(10_000)).unwrap_err();
        usage.count(&QUOTA, Rate::Refusals, at(0)).unwrap();
        assert!(!usage.is_blank(at(69_999)) && usage.is_blank(at(70_000)));
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let mut usage = Usage::default();
        usage.count(&QUOTA, Rate::ProviderCalls, at(0)).unwrap();
        let an_hour_later = at(3_600_000);
        let granted = (0..100).filter(|_| usage.count(&QUOTA, Rate::ProviderCalls, an_hour_later).is_ok());
        assert_eq!(granted.count(), 6);
    }

    proptest! {
        #[test]
        fn no_minute_has_more_than_twice_its_worth(gaps in prop::collection::vec(0_u64..5_000, 1..500)) {
            let mut usage = Usage::default();
            let (mut now, mut granted) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                match usage.count(&QUOTA, Rate::ProviderCalls, at(now)) {
                    Ok(()) => granted.push(now),
                    Err(QuotaExceeded::TooOften(_, hint)) => {
                        prop_assert!(hint > at(now) && hint <= at(now + 10_000));
                    }
                    Err(other) => prop_assert!(false, "{:?}", other),
                }
            }
            for (index, begin) in granted.iter().enumerate() {
                let in_minute = granted[index..].iter().take_while(|at| **at < begin + 60_000).count();
                prop_assert!(in_minute <= 12);
            }
        }
    }
}

//! What a simulation consists of: how many issuers and tokens, how long they live, how often what goes wrong.

use std::time::Duration;

use fastrand::Rng;
use tokend::engine::schedule::RenewalMode;

const SECOND: f64 = 1.0;
const MINUTE: f64 = 60.0;
const HOUR: f64 = 3_600.0;
pub const DAY: f64 = 86_400.0;
pub const YEAR: f64 = 365.0 * DAY;

/// About so many renewals make up one of the shorter simulations.
const RENEWALS: f64 = 1_500.0;

/// The clients of each issuer.
pub const CLIENTS: usize = 3;

/// One simulation.
#[derive(Debug)]
pub struct Plan {
    pub seed: u64,
    pub span: Duration,
    pub issuers: Vec<IssuerPlan>,
    /// The mean time between two sleeps of the host, and how long the longest is.
    pub suspends: (Duration, Duration),
    /// The mean time between two settings of the wall clock.
    pub clock_sets: Duration,
}

/// One issuer.
#[derive(Debug)]
pub struct IssuerPlan {
    pub tokens: Vec<TokenPlan>,
    /// The mean time between the end of one trouble and the next, and how long the longest is.
    pub troubles: (Duration, Duration),
    /// How many requests in a thousand fail outside of troubles.
    pub mishaps: u32,
    /// The longest that a healthy request takes.
    pub latency: Duration,
}

/// One token.
#[derive(Clone, Debug)]
pub struct TokenPlan {
    pub lifetime: Duration,
    pub refresh_before: Option<Duration>,
    /// Which client of the issuer it is for.
    pub client: usize,
    /// Whether the issuer gives the same token again while it is valid.
    pub is_cached: bool,
    /// Whether it is renewed while nobody uses it.
    pub renewal_mode: RenewalMode,
    /// The mean time between two calls for it.
    pub calls: Duration,
    /// From when to when it is configured.
    pub configured: (Duration, Duration),
}

impl Plan {
    /// A thousand tokens for a year. Those of less than half an hour are configured for two hours each, somewhere
    /// in the year: a ten-second token for a year is four million requests, all alike.
    pub fn year(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let span = seconds(YEAR);
        let lifetime = |rng: &mut Rng, n: usize| match n {
            0..=1 => 30.0 * MINUTE,
            2..=29 => between(rng, 10.0 * SECOND, 10.0 * MINUTE),
            _ => between(rng, 12.0 * HOUR, YEAR),
        };
        let mut issuers: Vec<_> = (0..8)
            .map(|_| IssuerPlan {
                tokens: Vec::new(),
                troubles: (seconds(10.0 * DAY), seconds(8.0 * HOUR)),
                mishaps: rng.u32(0..20),
                latency: seconds(between(&mut rng, 0.05, 2.0)),
            })
            .collect();
        for n in 0..1_000 {
            let lifetime = lifetime(&mut rng, n);
            let mut token = TokenPlan::draw(&mut rng, lifetime, span);
            if lifetime < 30.0 * MINUTE {
                let from = rng.f64() * (YEAR - 2.0 * HOUR);
                token.configured = (seconds(from), seconds(from + 2.0 * HOUR));
            }
            issuers[n % 8].tokens.push(token);
        }
        let suspends = (seconds(7.0 * DAY), seconds(2.0 * DAY));
        Self { seed, span, issuers, suspends, clock_sets: seconds(14.0 * DAY) }
    }

    /// A few tokens of a few issuers for an hour to a month, with more trouble than any year has.
    pub fn short(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let crowds: Vec<usize> = (0..rng.usize(1..=4)).map(|_| rng.usize(1..=10)).collect();
        // Skewed to the short, where there is least room for mistakes.
        let lifetime = |rng: &mut Rng| (10.0_f64.ln() + rng.f64().powi(2) * (YEAR / 10.0).ln()).exp();
        let lifetimes: Vec<Vec<f64>> =
            crowds.iter().map(|crowd| (0..*crowd).map(|_| lifetime(&mut rng)).collect()).collect();
        let rate: f64 = lifetimes.iter().flatten().map(|lifetime| 1.4 / lifetime).sum();
        let whole = (RENEWALS / rate).clamp(HOUR, 30.0 * DAY);
        let span = seconds(whole);
        let issuer = |lifetimes: Vec<f64>| IssuerPlan {
            tokens: lifetimes.into_iter().map(|lifetime| TokenPlan::draw(&mut rng, lifetime, span)).collect(),
            troubles: (seconds(whole / between(&mut rng, 1.0, 30.0)), seconds(whole / 4.0)),
            mishaps: rng.u32(0..100),
            latency: seconds(between(&mut rng, 0.01, 1.0)),
        };
        let issuers = lifetimes.into_iter().map(issuer).collect();
        let suspends = (seconds(whole / between(&mut rng, 0.5, 20.0)), seconds(whole / 4.0));
        let clock_sets = seconds(whole / between(&mut rng, 0.5, 20.0));
        Self { seed, span, issuers, suspends, clock_sets }
    }
}

impl TokenPlan {
    fn draw(rng: &mut Rng, lifetime: f64, span: Duration) -> Self {
        let refresh_before = match rng.u32(0..20) {
            0 => Some(Duration::ZERO),
            1 => Some(seconds(lifetime / 20.0)),
            // Longer than the token lives.
            2 => Some(seconds(lifetime * 2.0)),
            _ => None,
        };
        Self {
            lifetime: seconds(lifetime.floor()),
            refresh_before,
            client: rng.usize(0..CLIENTS),
            is_cached: rng.u32(0..10) == 0,
            renewal_mode: match rng.u32(0..10) {
                0 => RenewalMode::OnDemand(seconds(lifetime * between(rng, 0.3, 3.0))),
                _ => RenewalMode::Always,
            },
            calls: seconds((lifetime * between(rng, 0.2, 2.0)).clamp(5.0, 5.0 * DAY)),
            configured: (Duration::ZERO, span),
        }
    }
}

/// A number between two, their orders of magnitude equally likely.
pub fn between(rng: &mut Rng, least: f64, most: f64) -> f64 {
    least * (most / least).powf(rng.f64())
}

/// A wait until something that happens again and again, on the average after `mean`.
pub fn wait(rng: &mut Rng, mean: Duration) -> Duration {
    mean.mul_f64(-(1.0 - rng.f64()).ln())
}

pub fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

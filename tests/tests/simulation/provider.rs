//! A simulated issuer's token endpoint, for one token.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokend::clock::Instant;
use tokend::oauth::{Granted, Outcome, Provider};
use tokend_protocol::Secret;

use crate::key::{Grant, token_text};
use crate::plan::TokenPlan;
use crate::trouble::Trouble;
use crate::world::{Place, World};

/// One token's way to its issuer.
#[derive(Debug)]
pub struct SimulatedProvider {
    world: Arc<World>,
    place: Place,
    issued: Mutex<Issued>,
    /// Which secret the last request was sent with.
    used: AtomicU64,
}

/// What the issuer gave last.
#[derive(Debug, Default)]
struct Issued {
    number: u64,
    valid_until: Option<Instant>,
}

impl SimulatedProvider {
    pub fn new(world: Arc<World>, place: Place) -> Self {
        Self { world, place, issued: Mutex::default(), used: AtomicU64::new(0) }
    }

    fn plan(&self) -> &TokenPlan {
        &self.world.plan.issuers[self.place.site].tokens[self.place.token]
    }

    /// What is wrong at the moment with this issuer.
    fn trouble(&self) -> Option<Trouble> {
        let mishaps = self.world.plan.issuers[self.place.site].mishaps;
        let (trouble, is_recovering) = self.world.judge(|judge| {
            let site = &judge.sites[self.place.site];
            let is_meant = site.troubled_client.is_none_or(|client| client == self.plan().client);
            let trouble = site.trouble.filter(|_| is_meant).map(|(trouble, _)| trouble);
            (trouble, site.is_recovering)
        });
        if trouble.is_some() || is_recovering {
            return trouble;
        }
        self.world.draw(|rng| (rng.u32(0..1_000) < mishaps).then(|| Trouble::mishap(rng)))
    }

    /// The token that is given at this moment, and for how long.
    fn issue(&self, trouble: Option<Trouble>) -> (u64, Duration, Instant) {
        let now = self.world.clock.now();
        let mut issued = self.issued.lock().unwrap();
        let left = issued.valid_until.map_or(Duration::ZERO, |until| until.since(now));
        let left = Duration::from_secs(left.as_secs());
        if trouble == Some(Trouble::Stale) {
            return (issued.number, Duration::ZERO, now);
        }
        if self.plan().is_cached && !left.is_zero() {
            return (issued.number, left, now.after(left));
        }
        let lifetime = self.plan().lifetime;
        // As many issuers do, it rounds the time of issue down to whole seconds.
        let issued_at =
            now.before(Duration::from_nanos(now.since(Instant::at(Duration::ZERO)).subsec_nanos().into()));
        issued.number += 1;
        issued.valid_until = Some(issued_at.after(lifetime));
        (issued.number, lifetime, issued_at.after(lifetime))
    }

    fn replacements(&self) -> u64 {
        self.world.judge(|judge| judge.sites[self.place.site].replacements)
    }

    async fn travel(&self, whole: Duration) {
        tokio::time::sleep(whole / 2).await;
    }
}

impl Provider for SimulatedProvider {
    async fn request(&self) -> Outcome {
        let key = self.place.key;
        let sent_at = self.world.clock.now();
        self.used.store(self.replacements(), Ordering::Relaxed);
        let secret_is_missing = self.trouble() == Some(Trouble::NoSecret);
        self.world.judge(|judge| judge.sent(key, !secret_is_missing));
        let longest = self.world.plan.issuers[self.place.site].latency;
        let healthy = self.world.draw(|rng| longest.mul_f64(rng.f64().powi(4)));
        if !secret_is_missing {
            self.travel(healthy).await;
        }
        let trouble = if secret_is_missing { Some(Trouble::NoSecret) } else { self.trouble() };
        if let Some((trouble, failure)) = trouble.and_then(|trouble| Some((trouble, trouble.failure()?))) {
            tokio::time::sleep(self.world.draw(|rng| trouble.latency(rng))).await;
            self.world.judge(|judge| judge.failed(key, &failure, true));
            return Outcome::of(Err(failure), u32::from(!secret_is_missing));
        }
        let (number, lifetime, valid_until) = self.issue(trouble);
        self.travel(healthy).await;
        let granted_at = self.world.clock.now();
        let grant = Grant { number, sent_at, lifetime, valid_until, granted_at, longest: lifetime };
        self.world.judge(|judge| judge.granted(key, grant));
        let token = Secret::from(token_text(key, number));
        Outcome::of(Ok(Granted { token, lifetime, scope: None }), 1)
    }

    async fn changed(&self) {
        loop {
            let replaced = self.world.replaced.notified();
            if self.used.load(Ordering::Relaxed) != self.replacements() {
                return;
            }
            replaced.await;
        }
    }
}

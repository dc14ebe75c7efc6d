//! One simulation from beginning to end: the issuers, the host, and the engine between them and its callers.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;
use tokend::clock::{Clock, Instant};
use tokend::engine::credential::{ActorContext, Credential, Schedule, StartState};
use tokend::engine::throttle::{ClientThrottle, EndpointThrottle};
use tokend::fingerprint::Fingerprinter;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::caller;
use crate::host::Host;
use crate::judge::Judge;
use crate::key::Key;
use crate::plan::{CLIENTS, Plan, between, wait};
use crate::provider::SimulatedProvider;
use crate::tally::Tally;
use crate::test_support::client;
use crate::trouble::Trouble;

/// What all parts of a simulation share.
#[derive(Debug)]
pub struct World {
    pub plan: Plan,
    pub clock: Clock,
    host: Host,
    rng: Mutex<Rng>,
    judge: Mutex<Judge>,
    violated: Notify,
    /// Tells that a secret on the host was replaced.
    pub replaced: Notify,
}

/// What a simulation came to.
#[derive(Debug)]
pub struct Report {
    pub tally: Tally,
    /// All events in one number.
    pub digest: u64,
    pub violation: Option<String>,
}

/// Runs a plan. The same plan runs in the same way each time: there is one thread, time passes only when nothing
/// can be done, and every choice comes from the seed.
pub fn run(plan: Plan) -> Report {
    let seed = plan.seed;
    // The engine's own rolls: `fastrand::f64` draws from the generator of the thread.
    fastrand::seed(seed);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async move { World::begin(plan).live().await })
}

impl World {
    fn begin(plan: Plan) -> Arc<Self> {
        let host = Host::begin();
        let clock = host.clock();
        let tokens = plan
            .issuers
            .iter()
            .enumerate()
            .flat_map(|(site, issuer)| issuer.tokens.iter().map(move |token| Key::new(site, token)));
        let judge = Judge::new(clock.clone(), tokens.collect(), plan.issuers.len());
        let rng = Rng::with_seed(plan.seed.rotate_left(32));
        Arc::new(Self {
            plan,
            clock,
            host,
            rng: Mutex::new(rng),
            judge: Mutex::new(judge),
            violated: Notify::new(),
            replaced: Notify::new(),
        })
    }

    async fn live(self: Arc<Self>) -> Report {
        let end = self.clock.now().after(self.plan.span);
        let actor_context = Arc::new(ActorContext {
            clock: self.clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::with_key(&[7; 32])),
            roll: fastrand::f64,
            tasks: TaskTracker::new(),
        });
        let mut key = 0;
        for (site, plan) in self.plan.issuers.iter().enumerate() {
            let endpoint: Arc<EndpointThrottle> = Arc::default();
            let now = self.clock.now();
            let clients: Vec<_> =
                (0..CLIENTS).map(|name| client(&endpoint, &name.to_string(), now)).collect();
            for (token, token_plan) in plan.tokens.iter().enumerate() {
                let place = Place { site, token, key };
                let throttle = Arc::clone(&clients[token_plan.client]);
                let life = Arc::clone(&self).configure(place, throttle, Arc::clone(&actor_context));
                tokio::spawn(life);
                key += 1;
            }
            tokio::spawn(Arc::clone(&self).weather(site));
        }
        tokio::spawn(Arc::clone(&self).sleeps());
        tokio::spawn(Arc::clone(&self).clock_sets());
        tokio::select! {
            biased;
            () = self.violated.notified() => (),
            () = self.clock.sleep_until(end) => self.judge(Judge::look_at_all),
        }
        let judge = self.judge.lock().unwrap();
        Report { tally: judge.tally.clone(), digest: judge.digest(), violation: judge.violation.clone() }
    }

    /// One token, from when it is configured to when it is not any more.
    async fn configure(
        self: Arc<Self>,
        place: Place,
        throttle: Arc<ClientThrottle>,
        actor_context: Arc<ActorContext>,
    ) {
        let plan = &self.plan.issuers[place.site].tokens[place.token];
        let begin = self.clock.now();
        self.clock.sleep_until(begin.after(plan.configured.0)).await;
        let provider = SimulatedProvider::new(Arc::clone(&self), place);
        let (refresh_before, renewal_mode) = (plan.refresh_before, plan.renewal_mode);
        let schedule = Schedule { names: "simulated".into(), refresh_before, renewal_mode };
        let (start, context) = (StartState::default(), &actor_context);
        let credential = Arc::new(Credential::start(provider, throttle, schedule, start, context));
        self.judge(|judge| judge.keys[place.key].seen = Some(credential.subscribe()));
        let end = begin.after(plan.configured.1);
        while self.clock.now() < end {
            let pause = self.draw(|rng| wait(rng, plan.calls));
            self.clock.sleep_until(self.clock.now().after(pause).min(end)).await;
            caller::call(&self, place.key, &credential, plan.lifetime);
        }
        credential.stop();
        self.judge(|judge| judge.keys[place.key].seen = None);
    }

    /// The troubles of an issuer, one after the other, with time to recover after each.
    async fn weather(self: Arc<Self>, site: usize) {
        let plan = &self.plan.issuers[site];
        loop {
            let (calm, trouble, length) = self.draw(|rng| {
                let length = between(rng, 1.0, plan.troubles.1.as_secs_f64());
                (wait(rng, plan.troubles.0), Trouble::draw(rng), Duration::from_secs_f64(length))
            });
            self.clock.sleep_until(self.clock.now().after(calm)).await;
            let client =
                self.draw(|rng| (trouble.is_throttling() && rng.bool()).then(|| rng.usize(0..CLIENTS)));
            self.judge(|judge| judge.troubled(site, trouble, client));
            self.clock.sleep_until(self.clock.now().after(length)).await;
            self.judge(|judge| judge.relieved(site));
            let ended = self.clock.now();
            let callers_recovery = trouble.recovery_of_callers(plan.tokens.len(), plan.latency);
            self.judge(|judge| {
                judge.sites[site].is_recovering = true;
                judge.sites[site].callers_recovered = callers_recovery.map(|needed| ended.after(needed));
            });
            // Half of the time, because somebody put something right on this host.
            if self.draw(Rng::bool) {
                self.judge(|judge| judge.replaced(site));
                self.replaced.notify_waiters();
            }
            self.recovery(ended, trouble.recovery(plan.tokens.len(), plan.latency)).await;
            self.judge(|judge| {
                judge.sites[site].is_recovering = false;
                judge.sites[site].callers_recovered = None;
                judge.recovered(site, ended);
            });
        }
    }

    /// The time for recovery: while the host is awake.
    async fn recovery(&self, ended: Instant, needed: Duration) {
        let mut from = ended;
        loop {
            self.clock.sleep_until(from.after(needed)).await;
            let (_, resumed) = self.judge(|judge| judge.resumed);
            if resumed <= from {
                return;
            }
            from = resumed;
        }
    }

    async fn sleeps(self: Arc<Self>) {
        let (mean, longest) = self.plan.suspends;
        loop {
            let (awake, asleep) = self.draw(|rng| {
                (wait(rng, mean), Duration::from_secs_f64(between(rng, 1.0, longest.as_secs_f64())))
            });
            self.clock.sleep_until(self.clock.now().after(awake)).await;
            self.host.suspend(asleep);
            self.judge(|judge| {
                judge.resumed = (judge.resumed.0 + 1, self.clock.now());
                judge.tally.suspends += 1;
                judge.look_at_all();
            });
        }
    }

    async fn clock_sets(self: Arc<Self>) {
        loop {
            let (pause, by, ahead) = self.draw(|rng| {
                (wait(rng, self.plan.clock_sets), Duration::from_secs(rng.u64(1..200_000)), rng.bool())
            });
            self.clock.sleep_until(self.clock.now().after(pause)).await;
            if ahead {
                self.host.set_ahead(by);
            } else {
                self.host.set_back(by);
            }
            self.judge(Judge::look_at_all);
        }
    }

    /// Draws from the seed.
    pub fn draw<T>(&self, choose: impl FnOnce(&mut Rng) -> T) -> T {
        choose(&mut self.rng.lock().unwrap())
    }

    /// Tells the judge something, or asks it. The simulation ends with the first violation.
    pub fn judge<T>(&self, tell: impl FnOnce(&mut Judge) -> T) -> T {
        let mut judge: MutexGuard<'_, Judge> = self.judge.lock().unwrap();
        let told = tell(&mut judge);
        if judge.violation.is_some() {
            self.violated.notify_one();
        }
        told
    }
}

/// Which token of which issuer.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub site: usize,
    pub token: usize,
    /// Its number among all.
    pub key: usize,
}

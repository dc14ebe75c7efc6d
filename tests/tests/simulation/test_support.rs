//! A credential whose provider answers as a test says, in simulated time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokend::clock::{Clock, Instant};
use tokend::engine::credential::{ActorContext, Credential, Schedule, StartState, Token, Unobtainable};
use tokend::engine::schedule::RenewalMode;
use tokend::engine::throttle::{ClientThrottle, EndpointThrottle};
use tokend::fingerprint::Fingerprinter;
use tokend::oauth::{Failure, Granted, Outcome, Provider};
use tokend::store::record::Key;
use tokend::store::{Store, ThrottleWriter};
use tokend_protocol::{ErrorClass, Secret};
use tokio_util::task::TaskTracker;

use crate::host::Host;

/// A host at its beginning.
#[derive(Clone, Debug)]
pub struct Scene {
    pub host: Host,
    pub clock: Clock,
    start: Instant,
}

/// A provider's answer: a token that lives for so many seconds, or a failure.
pub type Answer = Result<u64, Failure>;

/// What a provider answers so many seconds after the beginning.
pub type Script = fn(f64) -> Answer;

/// A provider with a script, and all that it was asked.
#[derive(Clone)]
pub struct Subject {
    scene: Scene,
    name: Arc<str>,
    answer: Script,
    /// Which token it gives so many seconds after the beginning, if not a new one each time.
    token_at: Option<fn(f64) -> u64>,
    latency: Duration,
    asked_at: Arc<Mutex<Vec<f64>>>,
}

/// The throttle of a client of an endpoint.
pub fn client(endpoint: &Arc<EndpointThrottle>, name: &str, now: Instant) -> Arc<ClientThrottle> {
    Arc::new(ClientThrottle::new(Arc::clone(endpoint), name, ThrottleWriter::default(), None, now))
}

/// A failure of a class.
pub fn fail(class: ErrorClass) -> Answer {
    Err(Failure::new(class, "scripted"))
}

impl Scene {
    /// A host whose rolls follow from `seed`.
    pub fn begin(seed: u64) -> Self {
        fastrand::seed(seed);
        let host = Host::begin();
        let clock = host.clock();
        Self { start: clock.now(), host, clock }
    }

    pub fn subject(&self, name: &str, answer: Script) -> Subject {
        let latency = Duration::from_millis(100);
        Subject {
            scene: self.clone(),
            name: name.into(),
            answer,
            token_at: None,
            latency,
            asked_at: Arc::default(),
        }
    }

    pub fn seconds(&self) -> f64 {
        self.clock.now().since(self.start).as_secs_f64()
    }

    pub async fn reach(&self, seconds: u64) {
        self.clock.sleep_until(self.start.after(Duration::from_secs(seconds))).await;
    }

    pub fn deadline(&self) -> Instant {
        self.clock.now().after(Duration::from_secs(20))
    }
}

impl Subject {
    /// The same with a provider that takes so long to answer.
    #[must_use]
    pub fn with_latency(self, latency: Duration) -> Self {
        Self { latency, ..self }
    }

    /// The same with a provider that gives a token again, as `token_at` says.
    #[must_use]
    pub fn with_token_at(self, token_at: fn(f64) -> u64) -> Self {
        Self { token_at: Some(token_at), ..self }
    }

    /// When it was asked, in seconds.
    pub fn asked_at(&self) -> Vec<f64> {
        self.asked_at.lock().unwrap().clone()
    }

    /// The seconds between two requests, each time.
    pub fn gaps(&self) -> Vec<f64> {
        self.asked_at().windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    pub fn start(&self) -> Credential {
        self.start_at(&Arc::default(), None)
    }

    pub fn start_at(&self, throttle: &Arc<ClientThrottle>, refresh_before: Option<Duration>) -> Credential {
        self.resume(Arc::clone(throttle), refresh_before, StartState::default())
    }

    /// Goes on from what a store has kept, of the credential and of its token endpoint.
    pub fn start_from(&self, store: &Arc<Store>, key: Key) -> Credential {
        let (endpoint, condition) = store.claim_throttle("https://id.example/token");
        let endpoint = EndpointThrottle::new(Arc::default(), endpoint, condition.unwrap_or_default());
        let throttle = client(&Arc::new(endpoint), "client", self.scene.clock.now());
        let (writer, record) = store.claim(key, None);
        let previous_exit = store.previous_exit;
        self.resume(throttle, None, StartState { writer, record, previous_exit, ..StartState::default() })
    }

    fn resume(
        &self,
        throttle: Arc<ClientThrottle>,
        refresh_before: Option<Duration>,
        start: StartState,
    ) -> Credential {
        let actor_context = Arc::new(ActorContext {
            clock: self.scene.clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::with_key(&[7; 32])),
            roll: fastrand::f64,
            tasks: TaskTracker::new(),
        });
        let schedule =
            Schedule { names: Arc::clone(&self.name), refresh_before, renewal_mode: RenewalMode::Always };
        Credential::start(self.clone(), throttle, schedule, start, &actor_context)
    }

    /// Asks for a token as a caller does.
    pub async fn get(&self, credential: &Credential) -> Result<Arc<Token>, Unobtainable> {
        credential.obtain(Duration::ZERO, self.scene.deadline()).await
    }
}

impl Provider for Subject {
    async fn request(&self) -> Outcome {
        let number = {
            let mut asked_at = self.asked_at.lock().unwrap();
            asked_at.push(self.scene.seconds());
            self.token_at.map_or(asked_at.len() as u64, |token_at| token_at(self.scene.seconds()))
        };
        let answer = (self.answer)(self.scene.seconds());
        tokio::time::sleep(self.latency).await;
        let result = answer.map(|lifetime| Granted {
            token: Secret::from(format!("{}-{number}", self.name)),
            lifetime: Duration::from_secs(lifetime),
            scope: None,
        });
        Outcome::of(result, 1)
    }

    /// Nothing here changes but with time.
    async fn changed(&self) {
        std::future::pending::<()>().await;
    }
}

//! Starts credentials: with the throttle of their provider, their HTTP client and their stored state.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use crate::config::{CredentialSettings, Endpoint, TokenSettings};
use crate::engine::credential::{ActorContext, Credential, Schedule, StartState, Token};
use crate::engine::throttle::{ClientThrottle, EndpointThrottle, OriginThrottle};
use crate::oauth::client::{Connection, HttpClient};
use crate::oauth::http::HttpProvider;
use crate::store::record::Key;
use crate::store::{PreviousExit, Store};

/// Starts credentials. It outlives the registries, so that no throttle begins anew with a reload.
#[derive(Debug)]
pub struct CredentialFactory {
    pub(super) actor_context: Arc<ActorContext>,
    pub(crate) store: Arc<Store>,
    /// The directory of the egress sockets, if the daemon does not connect to providers itself.
    egress_dir: Option<PathBuf>,
    origins: HashMap<String, Weak<OriginThrottle>>,
    endpoints: HashMap<String, Weak<EndpointThrottle>>,
    /// By URL and `client_id`.
    throttled_clients: HashMap<String, Weak<ClientThrottle>>,
    clients: HashMap<Connection, Weak<HttpClient>>,
}

impl CredentialFactory {
    /// A factory whose credentials resume from the records in `store`.
    pub fn new(store: Arc<Store>, egress_dir: Option<PathBuf>, actor_context: ActorContext) -> Self {
        Self {
            actor_context: Arc::new(actor_context),
            store,
            egress_dir,
            origins: HashMap::new(),
            endpoints: HashMap::new(),
            throttled_clients: HashMap::new(),
            clients: HashMap::new(),
        }
    }

    /// Sets the rate limit of each host: the lowest one that is configured for it. The result keeps the limits until the
    /// credentials of the hosts are started.
    #[must_use]
    pub(super) fn limit_origins<'a>(
        &mut self,
        tokens: impl Iterator<Item = &'a TokenSettings>,
    ) -> Vec<Arc<OriginThrottle>> {
        let mut limits: HashMap<String, Option<u32>> = HashMap::new();
        for token in tokens {
            let limit = limits.entry(origin(&token.credential.client.endpoint)).or_default();
            *limit = [*limit, token.max_requests_per_minute].into_iter().flatten().min();
        }
        let limited = limits.into_iter().map(|(name, limit)| {
            let origin = self.origin(name);
            origin.limit(limit);
            origin
        });
        limited.collect()
    }

    /// Starts a credential, one of `crowd` of its host that are started together. `loan` is the token of the credential
    /// that it replaces.
    pub(super) fn start(
        &mut self,
        settings: Arc<CredentialSettings>,
        schedule: Schedule,
        variant_of: Option<Key>,
        loan: Option<Arc<Token>>,
        crowd: usize,
    ) -> Arc<Credential> {
        let http = shared(&mut self.clients, Connection::of(&settings.client), |connection| {
            HttpClient::new(connection.clone(), self.egress_dir.clone())
        });
        let throttle = self.throttle(&settings);
        let (writer, record) = self.store.claim(Key::of_credential(&settings), variant_of);
        let delay = throttle.origin().start_delay(crowd, (self.actor_context.roll)());
        let start = StartState { writer, record, previous_exit: self.store.previous_exit, loan, delay };
        let provider = HttpProvider::new(settings, http, self.actor_context.clock.clone());
        Arc::new(Credential::start(provider, throttle, schedule, start, &self.actor_context))
    }

    /// The throttle of a client, with its stored `Retry-After`.
    fn throttle(&mut self, settings: &CredentialSettings) -> Arc<ClientThrottle> {
        let endpoint = self.endpoint(&settings.client.endpoint);
        // No URL has a space.
        let name = format!("{} {}", settings.client.endpoint.url(), settings.client.client_id);
        let now = self.actor_context.clock.now();
        shared(&mut self.throttled_clients, name, |name| {
            let (writer, record) = self.store.claim_throttle(name);
            ClientThrottle::new(endpoint, name, writer, record.and_then(|record| record.quiet_until), now)
        })
    }

    /// The circuit breaker of an endpoint, in the state in which it was stored.
    fn endpoint(&mut self, endpoint: &Endpoint) -> Arc<EndpointThrottle> {
        let origin = self.origin(origin(endpoint));
        let store = &self.store;
        shared(&mut self.endpoints, endpoint.url().to_string(), |url| {
            let (writer, record) = store.claim_throttle(url);
            // After an orderly restart the cause may be gone, as after a reload.
            let record = record.filter(|_| store.previous_exit == PreviousExit::Crashed);
            EndpointThrottle::new(origin, writer, record.unwrap_or_default())
        })
    }

    fn origin(&mut self, name: String) -> Arc<OriginThrottle> {
        shared(&mut self.origins, name, |_| OriginThrottle::default())
    }
}

/// Returns the known value of a key, or a new one if nothing uses the known one any more.
fn shared<K: Eq + Hash, V>(known: &mut HashMap<K, Weak<V>>, key: K, new: impl FnOnce(&K) -> V) -> Arc<V> {
    if let Some(value) = known.get(&key).and_then(Weak::upgrade) {
        return value;
    }
    known.retain(|_, value| value.strong_count() > 0);
    let value = Arc::new(new(&key));
    known.insert(key, Arc::downgrade(&value));
    value
}

/// The host of an endpoint: scheme, name and port.
pub(super) fn origin(endpoint: &Endpoint) -> String {
    endpoint.url().origin().ascii_serialization()
}

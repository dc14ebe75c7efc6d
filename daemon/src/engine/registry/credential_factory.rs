//! Starts credentials: with the throttle of their provider, their HTTP client and their stored state.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use url::Url;

use crate::clock::Instant;
use crate::config::{CredentialSettings, TokenSettings};
use crate::engine::credential::{ActorContext, Credential, Schedule, StartState, Token};
use crate::engine::schedule::RenewalMode;
use crate::engine::throttle::{OriginThrottle, Throttles, origin};
use crate::oauth::client::HttpClient;
use crate::oauth::http::HttpProvider;
use crate::store::Store;
use crate::store::key::Key;

/// How many renewals without a use a variant gets.
const UNUSED_RENEWALS_MAX: u32 = 2;

/// The schedule of the variants of a token.
pub(super) fn variant_schedule(names: &Arc<str>, refresh_before: Option<Duration>) -> Schedule {
    let renewal_mode = RenewalMode::UnusedRenewals(UNUSED_RENEWALS_MAX);
    Schedule { names: Arc::clone(names), refresh_before, renewal_mode }
}

/// A credential to be started.
pub(super) struct Fresh {
    pub(super) settings: Arc<CredentialSettings>,
    pub(super) schedule: Schedule,
    /// The token of the credential that it replaces.
    pub(super) loan: Option<Arc<Token>>,
}

/// Starts credentials. It outlives the registries, so that no throttle begins anew with a reload.
#[derive(Debug)]
pub struct CredentialFactory {
    pub(super) actor_context: ActorContext,
    throttles: Throttles,
    /// The throttles of the configured hosts, held so that each keeps its limit without a credential.
    limited: Vec<Arc<OriginThrottle>>,
    /// The directory of the egress sockets, if the daemon does not connect to providers itself.
    egress_dir: Option<PathBuf>,
    clients: HashMap<(Option<PathBuf>, Option<Url>), Weak<HttpClient>>,
    store: Arc<Store>,
}

impl CredentialFactory {
    /// A factory that stores nothing and connects to providers directly.
    pub fn new(actor_context: ActorContext) -> Self {
        let store = Store::forgetful(actor_context.clock.clone());
        Self::with_store(store, None, actor_context)
    }

    /// A factory whose credentials resume from the records in `store`.
    pub fn with_store(store: Arc<Store>, egress_dir: Option<PathBuf>, actor_context: ActorContext) -> Self {
        let (throttles, limited, clients) = (Throttles::default(), Vec::new(), HashMap::new());
        Self { actor_context, throttles, limited, egress_dir, clients, store }
    }

    /// The store of the records.
    pub fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    /// Sets the rate limit of each host: the lowest one that is configured for it.
    pub(super) fn limit_origins<'a>(&mut self, tokens: impl Iterator<Item = &'a TokenSettings>) {
        let mut limits: HashMap<String, (Arc<OriginThrottle>, Option<u32>)> = HashMap::new();
        for token in tokens {
            let unlimited = || (self.throttles.origin(&token.credential, &self.store), None);
            let (_, limit) = limits.entry(origin(&token.credential)).or_insert_with(unlimited);
            *limit = [*limit, token.max_requests_per_minute].into_iter().flatten().min();
        }
        for (origin, limit) in limits.values() {
            origin.limit(*limit);
        }
        self.limited = limits.into_values().map(|(origin, _)| origin).collect();
    }

    /// Starts credentials, those of one host spread over a while if there are many.
    pub(super) fn start(
        &mut self,
        fresh: Vec<Fresh>,
    ) -> impl Iterator<Item = (Arc<CredentialSettings>, Arc<Credential>)> {
        let mut crowds: HashMap<String, usize> = HashMap::new();
        for Fresh { settings, .. } in &fresh {
            *crowds.entry(origin(settings)).or_default() += 1;
        }
        let now = self.actor_context.clock.now();
        fresh.into_iter().map(move |Fresh { settings, schedule, loan }| {
            let crowd = crowds.get(&origin(&settings)).copied().unwrap_or_default();
            let throttle = self.throttles.origin(&settings, &self.store);
            let asks_at_once = schedule.renewal_mode == RenewalMode::Always || loan.is_some();
            let first_attempt =
                asks_at_once.then(|| now.after(throttle.start_delay(crowd, (self.actor_context.roll)())));
            let credential = self.start_one(&settings, schedule, first_attempt, None, loan);
            (settings, Arc::new(credential))
        })
    }

    /// Starts the credential of a variant, for a caller or with a token on loan. The time of a loan is that of its
    /// first request.
    pub(super) fn start_variant(
        &mut self,
        settings: &CredentialSettings,
        base: &CredentialSettings,
        schedule: Schedule,
        loan: Option<(Arc<Token>, Instant)>,
    ) -> Credential {
        let (loan, first_attempt) = loan.unzip();
        let variant_of = Some(Key::of_credential(base));
        self.start_one(&Arc::new(settings.clone()), schedule, first_attempt, variant_of, loan)
    }

    fn start_one(
        &mut self,
        settings: &Arc<CredentialSettings>,
        schedule: Schedule,
        first_attempt: Option<Instant>,
        variant_of: Option<Key>,
        loan: Option<Arc<Token>>,
    ) -> Credential {
        let http = self.client(settings);
        let provider = HttpProvider::new(Arc::clone(settings), http, self.actor_context.clock.clone());
        let throttle = self.throttles.endpoint(settings, &self.store);
        let (writer, record) = self.store.claim(Key::of_credential(settings), variant_of);
        let start = StartState { writer, record, previous_exit: self.store.previous_exit, loan };
        Credential::start(provider, throttle, schedule, first_attempt, start, &self.actor_context)
    }

    fn client(&mut self, settings: &CredentialSettings) -> Arc<HttpClient> {
        let way = (settings.ca_file.clone(), settings.proxy.clone());
        if let Some(known) = self.clients.get(&way).and_then(Weak::upgrade) {
            return known;
        }
        self.clients.retain(|_, client| client.strong_count() > 0);
        let client = Arc::new(HttpClient::new(way.0.clone(), way.1.clone(), self.egress_dir.clone()));
        self.clients.insert(way, Arc::downgrade(&client));
        client
    }
}

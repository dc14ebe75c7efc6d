//! What credentials are made of: how each issuer is spared, by which client it is reached, and what is kept of it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use url::Url;

use super::Scheduled;
use crate::clock::Instant;
use crate::config::{CredentialSettings, TokenSettings};
use crate::engine::credential::{ActorContext, Credential, Kept, Schedule};
use crate::engine::schedule::RenewalMode;
use crate::engine::throttle::{OriginThrottle, OriginThrottles, origin, start_delay};
use crate::oauth::client::HttpClient;
use crate::oauth::http::HttpProvider;
use crate::store::Store;
use crate::store::key::Key;

/// Renewals of a variant between which nobody used it, after which it is let go.
const UNUSED_RENEWALS_MAX: u32 = 2;

/// What credentials are made of, kept from one registry to the next so that issuers are not asked twice as
/// much for a reload.
#[derive(Debug)]
pub struct CredentialFactory {
    pub(super) actor_context: ActorContext,
    issuers: OriginThrottles,
    /// The issuers of the configuration in force, kept so that none forgets its limit.
    limited: Vec<Arc<OriginThrottle>>,
    /// The directory of the sockets through which providers are reached, if the daemon does not connect by itself.
    egress_dir: Option<PathBuf>,
    clients: HashMap<(Option<PathBuf>, Option<Url>), Weak<HttpClient>>,
    store: Arc<Store>,
}

impl CredentialFactory {
    /// Nothing yet, with nothing stored and direct connections to providers.
    pub fn new(actor_context: ActorContext) -> Self {
        let store = Store::forgetful(actor_context.clock.clone());
        Self::with_store(store, None, actor_context)
    }

    /// What the store has kept.
    pub fn with_store(store: Arc<Store>, egress_dir: Option<PathBuf>, actor_context: ActorContext) -> Self {
        let (issuers, limited, clients) = (OriginThrottles::default(), Vec::new(), HashMap::new());
        Self { actor_context, issuers, limited, egress_dir, clients, store }
    }

    /// Where credentials are kept.
    pub fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    /// Sets how many requests each issuer is sent: where its providers differ, the least counts.
    pub(super) fn limit_issuers<'a>(&mut self, tokens: impl Iterator<Item = &'a TokenSettings>) {
        let mut limits: HashMap<String, (Arc<OriginThrottle>, Option<u32>)> = HashMap::new();
        for token in tokens {
            let issuer = || (self.issuers.of(&token.credential, &self.store), None);
            let (_, limit) = limits.entry(origin(&token.credential)).or_insert_with(issuer);
            *limit = [*limit, token.max_requests_per_minute].into_iter().flatten().min();
        }
        for (issuer, limit) in limits.values() {
            issuer.limit(*limit);
        }
        self.limited = limits.into_values().map(|(issuer, _)| issuer).collect();
    }

    /// Starts credentials, those of one issuer spread over a while if there are many.
    pub(super) fn start(
        &mut self,
        fresh: Vec<(Arc<CredentialSettings>, Schedule)>,
    ) -> HashMap<Arc<CredentialSettings>, Scheduled> {
        let mut crowds: HashMap<String, usize> = HashMap::new();
        for (settings, _) in &fresh {
            *crowds.entry(origin(settings)).or_default() += 1;
        }
        let now = self.actor_context.clock.now();
        let mut started = HashMap::with_capacity(fresh.len());
        for (settings, schedule) in fresh {
            let crowd = crowds.get(&origin(&settings)).copied().unwrap_or_default();
            let first_attempt = (schedule.renewal_mode == RenewalMode::Always)
                .then(|| now.after(start_delay(crowd, (self.actor_context.roll)())));
            let credential = Arc::new(self.start_one(&settings, schedule.clone(), first_attempt, None));
            started.insert(settings, Scheduled { credential, schedule });
        }
        started
    }

    /// Starts the credential of a variant. A caller is about to need it.
    pub(super) fn start_variant(
        &mut self,
        settings: &CredentialSettings,
        base: &CredentialSettings,
        names: &Arc<str>,
    ) -> Credential {
        let renewal_mode = RenewalMode::UnusedRenewals(UNUSED_RENEWALS_MAX);
        let schedule = Schedule { names: Arc::clone(names), refresh_before: None, renewal_mode };
        self.start_one(&Arc::new(settings.clone()), schedule, None, Some(Key::of_credential(base)))
    }

    fn start_one(
        &mut self,
        settings: &Arc<CredentialSettings>,
        schedule: Schedule,
        first_attempt: Option<Instant>,
        variant_of: Option<Key>,
    ) -> Credential {
        let http = self.client(settings);
        let provider = HttpProvider::new(Arc::clone(settings), http, self.actor_context.clock.clone());
        let issuer = self.issuers.of(settings, &self.store);
        let (keep, record) = self.store.claim(Key::of_credential(settings), variant_of);
        let kept = Kept { keep, record, previous_exit: self.store.previous_exit() };
        Credential::resume(provider, issuer, schedule, first_attempt, kept, &self.actor_context)
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

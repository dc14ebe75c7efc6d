//! Which token names exist, and what each leads to. A registry is built whole from a configuration and
//! swapped whole on reload; it is never changed.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use reqwest::Url;
use tokend_protocol::TokenName;

use crate::clock::Instant;
use crate::config::{Config, CredentialSettings, HeaderSettings, TokenSettings};
use crate::credential::{Credential, Schedule, Surroundings};
use crate::issuer::{Issuers, origin, start_delay};
use crate::policy::access::Rule;
use crate::provider::http::{HttpClient, HttpProvider};

/// How late an actor may be before it is taken for dead.
const OVERDUE: Duration = Duration::from_secs(60);

/// All tokens of a configuration.
#[derive(Debug)]
pub struct Registry {
    tokens: BTreeMap<TokenName, Arc<Entry>>,
    credentials: HashMap<Arc<CredentialSettings>, Scheduled>,
    /// Who is an operator besides root and the daemon's own user.
    pub admin: Vec<Rule>,
}

/// A credential and the schedule that it was last given.
#[derive(Clone, Debug)]
struct Scheduled {
    credential: Arc<Credential>,
    schedule: Schedule,
}

/// What a token name leads to.
#[derive(Debug)]
pub struct Entry {
    /// The provider's name, for people.
    pub provider: Arc<str>,
    /// Where its token comes from. Names with equal settings share one.
    pub credential: Arc<Credential>,
    /// The headers of an API call besides `Authorization`.
    pub headers: Vec<HeaderSettings>,
    /// The headers that the caller supplies.
    pub caller_headers: Vec<String>,
    /// Who may have it besides root and the daemon's own user.
    pub allow: Vec<Rule>,
    hand_outs: Arc<AtomicU64>,
}

/// What credentials are made of, kept from one registry to the next so that issuers are not asked twice as
/// much for a reload.
#[derive(Debug)]
pub struct Origins {
    surroundings: Surroundings,
    issuers: Issuers,
    clients: HashMap<(Option<PathBuf>, Option<Url>), Weak<HttpClient>>,
}

impl Entry {
    /// Counts a hand-out.
    pub fn count_hand_out(&self) {
        self.hand_outs.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the token was handed out under this name.
    pub fn hand_outs(&self) -> u64 {
        self.hand_outs.load(Ordering::Relaxed)
    }
}

impl Registry {
    /// A registry of `config`. Credentials of `previous` whose settings are the same go on with their
    /// tokens; new ones are started; the others are for [`Registry::stop_all_but`].
    pub fn build(config: &Config, origins: &mut Origins, previous: Option<&Self>) -> Self {
        let schedules = schedules(&config.tokens);
        let mut credentials = HashMap::with_capacity(schedules.len());
        let mut fresh = Vec::new();
        for (settings, schedule) in schedules {
            match previous.and_then(|previous| previous.credentials.get(&settings)) {
                Some(kept) => {
                    let kept = kept.with_schedule(schedule, &origins.surroundings);
                    credentials.insert(settings, kept);
                }
                None => fresh.push((settings, schedule)),
            }
        }
        credentials.extend(origins.start(fresh));
        let entry = |(name, token): (&TokenName, &TokenSettings)| {
            let known = previous.and_then(|previous| previous.tokens.get(name));
            let hand_outs = known.map(|entry| Arc::clone(&entry.hand_outs)).unwrap_or_default();
            let credential = &credentials.get(&token.credential)?.credential;
            let entry = Entry {
                provider: Arc::clone(&token.provider),
                credential: Arc::clone(credential),
                headers: token.headers.clone(),
                caller_headers: token.caller_headers.clone(),
                allow: token.allow.clone(),
                hand_outs,
            };
            Some((name.clone(), Arc::new(entry)))
        };
        let tokens = config.tokens.iter().filter_map(entry).collect();
        Self { tokens, credentials, admin: config.admin.clone() }
    }

    /// Ends the credentials that `next` has no use for.
    pub fn stop_all_but(&self, next: &Self) {
        for (settings, scheduled) in &self.credentials {
            if !next.credentials.contains_key(settings) {
                scheduled.credential.stop();
            }
        }
    }

    /// Ends all credentials, each after the exchange that it may be in.
    pub fn stop(&self) {
        for scheduled in self.credentials.values() {
            scheduled.credential.stop();
        }
    }

    /// What a name leads to.
    pub fn find(&self, name: &TokenName) -> Option<&Arc<Entry>> {
        self.tokens.get(name)
    }

    /// The names after `after`, in order.
    pub fn after<'a>(
        &'a self,
        after: Option<&TokenName>,
    ) -> impl Iterator<Item = (&'a TokenName, &'a Arc<Entry>)> + use<'a> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = after.map_or(Unbounded, |name| Excluded(name.clone()));
        self.tokens.range((start, Unbounded))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whether the actors keep their schedules: none is long past its time without being at work.
    pub fn is_on_schedule(&self, now: Instant) -> bool {
        self.credentials.values().all(|scheduled| {
            let snapshot = scheduled.credential.snapshot();
            snapshot.in_flight || now.since(snapshot.next_attempt) < OVERDUE
        })
    }
}

impl Scheduled {
    fn with_schedule(&self, schedule: Schedule, surroundings: &Surroundings) -> Self {
        let credential = Arc::clone(&self.credential);
        if self.schedule != schedule {
            let (credential, schedule) = (Arc::clone(&credential), schedule.clone());
            surroundings.tasks.spawn(async move { credential.reschedule(schedule).await });
        }
        Self { credential, schedule }
    }
}

/// The distinct settings, each with the schedule of all of its names: renewed as early as the most cautious of
/// those wants that say anything about it.
fn schedules(tokens: &BTreeMap<TokenName, TokenSettings>) -> Vec<(Arc<CredentialSettings>, Schedule)> {
    let mut shared: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    let mut by_settings: HashMap<&CredentialSettings, &str> = HashMap::new();
    for (name, token) in tokens {
        let first = by_settings.entry(&token.credential).or_insert(name.as_str());
        shared.entry(first).or_default().push((name, token));
    }
    let schedule = |sharing: Vec<(&TokenName, &TokenSettings)>| {
        let (_, token) = sharing.first()?;
        let names: Vec<&str> = sharing.iter().map(|(name, _)| name.as_str()).collect();
        let refresh_before = sharing.iter().filter_map(|(_, token)| token.refresh_before).max();
        Some((Arc::clone(&token.credential), Schedule { names: names.join(" ").into(), refresh_before }))
    };
    shared.into_values().filter_map(schedule).collect()
}

impl Origins {
    /// Nothing yet.
    pub fn new(surroundings: Surroundings) -> Self {
        Self { surroundings, issuers: Issuers::default(), clients: HashMap::new() }
    }

    /// Starts credentials, those of one issuer spread over a while if there are many.
    fn start(
        &mut self,
        fresh: Vec<(Arc<CredentialSettings>, Schedule)>,
    ) -> HashMap<Arc<CredentialSettings>, Scheduled> {
        let mut crowds: HashMap<String, usize> = HashMap::new();
        for (settings, _) in &fresh {
            *crowds.entry(origin(settings)).or_default() += 1;
        }
        let now = self.surroundings.clock.now();
        let mut started = HashMap::with_capacity(fresh.len());
        for (settings, schedule) in fresh {
            let crowd = crowds.get(&origin(&settings)).copied().unwrap_or_default();
            let first_attempt = now.after(start_delay(crowd, (self.surroundings.roll)()));
            let http = self.client(&settings);
            let provider = HttpProvider::new(Arc::clone(&settings), http, self.surroundings.clock.clone());
            let issuer = self.issuers.of(&settings);
            let credential =
                Credential::start(provider, issuer, schedule.clone(), first_attempt, &self.surroundings);
            started.insert(settings, Scheduled { credential: Arc::new(credential), schedule });
        }
        started
    }

    fn client(&mut self, settings: &CredentialSettings) -> Arc<HttpClient> {
        let way = (settings.ca_file.clone(), settings.proxy.clone());
        if let Some(known) = self.clients.get(&way).and_then(Weak::upgrade) {
            return known;
        }
        self.clients.retain(|_, client| client.strong_count() > 0);
        let client = Arc::new(HttpClient::new(way.0.clone(), way.1.clone()));
        self.clients.insert(way, Arc::downgrade(&client));
        client
    }
}

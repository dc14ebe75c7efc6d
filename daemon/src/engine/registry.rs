//! Maps token names to credentials. A registry is built from a whole configuration, and a reload replaces it as a
//! whole.
//!
//! Order of locks: the [`CredentialFactory`] before the [`Variants`](super::variants::Variants) of a token, in a reload
//! as in a call that starts a variant.

mod credential_factory;
mod entry;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{ErrorClass, TokenName};

pub use self::credential_factory::CredentialFactory;
use self::credential_factory::Fresh;
pub use self::entry::Entry;
use crate::access::Named;
use crate::clock::Instant;
use crate::config::{AdminSettings, Config, CredentialSettings, TokenSettings};
use crate::engine::credential::{Credential, Schedule, Token};
use crate::engine::schedule::RenewalMode;

/// How late an actor may be before the watchdog is not fed any more.
const OVERDUE: Duration = Duration::from_secs(60);

/// All tokens of a configuration.
#[derive(Debug)]
pub struct Registry {
    tokens: BTreeMap<TokenName, Arc<Entry>>,
    credentials: HashMap<Arc<CredentialSettings>, Arc<Credential>>,
    /// The operators, and whether root needs a rule.
    pub admin: AdminSettings,
    names_in_rules: Vec<Named>,
}

impl Registry {
    /// A registry of `config`. Credentials of `previous` with equal settings are carried over, and new ones are
    /// started. One that replaces another gets its token on loan if both request the same token. The caller then
    /// drops the rest with [`Registry::discard_all_but`].
    pub fn build(config: &Config, factory: &mut CredentialFactory, previous: Option<&Self>) -> Self {
        factory.limit_origins(config.tokens.values());
        let now = factory.actor_context.clock.now();
        let mut loans = loans(config, previous, now);
        let mut credentials = HashMap::with_capacity(config.tokens.len());
        let mut fresh = Vec::new();
        for (settings, schedule) in schedules(&config.tokens) {
            if let Some(known) = previous.and_then(|previous| previous.credentials.get(&settings)) {
                known.reschedule(schedule);
                credentials.insert(settings, Arc::clone(known));
            } else {
                let loan = loans.remove(&settings).flatten();
                fresh.push(Fresh { settings, schedule, loan });
            }
        }
        credentials.extend(factory.start(fresh));
        let entry = |(name, token): (&TokenName, &TokenSettings)| {
            let known = previous.and_then(|previous| previous.find(name));
            let entry = Entry::new(name, token, credentials.get(&token.credential)?, known.map(Arc::as_ref));
            if let Some(known) = known {
                entry.take_over_variants(known, factory, now);
            }
            Some((name.clone(), Arc::new(entry)))
        };
        let tokens: BTreeMap<_, _> = config.tokens.iter().filter_map(entry).collect();
        let names_in_rules = config.names_in_rules();
        Self { tokens, credentials, admin: config.admin.clone(), names_in_rules }
    }

    /// Discards the credentials that `next` does not have.
    pub fn discard_all_but(&self, next: &Self) {
        for (settings, credential) in &self.credentials {
            if !next.credentials.contains_key(settings) {
                credential.discard();
            }
        }
        for (name, entry) in &self.tokens {
            let heir = next.tokens.get(name).filter(|heir| Arc::ptr_eq(&heir.variants, &entry.variants));
            entry.variants.discard_unless(|settings| heir.is_some_and(|heir| heir.permits(settings)));
        }
    }

    /// Ends all credentials, each after the request that is under way.
    pub fn stop(&self) {
        self.all_credentials().for_each(|credential| credential.stop());
    }

    /// Tries credentials and variants again soon whose last failure has a class that `may_be_mended` accepts.
    pub fn retry_failed(&self, may_be_mended: impl Fn(ErrorClass) -> bool) {
        for credential in self.all_credentials() {
            let failed = credential.snapshot().last_error.as_ref().map(|failed| failed.class);
            if failed.is_some_and(&may_be_mended) {
                credential.retry();
            }
        }
    }

    fn all_credentials(&self) -> impl Iterator<Item = Arc<Credential>> {
        let variants = self.tokens.values().flat_map(|entry| entry.variants.credentials());
        self.credentials.values().cloned().chain(variants)
    }

    /// The entry of a name.
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

    /// The users, groups and executables that rules name, each once.
    pub fn names_in_rules(&self) -> &[Named] {
        &self.names_in_rules
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whether no actor is `OVERDUE`. Variants are not looked at.
    pub fn is_on_schedule(&self, now: Instant) -> bool {
        self.credentials.values().all(|credential| {
            let snapshot = credential.snapshot();
            snapshot.in_flight || snapshot.next_attempt.is_none_or(|at| now.since(at) < OVERDUE)
        })
    }
}

/// Maps the settings of each new credential to the token on loan from the one that it replaces. A token is lent only
/// if all names of the new credential had the old one, so that no name is served the token of another name.
fn loans(
    config: &Config,
    previous: Option<&Registry>,
    now: Instant,
) -> HashMap<Arc<CredentialSettings>, Option<Arc<Token>>> {
    let mut loans: HashMap<_, Option<Arc<Token>>> = HashMap::new();
    for (name, token) in &config.tokens {
        let former = previous.and_then(|previous| previous.find(name));
        let loan = former.and_then(|former| former.lend_to(&token.credential, now));
        let is_another = |known: &Option<Arc<Token>>| match (known, &loan) {
            (Some(known), Some(loan)) => !Arc::ptr_eq(known, loan),
            _ => true,
        };
        let known = loans.entry(Arc::clone(&token.credential)).or_insert_with(|| loan.clone());
        if is_another(known) {
            *known = None;
        }
    }
    loans
}

/// Returns the distinct settings, each with one schedule for all of its names: the longest configured
/// `refresh_before`, and the mode that renews most.
fn schedules(tokens: &BTreeMap<TokenName, TokenSettings>) -> Vec<(Arc<CredentialSettings>, Schedule)> {
    let mut schedules: Vec<(Arc<CredentialSettings>, Schedule)> = Vec::new();
    let mut known: HashMap<&CredentialSettings, usize> = HashMap::new();
    for (name, token) in tokens {
        let renewal_mode = RenewalMode::configured(token.idle_timeout);
        let index = known.get(&*token.credential).copied();
        if let Some((_, shared)) = index.and_then(|index| schedules.get_mut(index)) {
            shared.names = format!("{} {name}", shared.names).into();
            shared.refresh_before = shared.refresh_before.max(token.refresh_before);
            shared.renewal_mode = shared.renewal_mode.max(renewal_mode);
        } else {
            let (names, refresh_before) = (name.as_str().into(), token.refresh_before);
            known.insert(&token.credential, schedules.len());
            schedules.push((Arc::clone(&token.credential), Schedule { names, refresh_before, renewal_mode }));
        }
    }
    schedules
}

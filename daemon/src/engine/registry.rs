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

use tokend_protocol::{ErrorClass, State, TokenName};
use tokio::task::yield_now;

pub use self::credential_factory::CredentialFactory;
use self::credential_factory::origin;
pub use self::entry::Entry;
use crate::access::{Condition, Rule};
use crate::clock::Instant;
use crate::config::{AdminSettings, Config, CredentialSettings, TokenSettings};
use crate::engine::credential::{Credential, Schedule, Token};
use crate::engine::schedule::RenewalMode;

/// How late an actor may be before the watchdog is not fed any more.
const OVERDUE: Duration = Duration::from_secs(60);

/// Tokens that are looked at before callers are served: less than a millisecond.
const STRETCH: usize = 500;

/// All tokens of a configuration.
#[derive(Debug)]
pub struct Registry {
    tokens: BTreeMap<TokenName, Arc<Entry>>,
    credentials: HashMap<Arc<CredentialSettings>, Arc<Credential>>,
    /// The operators, and whether root needs a rule.
    pub admin: AdminSettings,
    /// The users, groups and executables that rules name, each once.
    pub names_in_rules: Vec<Condition>,
    /// Whether a rule names an executable.
    pub has_exe_rules: bool,
    /// Whether a rule is about a process and not only about its user and groups.
    pub has_rules_about_processes: bool,
}

impl Registry {
    /// A registry of `config`. Credentials of `previous` with equal settings are carried over, and new ones are
    /// started. One that replaces another gets its token on loan if both request the same token. The caller then
    /// drops the rest with [`Registry::discard_all_but`].
    pub fn build(config: Config, factory: &mut CredentialFactory, previous: Option<&Self>) -> Self {
        let now = factory.actor_context.clock.now();
        let mut sharing: HashMap<&CredentialSettings, Vec<(&TokenName, &TokenSettings)>> = HashMap::new();
        for (name, token) in &config.tokens {
            sharing.entry(&token.credential).or_default().push((name, token));
        }
        let _limited = factory.limit_origins(config.tokens.values());
        let known =
            |settings: &CredentialSettings| previous.and_then(|previous| previous.credentials.get(settings));
        let mut crowds: HashMap<String, usize> = HashMap::new();
        for settings in sharing.keys().filter(|settings| known(settings).is_none()) {
            *crowds.entry(origin(&settings.client.endpoint)).or_default() += 1;
        }
        let mut credentials = HashMap::with_capacity(sharing.len());
        for TokenSettings { credential: settings, .. } in config.tokens.values() {
            let Some(tokens) = sharing.remove(&**settings) else { continue };
            let schedule = schedule(&tokens);
            let credential = if let Some(known) = known(settings) {
                known.reschedule(schedule);
                Arc::clone(known)
            } else {
                let loan = previous.and_then(|previous| previous.loan(&tokens, now));
                let crowd = crowds.get(&origin(&settings.client.endpoint)).copied().unwrap_or_default();
                factory.start(Arc::clone(settings), schedule, None, loan, crowd)
            };
            credentials.insert(Arc::clone(settings), credential);
        }
        let names_in_rules = config.names_in_rules();
        let has_exe_rules = names_in_rules.iter().any(|name| matches!(name, Condition::Exe(_)));
        let entry = |(name, token): (TokenName, TokenSettings)| {
            let known = previous.and_then(|previous| previous.find(name.as_str()));
            let credential = Arc::clone(credentials.get(&token.credential)?);
            let entry = Entry::new(&name, token, credential, known.map(Arc::as_ref));
            if let Some(known) = known {
                entry.take_over_variants(known, factory, now);
            }
            Some((name, Arc::new(entry)))
        };
        let tokens: BTreeMap<_, Arc<Entry>> = config.tokens.into_iter().filter_map(entry).collect();
        let has_rules_about_processes = config.admin.allow.iter().any(Rule::is_about_process)
            || tokens.values().any(|entry| entry.has_rules_about_processes());
        let admin = config.admin;
        Self { tokens, credentials, admin, names_in_rules, has_exe_rules, has_rules_about_processes }
    }

    /// Returns the token on loan for a new credential of these names. It is lent only if all of the names had it, so
    /// that no name is served the token of another name.
    fn loan(&self, tokens: &[(&TokenName, &TokenSettings)], now: Instant) -> Option<Arc<Token>> {
        let mut loans =
            tokens.iter().map(|(name, token)| self.find(name.as_str())?.lend_to(&token.credential, now));
        let first = loans.next()??;
        loans.all(|other| other.is_some_and(|other| Arc::ptr_eq(&first, &other))).then_some(first)
    }

    /// Discards the credentials that `next` does not have.
    pub fn discard_all_but(&self, next: &Self) {
        for (settings, credential) in &self.credentials {
            if !next.credentials.contains_key(settings) {
                credential.discard();
            }
        }
        for (name, entry) in &self.tokens {
            entry.discard_variants_unless(next.tokens.get(name).map(Arc::as_ref));
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
        let variants = self.tokens.values().filter_map(|entry| entry.variants.as_ref());
        let variants = variants.flat_map(|variants| variants.credentials());
        self.credentials.values().cloned().chain(variants)
    }

    pub fn find(&self, name: &str) -> Option<&Arc<Entry>> {
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

    /// Whether no actor is `OVERDUE`. Variants are not looked at. Callers are served in between.
    pub async fn is_on_schedule(&self, now: Instant) -> bool {
        for (index, credential) in self.credentials.values().enumerate() {
            pause(index).await;
            let snapshot = credential.snapshot();
            if !snapshot.in_flight && snapshot.next_attempt.is_some_and(|at| now.since(at) >= OVERDUE) {
                return false;
            }
        }
        true
    }

    /// Counts the tokens in each state. Callers are served in between.
    pub async fn count_states(&self, now: Instant) -> BTreeMap<State, usize> {
        let mut counts = BTreeMap::new();
        for (index, entry) in self.tokens.values().enumerate() {
            pause(index).await;
            *counts.entry(entry.credential.snapshot().state(now)).or_default() += 1;
        }
        counts
    }
}

/// Lets other tasks run before each stretch of tokens.
async fn pause(index: usize) {
    if index.is_multiple_of(STRETCH) {
        yield_now().await;
    }
}

/// One schedule for all names of a credential: the longest configured `refresh_before`, and the mode that renews most.
fn schedule(tokens: &[(&TokenName, &TokenSettings)]) -> Schedule {
    let names = match tokens {
        [(name, _)] => TokenName::clone(name).into(),
        _ => tokens.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ").into(),
    };
    let mode = |(_, token): &(_, &TokenSettings)| {
        token.idle_timeout.map_or(RenewalMode::Always, RenewalMode::OnDemand)
    };
    Schedule {
        names,
        refresh_before: tokens.iter().filter_map(|(_, token)| token.refresh_before).max(),
        renewal_mode: tokens.iter().map(mode).max().unwrap_or_default(),
    }
}

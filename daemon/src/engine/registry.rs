//! Which token names exist, and what each leads to. A registry is built whole from a configuration and
//! swapped whole on reload; it is never changed.

mod credential_factory;
mod entry;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{ErrorClass, TokenName};

pub use self::credential_factory::CredentialFactory;
pub use self::entry::Entry;
use crate::access::Named;
use crate::clock::Instant;
use crate::config::{AdminSettings, Config, CredentialSettings, TokenSettings};
use crate::engine::credential::{ActorContext, Credential, Schedule};
use crate::engine::schedule::RenewalMode;

/// How late an actor may be before it is taken for dead.
const OVERDUE: Duration = Duration::from_secs(60);

/// All tokens of a configuration.
#[derive(Debug)]
pub struct Registry {
    tokens: BTreeMap<TokenName, Arc<Entry>>,
    credentials: HashMap<Arc<CredentialSettings>, Scheduled>,
    /// Who is an operator, and whether root needs a rule.
    pub admin: AdminSettings,
    names_in_rules: Vec<Named>,
}

/// A credential and the schedule that it was last given.
#[derive(Clone, Debug)]
struct Scheduled {
    credential: Arc<Credential>,
    schedule: Schedule,
}

impl Registry {
    /// A registry of `config`. Credentials of `previous` whose settings are the same go on with their
    /// tokens; new ones are started; the others are for [`Registry::discard_all_but`].
    pub fn build(config: &Config, origins: &mut CredentialFactory, previous: Option<&Self>) -> Self {
        origins.limit_issuers(config.tokens.values());
        let schedules = schedules(&config.tokens);
        let mut credentials = HashMap::with_capacity(schedules.len());
        let mut fresh = Vec::new();
        for (settings, schedule) in schedules {
            match previous.and_then(|previous| previous.credentials.get(&settings)) {
                Some(kept) => {
                    let kept = kept.with_schedule(schedule, &origins.actor_context);
                    credentials.insert(settings, kept);
                }
                None => fresh.push((settings, schedule)),
            }
        }
        credentials.extend(origins.start(fresh));
        let entry = |(name, token): (&TokenName, &TokenSettings)| {
            let known = previous.and_then(|previous| previous.tokens.get(name));
            let credential = &credentials.get(&token.credential)?.credential;
            let entry = Entry::new(name, token, credential, known.map(Arc::as_ref));
            Some((name.clone(), Arc::new(entry)))
        };
        let tokens: BTreeMap<_, _> = config.tokens.iter().filter_map(entry).collect();
        let names_in_rules = config.names_in_rules();
        Self { tokens, credentials, admin: config.admin.clone(), names_in_rules }
    }

    /// Ends the credentials that `next` has no use for, and keeps nothing of them.
    pub fn discard_all_but(&self, next: &Self) {
        for (settings, scheduled) in &self.credentials {
            if !next.credentials.contains_key(settings) {
                scheduled.credential.discard();
            }
        }
        for (name, entry) in &self.tokens {
            let heir = next.tokens.get(name).filter(|heir| Arc::ptr_eq(&heir.variants, &entry.variants));
            entry.variants.discard_unless(|settings| heir.is_some_and(|heir| heir.permits(settings)));
        }
    }

    /// Ends all credentials, each after the exchange that it may be in.
    pub fn stop(&self) {
        for scheduled in self.credentials.values() {
            scheduled.credential.stop();
        }
        self.tokens.values().for_each(|entry| entry.variants.stop());
    }

    /// Tries those again soon whose last attempt failed in a way that may have been mended.
    pub fn retry_failed(&self, may_be_mended: impl Fn(ErrorClass) -> bool) {
        for scheduled in self.credentials.values() {
            let failed = scheduled.credential.snapshot().last_error.as_ref().map(|failed| failed.class);
            if failed.is_some_and(&may_be_mended) {
                scheduled.credential.retry();
            }
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

    /// Whether the actors keep their schedules: none is long past its time without being at work.
    pub fn is_on_schedule(&self, now: Instant) -> bool {
        self.credentials.values().all(|scheduled| {
            let snapshot = scheduled.credential.snapshot();
            snapshot.in_flight || snapshot.next_attempt.is_none_or(|at| now.since(at) < OVERDUE)
        })
    }
}

impl Scheduled {
    fn with_schedule(&self, schedule: Schedule, actor_context: &ActorContext) -> Self {
        let credential = Arc::clone(&self.credential);
        if self.schedule != schedule {
            let (credential, schedule) = (Arc::clone(&credential), schedule.clone());
            actor_context.tasks.spawn(async move { credential.reschedule(schedule).await });
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
        // One that is always to be warm warms all that share it; otherwise the longest idle time counts.
        let renewal_mode = sharing
            .iter()
            .map(|(_, token)| RenewalMode::configured(token.idle_timeout))
            .max_by_key(|renewal_mode| match renewal_mode {
                RenewalMode::Always => Duration::MAX,
                RenewalMode::OnDemand(idle_timeout) => *idle_timeout,
                RenewalMode::UnusedRenewals(_) => Duration::ZERO,
            })?;
        let names = names.join(" ").into();
        Some((Arc::clone(&token.credential), Schedule { names, refresh_before, renewal_mode }))
    };
    shared.into_values().filter_map(schedule).collect()
}

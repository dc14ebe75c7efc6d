//! One token name of the registry.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokend_protocol::{TokenName, Variant};

use super::CredentialFactory;
use crate::access::Rule;
use crate::clock::Instant;
use crate::config::{CredentialSettings, Endpoint, Grant, TermKind, Terms, TokenSettings};
use crate::engine::credential::{Credential, Schedule, Token};
use crate::engine::schedule::RenewalMode;
use crate::engine::variants::{self, NoVariant, Variants};
use crate::quota::Allowance;
use crate::store::record::Key;

/// How many renewals without a use a variant gets.
const UNUSED_RENEWALS_MAX: u32 = 2;

/// A token name: its settings, its credential and its variants.
#[derive(Debug)]
pub struct Entry {
    pub settings: TokenSettings,
    /// Names with equal settings of the token request share one.
    pub credential: Arc<Credential>,
    /// The variants that callers asked for, where the configuration permits any.
    pub variants: Option<Arc<Variants>>,
    hand_outs: AtomicU64,
    refusals: AtomicU64,
}

impl Entry {
    /// The entry of `name`; `known` is that of the registry before.
    pub(super) fn new(
        name: &TokenName,
        settings: TokenSettings,
        credential: Arc<Credential>,
        known: Option<&Self>,
    ) -> Self {
        let same = known.filter(|entry| entry.settings.credential == settings.credential);
        let known_variants = same.and_then(|entry| entry.variants.clone());
        let permits_variants = settings.variants.terms != Terms::default();
        let variants =
            permits_variants.then(|| known_variants.unwrap_or_else(|| Arc::new(Variants::of(name))));
        // Nobody is given a token by the former entry any more.
        let hand_outs = known.map_or(0, Self::hand_outs).into();
        let refusals = known.map_or(0, Self::refusals).into();
        let entry = Self { settings, credential, variants, hand_outs, refusals };
        if let Some(variants) = &entry.variants {
            for variant in variants.credentials() {
                variant.reschedule(entry.variant_schedule(variants));
            }
        }
        entry
    }

    /// Whether a rule of the token or of its terms is about the process and not only about its user and groups.
    pub fn has_rules_about_processes(&self) -> bool {
        let TokenSettings { allow, variants, .. } = &self.settings;
        let of_terms = variants.rules.iter().flat_map(|ruled| &ruled.allow);
        allow.iter().chain(of_terms).any(Rule::is_about_process)
    }

    pub fn count_hand_out(&self) {
        self.hand_outs.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the token was handed out under this name.
    pub fn hand_outs(&self) -> u64 {
        self.hand_outs.load(Ordering::Relaxed)
    }

    pub fn count_refusal(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a caller was refused the token under this name.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// The credential of a variant. `is_current` returns whether the registry of this entry is in force.
    ///
    /// # Errors
    /// The configuration does not permit it, there is no room for it, or the registry has been replaced.
    pub fn variant(
        &self,
        variant: &Variant,
        user: &Arc<Allowance>,
        factory: &Mutex<CredentialFactory>,
        is_current: impl FnOnce() -> bool,
    ) -> Result<Arc<Credential>, NoVariant> {
        if variant.is_empty() {
            return Ok(Arc::clone(&self.credential));
        }
        let TokenSettings { credential: base, variants: permitted, .. } = &self.settings;
        let terms = variants::terms(&base.terms, permitted, variant).map_err(NoVariant::NotPermitted)?;
        if terms == base.terms {
            return Ok(Arc::clone(&self.credential));
        }
        let no_variants = || NoVariant::NotPermitted("the token has no variants".to_owned());
        let variants = self.variants.as_ref().ok_or_else(no_variants)?;
        // A reload locks the factory for long.
        if let Some(held) = variants.find(&terms) {
            return Ok(held);
        }
        let mut factory = factory.lock().unwrap_or_else(PoisonError::into_inner);
        // Checked under the lock, which a reload on the other thread has too.
        if !is_current() {
            return Err(NoVariant::Replaced);
        }
        let start = |terms: &Terms| self.start_variant(variants, terms, None, &mut factory);
        variants.find_or_start(terms, user, start)
    }

    /// The schedule of each variant.
    fn variant_schedule(&self, variants: &Variants) -> Schedule {
        Schedule {
            names: Arc::clone(&variants.name),
            refresh_before: self.settings.refresh_before,
            renewal_mode: RenewalMode::UnusedRenewals(UNUSED_RENEWALS_MAX),
        }
    }

    fn start_variant(
        &self,
        variants: &Variants,
        terms: &Terms,
        loan: Option<Arc<Token>>,
        factory: &mut CredentialFactory,
    ) -> Arc<Credential> {
        let base = &self.settings.credential;
        let settings = CredentialSettings { terms: terms.clone(), ..CredentialSettings::clone(base) };
        let variant_of = Some(Key::of_credential(base));
        factory.start(Arc::new(settings), self.variant_schedule(variants), variant_of, loan, 1)
    }

    /// Returns the valid token as a loan, if `settings` request the same token in another way.
    pub(super) fn lend_to(&self, settings: &CredentialSettings, now: Instant) -> Option<Arc<Token>> {
        let snapshot = self.credential.snapshot();
        let is_same = asks_for_the_same(&self.settings.credential, settings);
        snapshot.usable(now, Duration::ZERO).filter(|_| is_same)
    }

    /// Takes over the variants of the entry that this one replaces, if both request the same token in another way.
    pub(super) fn take_over_variants(&self, former: &Self, factory: &mut CredentialFactory, now: Instant) {
        let (Some(variants), Some(formers)) = (&self.variants, &former.variants) else { return };
        if !Arc::ptr_eq(variants, formers)
            && asks_for_the_same(&former.settings.credential, &self.settings.credential)
        {
            variants.take_over(formers, now, |terms, loan| {
                self.permits(terms).then(|| self.start_variant(variants, terms, Some(loan), factory))
            });
        }
    }

    /// Discards the variants that `heir`, the entry that replaces this one, does not have or permit.
    pub(super) fn discard_variants_unless(&self, heir: Option<&Self>) {
        let Some(variants) = &self.variants else { return };
        let is_heir = |heir: &&Self| heir.variants.as_ref().is_some_and(|heirs| Arc::ptr_eq(heirs, variants));
        let heir = heir.filter(is_heir);
        variants.discard_unless(|terms| heir.is_some_and(|heir| heir.permits(terms)));
    }

    /// Whether a caller may ask for a variant with these terms.
    fn permits(&self, terms: &Terms) -> bool {
        TermKind::ALL.into_iter().all(|kind| {
            let (asked, permitted) = (terms.of(kind), self.settings.variants.terms.of(kind).as_slice());
            asked == self.settings.credential.terms.of(kind)
                || asked.as_slice().iter().all(|term| permitted.contains(term))
        })
    }
}

/// Whether two settings request the same token, perhaps as another client, with other secrets, at another token
/// endpoint or over another connection. Another issuer, grant, user, term or parameter makes it another token.
fn asks_for_the_same(one: &CredentialSettings, other: &CredentialSettings) -> bool {
    let endpoint = match (&one.client.endpoint, &other.client.endpoint) {
        (Endpoint::Token(_), Endpoint::Token(_)) => true,
        (Endpoint::Issuer(one), Endpoint::Issuer(other)) => one == other,
        _ => false,
    };
    let grant = match (&one.grant, &other.grant) {
        (Grant::Password(one), Grant::Password(other)) => one.username == other.username,
        (one, other) => one == other,
    };
    endpoint && grant && one.terms == other.terms && one.params == other.params
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::clock::Clock;
    use crate::config::{self, Config};
    use crate::engine::credential::ActorContext;
    use crate::engine::registry::Registry;
    use crate::fingerprint::Fingerprinter;
    use crate::quota::{Allowances, Quota};
    use crate::store::Store;

    fn factory(clock: &Clock, roll: fn() -> f64) -> CredentialFactory {
        let actor_context = ActorContext {
            clock: clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::with_key(&[7; 32])),
            roll,
            tasks: TaskTracker::new(),
        };
        CredentialFactory::new(Store::forgetful(clock.clone()), None, actor_context)
    }

    /// So many tokens of a provider that allows one request in a second.
    fn many_tokens(count: u32) -> Config {
        let provider = "[provider.p]\ntoken_endpoint = \"http://127.0.0.1:9/\"\nclient_id = \"c\"\n\
                        client_secret = { command = [\"sleep\", \"600\"] }\nmax_requests_per_minute = 60\n";
        let token = |n: u32| format!("[token.t{n}]\nprovider = \"p\"\nscope = \"s{n}\"\n");
        let text = provider.to_owned() + &(0..count).map(token).collect::<String>();
        config::parse(Path::new("/tokend.toml"), &text).unwrap().config
    }

    #[tokio::test(start_paused = true)]
    async fn other_tasks_run_while_all_tokens_are_looked_at() {
        let clock = Clock::simulated();
        let registry = Registry::build(many_tokens(1600), &mut factory(&clock, || 1.0), None);
        let turns = Arc::new(AtomicU64::new(0));
        let other = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move {
                loop {
                    turns.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            }
        });
        assert!(registry.is_on_schedule(clock.now()).await);
        assert!(turns.swap(0, Ordering::Relaxed) >= 4);
        assert_eq!(registry.count_states(clock.now()).await.values().sum::<usize>(), 1600);
        assert!(turns.load(Ordering::Relaxed) >= 4);
        other.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn variants_are_renewed_with_the_configured_margin_also_after_a_reload() {
        let clock = Clock::simulated();
        let user = Allowances::new(Quota::default()).of(1, clock.now());
        let factory = Mutex::new(factory(&clock, || 0.0));
        let build = |margin: &str, previous: Option<&Registry>| {
            let text = format!(
                "[provider.p]\ntoken_endpoint = \"http://127.0.0.1:9/\"\nclient_id = \"c\"\n\
                 client_secret = {{ command = [\"sleep\", \"600\"] }}\n\
                 [token.t]\nprovider = \"p\"\nscope = \"a b\"\nvariants = {{ scope = \"a b\" }}\n\
                 refresh_before = \"{margin}\"\n"
            );
            let config = config::parse(Path::new("/tokend.toml"), &text).unwrap().config;
            Registry::build(config, &mut factory.lock().unwrap(), previous)
        };
        let scope = vec!["a".to_owned()];
        let variant = Variant { scope, ..Variant::default() };
        let margin = |registry: &Registry| {
            let entry = registry.find("t").unwrap();
            let credential = entry.variant(&variant, &user, &factory, || true).unwrap();
            credential.schedule().refresh_before
        };
        let before = build("0s", None);
        assert_eq!(margin(&before), Some(Duration::ZERO));
        let after = build("5m", Some(&before));
        assert_eq!(margin(&after), Some(Duration::from_secs(300)));
    }

    #[tokio::test(start_paused = true)]
    async fn first_requests_to_a_host_are_spread_as_its_limit_demands() {
        let clock = Clock::simulated();
        let mut factory = factory(&clock, || 1.0);
        let mut build = |count, previous| Registry::build(many_tokens(count), &mut factory, previous);
        let first_attempt = |registry: &Registry, name: &str| {
            let snapshot = registry.find(name).unwrap().credential.snapshot();
            snapshot.next_attempt.map(|at| at.since(clock.now()).as_secs())
        };
        let few = build(4, None);
        assert_eq!(first_attempt(&few, "t0"), Some(0));
        let many = build(108, Some(&few));
        assert_eq!(first_attempt(&many, "t100"), Some(100), "only the new ones count");
    }
}

//! One token name of the registry.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokend_protocol::{TokenName, Variant};

use super::CredentialFactory;
use super::credential_factory::variant_schedule;
use crate::access::Rule;
use crate::clock::Instant;
use crate::config::{
    CredentialSettings, Endpoint, Grant, HeaderSettings, TermKind, TokenSettings, VariantSettings,
};
use crate::engine::credential::{Credential, Schedule, Token};
use crate::engine::variants::{self, NoVariant, Variants};
use crate::quota::Allowance;

/// A token name: its settings, its credential and its variants.
#[derive(Debug)]
pub struct Entry {
    /// The provider's name, for people.
    pub provider: Arc<str>,
    names: Arc<str>,
    /// The credential of its token. Names with equal settings share one.
    pub credential: Arc<Credential>,
    /// The headers of an API call besides `Authorization`.
    pub headers: Vec<HeaderSettings>,
    /// The headers that the caller supplies.
    pub caller_headers: Vec<String>,
    /// The rules for callers other than root and the daemon's own user.
    pub allow: Vec<Rule>,
    /// The variants that callers may ask for.
    pub permitted: VariantSettings,
    /// The variants that callers asked for.
    pub variants: Arc<Variants>,
    settings: Arc<CredentialSettings>,
    refresh_before: Option<Duration>,
    hand_outs: Arc<AtomicU64>,
}

impl Entry {
    /// The entry of `name`; `known` is that of the registry before.
    pub(super) fn new(
        name: &TokenName,
        token: &TokenSettings,
        credential: &Arc<Credential>,
        known: Option<&Self>,
    ) -> Self {
        let same = known.filter(|entry| entry.settings == token.credential);
        let entry = Self {
            provider: Arc::clone(&token.provider),
            names: name.as_str().into(),
            settings: Arc::clone(&token.credential),
            refresh_before: token.refresh_before,
            permitted: token.variants.clone(),
            variants: same.map(|entry| Arc::clone(&entry.variants)).unwrap_or_default(),
            credential: Arc::clone(credential),
            headers: token.headers.clone(),
            caller_headers: token.caller_headers.clone(),
            allow: token.allow.clone(),
            hand_outs: known.map(|entry| Arc::clone(&entry.hand_outs)).unwrap_or_default(),
        };
        for variant in entry.variants.credentials() {
            variant.reschedule(entry.variant_schedule());
        }
        entry
    }

    fn variant_schedule(&self) -> Schedule {
        variant_schedule(&self.names, self.refresh_before)
    }

    /// Counts a hand-out.
    pub fn count_hand_out(&self) {
        self.hand_outs.fetch_add(1, Ordering::Relaxed);
    }

    /// The credential of a variant.
    ///
    /// # Errors
    /// The configuration does not permit it, or there is no room for it.
    pub fn variant(
        &self,
        variant: &Variant,
        user: &Arc<Allowance>,
        factory: &Mutex<CredentialFactory>,
    ) -> Result<Arc<Credential>, NoVariant> {
        if variant.is_empty() {
            return Ok(Arc::clone(&self.credential));
        }
        let settings =
            variants::settings(&self.settings, &self.permitted, variant).map_err(NoVariant::NotPermitted)?;
        if settings == *self.settings {
            return Ok(Arc::clone(&self.credential));
        }
        if let Some(known) = self.variants.find(&settings) {
            return Ok(known);
        }
        let mut factory = factory.lock().unwrap_or_else(PoisonError::into_inner);
        let start = |settings: &CredentialSettings| {
            factory.start_variant(settings, &self.settings, self.variant_schedule(), None)
        };
        self.variants.find_or_start(settings, user, start)
    }

    /// Returns the valid token as a loan, if `settings` request the same token in another way.
    pub(super) fn lend_to(&self, settings: &CredentialSettings, now: Instant) -> Option<Arc<Token>> {
        let snapshot = self.credential.snapshot();
        snapshot.usable(now, Duration::ZERO).filter(|_| asks_for_the_same(&self.settings, settings))
    }

    /// Takes over the variants of the entry that this one replaces, if both request the same token in another way.
    pub(super) fn take_over_variants(&self, former: &Self, factory: &mut CredentialFactory, now: Instant) {
        let is_same = Arc::ptr_eq(&self.variants, &former.variants);
        if is_same || !asks_for_the_same(&former.settings, &self.settings) {
            return;
        }
        self.variants.take_over(&former.variants, now, |variant, loan| {
            let terms = variant.terms.clone();
            let settings = CredentialSettings { terms, ..CredentialSettings::clone(&self.settings) };
            let schedule = self.variant_schedule();
            let start = || factory.start_variant(&settings, &self.settings, schedule, Some((loan, now)));
            self.permits(&settings).then(start).map(|credential| (settings.clone(), credential))
        });
    }

    /// Whether a caller may ask for a variant with these settings.
    pub(super) fn permits(&self, settings: &CredentialSettings) -> bool {
        TermKind::ALL.into_iter().all(|kind| {
            let (asked, permitted) = (settings.terms.of(kind), self.permitted.terms.of(kind));
            asked == self.settings.terms.of(kind)
                || asked.as_slice().iter().all(|term| permitted.as_slice().contains(term))
        })
    }

    /// The settings of the credential.
    pub fn settings(&self) -> &CredentialSettings {
        &self.settings
    }

    /// How often the token was handed out under this name.
    pub fn hand_outs(&self) -> u64 {
        self.hand_outs.load(Ordering::Relaxed)
    }
}

/// Whether two settings request the same token, perhaps as another client, with other secrets, at another token
/// endpoint or over another connection. Another issuer, grant, user, term or parameter makes it another token.
fn asks_for_the_same(one: &CredentialSettings, other: &CredentialSettings) -> bool {
    let endpoint = match (&one.endpoint, &other.endpoint) {
        (Endpoint::Token(_), Endpoint::Token(_)) => true,
        (Endpoint::Issuer(one), Endpoint::Issuer(other)) => one == other,
        _ => false,
    };
    let grant = match (&one.grant, &other.grant) {
        (Grant::ClientCredentials, Grant::ClientCredentials) => true,
        (Grant::Password { username: one, .. }, Grant::Password { username: other, .. }) => one == other,
        _ => false,
    };
    endpoint && grant && one.terms == other.terms && one.params == other.params
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::clock::Clock;
    use crate::config;
    use crate::engine::credential::ActorContext;
    use crate::engine::registry::Registry;
    use crate::fingerprint::Fingerprinter;
    use crate::quota::{Allowances, Quota};

    #[tokio::test(start_paused = true)]
    async fn variants_are_renewed_with_the_configured_margin_also_after_a_reload() {
        let clock = Clock::simulated();
        let user = Allowances::new(Quota::default()).of(1, clock.now());
        let actor_context = ActorContext {
            clock,
            fingerprinter: Arc::new(Fingerprinter::generate().unwrap()),
            roll: || 0.0,
            tasks: TaskTracker::new(),
        };
        let factory = Mutex::new(CredentialFactory::new(actor_context));
        let build = |margin: &str, previous: Option<&Registry>| {
            let text = format!(
                "[provider.p]\ntoken_endpoint = \"http://127.0.0.1:9/\"\nclient_id = \"c\"\n\
                 client_secret = {{ command = [\"sleep\", \"600\"] }}\n\
                 [token.t]\nprovider = \"p\"\nscope = \"a b\"\nvariants = {{ scope = \"a b\" }}\n\
                 refresh_before = \"{margin}\"\n"
            );
            let config = config::parse(Path::new("/tokend.toml"), &text).unwrap().config;
            Registry::build(&config, &mut factory.lock().unwrap(), previous)
        };
        let scope = vec!["a".to_owned()];
        let variant = Variant { scope, ..Variant::default() };
        let margin = |registry: &Registry| {
            let entry = registry.find(&"t".parse().unwrap()).unwrap();
            let credential = entry.variant(&variant, &user, &factory).unwrap();
            credential.schedule.borrow().refresh_before
        };
        let before = build("0s", None);
        assert_eq!(margin(&before), Some(Duration::ZERO));
        let after = build("5m", Some(&before));
        assert_eq!(margin(&after), Some(Duration::from_secs(300)));
    }
}

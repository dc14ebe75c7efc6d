//! What one token name leads to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokend_protocol::{TokenName, Variant};

use super::CredentialFactory;
use crate::access::Rule;
use crate::config::{CredentialSettings, HeaderSettings, TermKind, TokenSettings, VariantSettings};
use crate::engine::credential::Credential;
use crate::engine::variants::{self, NoVariant, Variants};
use crate::quota::Allowance;

/// What a token name leads to.
#[derive(Debug)]
pub struct Entry {
    /// The provider's name, for people.
    pub provider: Arc<str>,
    names: Arc<str>,
    /// Where its token comes from. Names with equal settings share one.
    pub credential: Arc<Credential>,
    /// The headers of an API call besides `Authorization`.
    pub headers: Vec<HeaderSettings>,
    /// The headers that the caller supplies.
    pub caller_headers: Vec<String>,
    /// Who may have it besides root and the daemon's own user.
    pub allow: Vec<Rule>,
    /// What callers may ask for besides.
    pub permitted: VariantSettings,
    /// The variants that callers asked for.
    pub variants: Arc<Variants>,
    settings: Arc<CredentialSettings>,
    hand_outs: Arc<AtomicU64>,
}

impl Entry {
    /// What `name` leads to; `known` is what it led to before.
    pub(super) fn new(
        name: &TokenName,
        token: &TokenSettings,
        credential: &Arc<Credential>,
        known: Option<&Self>,
    ) -> Self {
        let same = known.filter(|entry| entry.settings == token.credential);
        Self {
            provider: Arc::clone(&token.provider),
            names: name.as_str().into(),
            settings: Arc::clone(&token.credential),
            permitted: token.variants.clone(),
            variants: same.map(|entry| Arc::clone(&entry.variants)).unwrap_or_default(),
            credential: Arc::clone(credential),
            headers: token.headers.clone(),
            caller_headers: token.caller_headers.clone(),
            allow: token.allow.clone(),
            hand_outs: known.map(|entry| Arc::clone(&entry.hand_outs)).unwrap_or_default(),
        }
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
        origins: &Mutex<CredentialFactory>,
    ) -> Result<Arc<Credential>, NoVariant> {
        if variant.is_empty() {
            return Ok(Arc::clone(&self.credential));
        }
        let settings =
            variants::settings(&self.settings, &self.permitted, variant).map_err(NoVariant::NotPermitted)?;
        if settings == *self.settings {
            return Ok(Arc::clone(&self.credential));
        }
        let start = |settings: &CredentialSettings| {
            let mut origins = origins.lock().unwrap_or_else(PoisonError::into_inner);
            origins.start_variant(settings, &self.settings, &self.names)
        };
        self.variants.find_or_start(settings, user, start)
    }

    /// Whether a caller may ask for a form with these settings.
    pub(super) fn permits(&self, settings: &CredentialSettings) -> bool {
        TermKind::ALL.into_iter().all(|kind| {
            let (asked, permitted) = (settings.terms(kind), self.permitted.terms(kind));
            asked == self.settings.terms(kind)
                || asked.as_slice().iter().all(|term| permitted.as_slice().contains(term))
        })
    }

    /// What is asked for where a caller asks for nothing else.
    pub fn settings(&self) -> &CredentialSettings {
        &self.settings
    }

    /// How often the token was handed out under this name.
    pub fn hand_outs(&self) -> u64 {
        self.hand_outs.load(Ordering::Relaxed)
    }
}

//! Variants of a token that callers asked for: fewer scopes than configured, one of several resources or audiences.
//! Each variant is a credential of its own, shared by all who ask for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokend_protocol::Variant;

use crate::clock::Instant;
use crate::config::{CredentialSettings, TermSet, Terms, VariantSettings};
use crate::engine::credential::{Credential, Snapshot, Token};
use crate::quota::{Allowance, Held, QuotaExceeded, Resource};

/// The most variants of one token. For another one, the least recently used idle one is evicted.
const HELD_MAX: usize = 32;

/// The reason for which a caller gets no credential of a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoVariant {
    /// The configuration does not permit it: a message for the caller.
    NotPermitted(String),
    /// The user has too many.
    TooMany(QuotaExceeded),
    /// There are `HELD_MAX` variants, and all are in use.
    AllInUse,
}

/// The settings of a variant.
///
/// # Errors
/// The configuration does not let callers ask for a term: a message for the caller.
pub fn settings(
    base: &CredentialSettings,
    permitted: &VariantSettings,
    variant: &Variant,
) -> Result<CredentialSettings, String> {
    let (of, may) = (&base.terms, &permitted.terms);
    Ok(CredentialSettings {
        terms: Terms {
            scope: chosen("scope", &of.scope, &may.scope, &variant.scope)?,
            resource: chosen("resource", &of.resource, &may.resource, &variant.resource)?,
            audience: chosen("audience", &of.audience, &may.audience, &variant.audience)?,
        },
        ..base.clone()
    })
}

/// Returns the requested terms without repetitions, or the configured ones if none were requested.
fn chosen(what: &str, base: &TermSet, permitted: &TermSet, asked: &[String]) -> Result<TermSet, String> {
    if asked.is_empty() {
        return Ok(base.clone());
    }
    for term in asked {
        if !permitted.as_slice().contains(term) {
            let term: String = term.chars().filter(|c| !c.is_control()).take(64).collect();
            return Err(format!("the {what} {term} is not among those that may be asked for"));
        }
    }
    Ok(in_order(permitted, asked).into_iter().collect())
}

/// The terms that were asked for in the configured order, so that the same set is always the same request.
fn in_order(permitted: &TermSet, asked: &[String]) -> Vec<String> {
    permitted.as_slice().iter().filter(|term| asked.contains(term)).cloned().collect()
}

/// Normalizes a variant: the configured order, without repetitions.
pub fn as_configured(permitted: &VariantSettings, asked: &Variant) -> Variant {
    Variant {
        scope: in_order(&permitted.terms.scope, &asked.scope),
        resource: in_order(&permitted.terms.resource, &asked.resource),
        audience: in_order(&permitted.terms.audience, &asked.audience),
    }
}

/// The variants of one token that are held.
#[derive(Debug, Default)]
pub struct Variants {
    /// Never locked across an await.
    held: Mutex<HashMap<CredentialSettings, HeldVariant>>,
}

/// A variant that is held.
#[derive(Debug)]
struct HeldVariant {
    credential: Arc<Credential>,
    /// Counts towards the quota of the user who first asked for it.
    quota: Held,
}

impl Variants {
    /// The credential with these settings, if it is held.
    pub fn find(&self, settings: &CredentialSettings) -> Option<Arc<Credential>> {
        self.lock().get(settings).map(|variant| Arc::clone(&variant.credential))
    }

    /// The credential with these settings, started by `start` if it is not held. Unused variants that have expired
    /// are dropped. `start` runs under the lock of the variants: see [`super::registry`].
    ///
    /// # Errors
    /// The user has too many variants, or there is no room and callers wait for every one.
    pub fn find_or_start(
        &self,
        settings: CredentialSettings,
        user: &Arc<Allowance>,
        start: impl FnOnce(&CredentialSettings) -> Credential,
    ) -> Result<Arc<Credential>, NoVariant> {
        let mut held = self.lock();
        if let Some(variant) = held.get(&settings) {
            return Ok(Arc::clone(&variant.credential));
        }
        retain(&mut held, |_, variant| !variant.credential.is_dormant());
        let quota = user.take(Resource::Variants, 1).map_err(NoVariant::TooMany)?;
        if held.len() >= HELD_MAX {
            let idle = held.values().filter(|variant| !variant.is_in_use());
            // The user's own first, so that a user does not evict the variants of others.
            let evicted = idle.min_by_key(|idle| (!idle.quota.is_of(user), idle.credential.last_used()));
            let evicted = Arc::as_ptr(&evicted.ok_or(NoVariant::AllInUse)?.credential);
            retain(&mut held, |_, variant| Arc::as_ptr(&variant.credential) != evicted);
        }
        let credential = Arc::new(start(&settings));
        // Otherwise it would be the least recently used one until its first use.
        credential.note_use();
        held.insert(settings, HeldVariant { credential: Arc::clone(&credential), quota });
        Ok(credential)
    }

    /// The variants that are held and the state of each, sorted.
    pub fn snapshots(&self) -> Vec<(Variant, Arc<Snapshot>)> {
        let owned = |terms: &TermSet| terms.as_slice().to_vec();
        let of = |settings: &CredentialSettings| Variant {
            scope: owned(&settings.terms.scope),
            resource: owned(&settings.terms.resource),
            audience: owned(&settings.terms.audience),
        };
        let held = self.lock();
        let mut snapshots: Vec<_> =
            held.iter().map(|(settings, variant)| (of(settings), variant.credential.snapshot())).collect();
        drop(held);
        snapshots.sort_by(|(a, _), (b, _)| {
            (&a.scope, &a.resource, &a.audience).cmp(&(&b.scope, &b.resource, &b.audience))
        });
        snapshots
    }

    /// The credentials that are held.
    pub fn credentials(&self) -> Vec<Arc<Credential>> {
        self.lock().values().map(|variant| Arc::clone(&variant.credential)).collect()
    }

    /// Discards the variants that the configuration does not permit any more.
    pub fn discard_unless(&self, is_of_use: impl Fn(&CredentialSettings) -> bool) {
        retain(&mut self.lock(), |settings, _| is_of_use(settings));
    }

    /// Takes over the variants of a token whose settings a reload changed, if they hold a valid token. `start` starts
    /// the new credential, with that token on loan.
    pub(super) fn take_over(
        &self,
        former: &Self,
        now: Instant,
        mut start: impl FnMut(&CredentialSettings, Arc<Token>) -> Option<(CredentialSettings, Credential)>,
    ) {
        for (settings, HeldVariant { credential, quota }) in former.lock().drain() {
            let loan = credential.snapshot().usable(now, Duration::ZERO);
            if let Some((settings, heir)) = loan.and_then(|loan| start(&settings, loan)) {
                self.lock().insert(settings, HeldVariant { credential: Arc::new(heir), quota });
            }
            credential.discard();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CredentialSettings, HeldVariant>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps some variants and discards the others.
fn retain(
    held: &mut HashMap<CredentialSettings, HeldVariant>,
    keep: impl Fn(&CredentialSettings, &HeldVariant) -> bool,
) {
    held.retain(|settings, variant| {
        let is_kept = keep(settings, variant);
        if !is_kept {
            variant.credential.discard();
        }
        is_kept
    });
}

impl HeldVariant {
    /// Whether a connection holds it, or a request is under way.
    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.credential) > 1 || self.credential.snapshot().in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientAuthentication;
    use crate::oauth::request::tests::settings as base;

    fn terms(words: &[&str]) -> TermSet {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn ask(scope: &[&str], resource: &[&str]) -> Result<CredentialSettings, String> {
        let base = CredentialSettings {
            terms: Terms { scope: terms(&["a", "b", "c"]), ..Terms::default() },
            ..base(ClientAuthentication::None)
        };
        let permitted = VariantSettings {
            terms: Terms { scope: terms(&["a", "b"]), resource: terms(&["r"]), audience: TermSet::default() },
            rules: Vec::new(),
        };
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let variant = Variant { scope: owned(scope), resource: owned(resource), audience: Vec::new() };
        settings(&base, &permitted, &variant)
    }

    #[test]
    fn permitted_terms_replace_the_configured_ones_and_the_rest_stays() {
        let narrower = ask(&["b"], &[]).unwrap();
        assert_eq!((narrower.terms.scope, narrower.terms.resource), (terms(&["b"]), TermSet::default()));
        let aimed = ask(&[], &["r"]).unwrap();
        assert_eq!((aimed.terms.scope, aimed.terms.resource), (terms(&["a", "b", "c"]), terms(&["r"])));
    }

    #[test]
    fn the_order_and_repetition_of_terms_make_no_other_variant() {
        assert_eq!(ask(&["b", "a", "b"], &[]).unwrap().terms.scope.as_slice(), ["a", "b"]);
        assert_eq!(ask(&["b", "a"], &[]), ask(&["a", "b"], &[]));
    }

    #[test]
    fn a_term_that_is_not_permitted_is_named() {
        assert!(ask(&["a", "c"], &[]).is_err_and(|message| message.contains("the scope c is not among")));
        assert!(ask(&[], &["other\n"]).is_err_and(|message| message.contains("the resource other is not")));
    }
}

//! Variants of a token that callers asked for: fewer scopes than configured, one of several resources or audiences.
//! Each variant is a credential of its own, shared by all who ask for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokend_protocol::{TokenName, Variant};

use crate::clock::Instant;
use crate::config::{TermSet, Terms, VariantSettings};
use crate::engine::credential::{Credential, Snapshot, Token};
use crate::quota::{Allowance, Held, QuotaExceeded, Resource};

/// The most variants of one token, and of one token for one user. For another one, the least recently used idle one is evicted.
/// A user that watches as many as it can leaves room for others.
const HELD_MAX: usize = 64;
const HELD_MAX_PER_USER: usize = 32;

/// Why a caller gets no credential of a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoVariant {
    /// The configuration does not permit it: a message for the caller.
    NotPermitted(String),
    /// The user has too many.
    TooMany(QuotaExceeded),
    /// There are as many variants as there can be, and all are in use.
    AllInUse,
    /// A reload has replaced the registry meanwhile. A variant that was started now would belong to no registry.
    Replaced,
}

/// The terms of a variant.
///
/// # Errors
/// The configuration does not let callers ask for a term: a message for the caller.
pub fn terms(base: &Terms, permitted: &VariantSettings, variant: &Variant) -> Result<Terms, String> {
    let may = &permitted.terms;
    Ok(Terms {
        scope: chosen("scope", &base.scope, &may.scope, &variant.scope)?,
        resource: chosen("resource", &base.resource, &may.resource, &variant.resource)?,
        audience: chosen("audience", &base.audience, &may.audience, &variant.audience)?,
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
#[derive(Debug)]
pub struct Variants {
    /// The name of the token, for logs.
    pub(super) name: Arc<str>,
    /// Never locked across an await.
    held: Mutex<HashMap<Terms, HeldVariant>>,
}

#[derive(Debug)]
struct HeldVariant {
    credential: Arc<Credential>,
    /// Counts towards the quota of the user who first asked for it.
    quota: Held,
}

impl Variants {
    pub fn of(name: &TokenName) -> Self {
        Self { name: name.as_str().into(), held: Mutex::default() }
    }

    /// The variant with these terms, if it is held.
    pub fn find(&self, terms: &Terms) -> Option<Arc<Credential>> {
        self.lock().get(terms).map(|variant| Arc::clone(&variant.credential))
    }

    /// The credential with these terms, started by `start` if it is not held. Unused variants that have expired
    /// are dropped. `start` runs under the lock of the variants: see [`super::registry`].
    ///
    /// # Errors
    /// The user has too many variants, or there is no room and callers wait for every one.
    pub fn find_or_start(
        &self,
        terms: Terms,
        user: &Arc<Allowance>,
        start: impl FnOnce(&Terms) -> Arc<Credential>,
    ) -> Result<Arc<Credential>, NoVariant> {
        let mut held = self.lock();
        if let Some(variant) = held.get(&terms) {
            return Ok(Arc::clone(&variant.credential));
        }
        // A watch may hold a dormant one.
        retain(&mut held, |_, variant| {
            Arc::strong_count(&variant.credential) > 1 || !variant.credential.is_dormant()
        });
        let quota = user.take(Resource::Variants, 1).map_err(NoVariant::TooMany)?;
        let is_own = |variant: &HeldVariant| Arc::ptr_eq(&variant.quota.allowance, user);
        let has_most = held.values().filter(|variant| is_own(variant)).count() >= HELD_MAX_PER_USER;
        if has_most || held.len() >= HELD_MAX {
            // No connection holds it, and no request is under way.
            let is_idle = |(_, variant): &(&Terms, &HeldVariant)| {
                Arc::strong_count(&variant.credential) == 1 && !variant.credential.snapshot().in_flight
            };
            let idle = held.iter().filter(is_idle).filter(|(_, idle)| is_own(idle) || !has_most);
            // The user's own first, so that a user does not evict the variants of others.
            let evicted = idle.min_by_key(|(_, idle)| (!is_own(idle), idle.credential.last_used()));
            let evicted = evicted.ok_or(NoVariant::AllInUse)?.0.clone();
            retain(&mut held, |terms, _| *terms != evicted);
        }
        let credential = start(&terms);
        // Otherwise it would be the least recently used one until its first use.
        credential.note_use();
        held.insert(terms, HeldVariant { credential: Arc::clone(&credential), quota });
        Ok(credential)
    }

    /// The variants that are held and the state of each, sorted.
    pub fn snapshots(&self) -> Vec<(Variant, Arc<Snapshot>)> {
        let of = |terms: &Terms| Variant {
            scope: terms.scope.as_slice().to_vec(),
            resource: terms.resource.as_slice().to_vec(),
            audience: terms.audience.as_slice().to_vec(),
        };
        let held = self.lock();
        let mut snapshots: Vec<_> =
            held.iter().map(|(terms, variant)| (of(terms), variant.credential.snapshot())).collect();
        drop(held);
        snapshots.sort_by(|(a, _), (b, _)| {
            (&a.scope, &a.resource, &a.audience).cmp(&(&b.scope, &b.resource, &b.audience))
        });
        snapshots
    }

    pub fn credentials(&self) -> Vec<Arc<Credential>> {
        self.lock().values().map(|variant| Arc::clone(&variant.credential)).collect()
    }

    /// Discards the variants that the configuration does not permit any more.
    pub fn discard_unless(&self, is_permitted: impl Fn(&Terms) -> bool) {
        retain(&mut self.lock(), |terms, _| is_permitted(terms));
    }

    /// Takes over the variants of a token whose settings a reload changed, if they hold a valid token. `start` starts
    /// the new credential, with that token on loan.
    pub(super) fn take_over(
        &self,
        former: &Self,
        now: Instant,
        mut start: impl FnMut(&Terms, Arc<Token>) -> Option<Arc<Credential>>,
    ) {
        for (terms, HeldVariant { credential, quota }) in former.lock().drain() {
            let loan = credential.snapshot().usable(now, Duration::ZERO);
            if let Some(heir) = loan.and_then(|loan| start(&terms, loan)) {
                self.lock().insert(terms, HeldVariant { credential: heir, quota });
            }
            credential.discard();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Terms, HeldVariant>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps some variants and discards the others.
fn retain(held: &mut HashMap<Terms, HeldVariant>, keep: impl Fn(&Terms, &HeldVariant) -> bool) {
    held.retain(|terms, variant| {
        let is_kept = keep(terms, variant);
        if !is_kept {
            variant.credential.discard();
        }
        is_kept
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(words: &[&str]) -> TermSet {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn ask(scope: &[&str], resource: &[&str]) -> Result<Terms, String> {
        let base = Terms { scope: set(&["a", "b", "c"]), ..Terms::default() };
        let permitted = VariantSettings {
            terms: Terms { scope: set(&["a", "b"]), resource: set(&["r"]), audience: TermSet::default() },
            rules: Vec::new(),
        };
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let variant = Variant { scope: owned(scope), resource: owned(resource), audience: Vec::new() };
        terms(&base, &permitted, &variant)
    }

    #[test]
    fn permitted_terms_replace_the_configured_ones_and_the_rest_stays() {
        let narrower = ask(&["b"], &[]).unwrap();
        assert_eq!((narrower.scope, narrower.resource), (set(&["b"]), TermSet::default()));
        let aimed = ask(&[], &["r"]).unwrap();
        assert_eq!((aimed.scope, aimed.resource), (set(&["a", "b", "c"]), set(&["r"])));
    }

    #[test]
    fn the_order_and_repetition_of_terms_make_no_other_variant() {
        assert_eq!(ask(&["b", "a", "b"], &[]).unwrap().scope.as_slice(), ["a", "b"]);
        assert_eq!(ask(&["b", "a"], &[]), ask(&["a", "b"], &[]));
    }

    #[test]
    fn a_term_that_is_not_permitted_is_named() {
        assert!(ask(&["a", "c"], &[]).is_err_and(|message| message.contains("the scope c is not among")));
        assert!(ask(&[], &["other\n"]).is_err_and(|message| message.contains("the resource other is not")));
    }
}

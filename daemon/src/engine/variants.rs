//! Tokens that callers asked for in a narrower form than the configuration names: fewer scopes, one of
//! several resources or audiences. Each form is a credential of its own, shared by all who ask for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokend_protocol::Variant;

use crate::config::{CredentialSettings, TermSet, VariantSettings};
use crate::engine::credential::{Credential, Snapshot};
use crate::quota::{Allowance, Held};
use crate::quota::{QuotaExceeded, Resource};

/// Variants of one token that are held. Beyond it one goes that nobody waits for.
const HELD_MAX: usize = 32;

/// Why a token is not to be had in the form that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoVariant {
    /// The configuration does not permit it; in words for the caller.
    NotPermitted(String),
    /// The user has too many.
    TooMany(QuotaExceeded),
    /// All that there is room for are being waited for.
    AllInUse,
}

/// The settings of a variant, or why there is none such.
///
/// # Errors
/// A term that the configuration does not let callers ask for, in words for the caller.
pub fn settings(
    base: &CredentialSettings,
    permitted: &VariantSettings,
    variant: &Variant,
) -> Result<CredentialSettings, String> {
    Ok(CredentialSettings {
        scope: chosen("scope", &base.scope, &permitted.scope, &variant.scope)?,
        resource: chosen("resource", &base.resource, &permitted.resource, &variant.resource)?,
        audience: chosen("audience", &base.audience, &permitted.audience, &variant.audience)?,
        ..base.clone()
    })
}

/// What was asked for, each term once, if all of it is permitted; the configured terms where nothing was asked.
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
    // In the configured order, so that the same set is always the same request.
    Ok(permitted.as_slice().iter().filter(|term| asked.contains(term)).cloned().collect())
}

/// What was asked for as the configuration writes it, each term once: however a caller words a form, it is this one.
pub fn as_configured(permitted: &VariantSettings, asked: &Variant) -> Variant {
    let terms = |permitted: &TermSet, asked: &[String]| {
        permitted.as_slice().iter().filter(|term| asked.contains(term)).cloned().collect()
    };
    Variant {
        scope: terms(&permitted.scope, &asked.scope),
        resource: terms(&permitted.resource, &asked.resource),
        audience: terms(&permitted.audience, &asked.audience),
    }
}

/// The variants of one token that are held.
#[derive(Debug, Default)]
pub struct Variants {
    /// Held for a look-up or an insertion, never across an await.
    held: Mutex<HashMap<CredentialSettings, Form>>,
}

/// A variant that is held.
#[derive(Debug)]
struct Form {
    credential: Arc<Credential>,
    /// Of the quota of the user who first asked for it.
    held: Held,
}

impl Variants {
    /// The credential with these settings, started by `start` if it is not held. Those that rest because
    /// nobody uses them are dropped on the way.
    ///
    /// # Errors
    /// The user has too many of them, or all that there is room for are in use.
    pub fn find_or_start(
        &self,
        settings: CredentialSettings,
        user: &Arc<Allowance>,
        start: impl FnOnce(&CredentialSettings) -> Credential,
    ) -> Result<Arc<Credential>, NoVariant> {
        let mut held = self.lock();
        if let Some(form) = held.get(&settings) {
            return Ok(Arc::clone(&form.credential));
        }
        held.retain(|_, form| {
            let is_dormant = form.credential.is_dormant();
            if is_dormant {
                form.credential.discard();
            }
            !is_dormant
        });
        let part = user.take(Resource::Variants, 1).map_err(NoVariant::TooMany)?;
        if held.len() >= HELD_MAX {
            let idle = held.iter().filter(|(_, form)| !form.is_in_use());
            // The asker's own first: nobody is to crowd out the forms of others.
            let least = idle.min_by_key(|(_, form)| (!form.held.is_of(user), form.credential.last_used()));
            let least = least.map(|(settings, _)| settings.clone()).ok_or(NoVariant::AllInUse)?;
            if let Some(form) = held.remove(&least) {
                form.credential.discard();
            }
        }
        let credential = Arc::new(start(&settings));
        // Its first caller is on the way, so it is not the one that was not used for longest.
        credential.note_use();
        held.insert(settings, Form { credential: Arc::clone(&credential), held: part });
        Ok(credential)
    }

    /// What callers asked for and the condition of each, sorted.
    pub fn snapshots(&self) -> Vec<(Variant, Arc<Snapshot>)> {
        let owned = |terms: &TermSet| terms.as_slice().to_vec();
        let of = |settings: &CredentialSettings| Variant {
            scope: owned(&settings.scope),
            resource: owned(&settings.resource),
            audience: owned(&settings.audience),
        };
        let held = self.lock();
        let mut snapshots: Vec<_> =
            held.iter().map(|(settings, form)| (of(settings), form.credential.snapshot())).collect();
        drop(held);
        snapshots.sort_by(|(a, _), (b, _)| {
            (&a.scope, &a.resource, &a.audience).cmp(&(&b.scope, &b.resource, &b.audience))
        });
        snapshots
    }

    /// Ends all of them, each after the exchange that it may be in.
    pub fn stop(&self) {
        self.lock().values().for_each(|form| form.credential.stop());
    }

    /// Ends those for good that the configuration has no use for any more.
    pub fn discard_unless(&self, is_of_use: impl Fn(&CredentialSettings) -> bool) {
        self.lock().retain(|settings, form| {
            let is_of_use = is_of_use(settings);
            if !is_of_use {
                form.credential.discard();
            }
            is_of_use
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CredentialSettings, Form>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Form {
    /// Whether somebody has it in hand, or it is in an exchange that somebody began.
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
        let base = CredentialSettings { scope: terms(&["a", "b", "c"]), ..base(ClientAuthentication::None) };
        let permitted = VariantSettings {
            scope: terms(&["a", "b"]),
            resource: terms(&["r"]),
            audience: TermSet::default(),
            rules: Vec::new(),
        };
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let variant = Variant { scope: owned(scope), resource: owned(resource), audience: Vec::new() };
        settings(&base, &permitted, &variant)
    }

    #[test]
    fn what_is_permitted_replaces_what_is_configured_and_the_rest_stays() {
        let narrower = ask(&["b"], &[]).unwrap();
        assert_eq!((narrower.scope, narrower.resource), (terms(&["b"]), TermSet::default()));
        let aimed = ask(&[], &["r"]).unwrap();
        assert_eq!((aimed.scope, aimed.resource), (terms(&["a", "b", "c"]), terms(&["r"])));
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

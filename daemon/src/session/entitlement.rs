//! What a peer may have. Every request begins here.
//!
//! A peer that may not have a name must not learn whether it exists: the answer, and as far as it can be helped
//! the time it takes, are the same in either case.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use tokend_protocol::{ErrorCode, ErrorReply, TokenName};

use super::{Session, refusal};
use crate::audit::{self, Refusal, Verb};
use crate::directory::Patience;
use crate::policy::access::{Decision, Grounds, Rule, decide};
use crate::registry::{Entry, Registry};

/// What a refused caller is told, whether the token exists or not.
const NOT_ALLOWED: &str = "not allowed, or no such token";

/// Tokens whose grounds a connection remembers. A peer that asks for more of them is decided about anew.
const GROUNDS_MAX: usize = 256;

/// What a peer may have, and why.
pub(super) struct Entitled {
    pub(super) entry: Arc<Entry>,
    pub(super) grounds: Grounds,
}

/// What a connection was found to be allowed under a registry. What it was refused is never remembered: it may
/// be allowed the next time, as when its user has become known.
#[derive(Debug)]
pub(super) struct Allowed {
    registry: Arc<Registry>,
    tokens: HashMap<TokenName, Grounds>,
    operator: Option<Grounds>,
}

impl Allowed {
    pub(super) fn nothing(registry: Arc<Registry>) -> Self {
        Self { registry, tokens: HashMap::new(), operator: None }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}

impl Session {
    /// What a name leads to, if the peer may have it. A name that it may not have and a name that does not
    /// exist look the same to anyone but an operator.
    pub(super) async fn entitled(
        &self,
        name: &TokenName,
        verb: Verb,
        patience: Patience,
    ) -> Result<Entitled, ErrorReply> {
        let registry = self.registry();
        let found = registry.find(name);
        let decided = match found {
            Some(entry) => self.grounds(&registry, name, entry, patience).await,
            // What is not there takes as long as what is there next to it.
            None => self.decide(rules_near(&registry, name), patience).await,
        };
        let reason = match (found, decided) {
            (Some(entry), Ok(grounds)) => return Ok(Entitled { entry: Arc::clone(entry), grounds }),
            (Some(_), Err(reason)) => reason,
            (None, _) => Refusal::NoSuchToken,
        };
        audit::refused(self.peer.facts(), verb, name, reason);
        // Found out in either case, so that the time it takes tells nothing.
        let is_operator = self.is_operator(patience).await;
        Err(if is_operator && reason == Refusal::NoSuchToken {
            refusal(ErrorCode::UnknownToken, "no such token")
        } else {
            refusal(ErrorCode::NotAllowed, NOT_ALLOWED)
        })
    }

    /// What a name leads to, if the peer is an operator. Anybody else who may have the token is told what is
    /// missing, and the rest what they would be told of any name.
    pub(super) async fn operated(&self, name: &TokenName, verb: Verb) -> Result<Entitled, ErrorReply> {
        let registry = self.registry();
        let patience = Patience::of_a_request();
        let (Ok(grounds), Some(entry)) = (self.operator(patience).await, registry.find(name)) else {
            self.entitled(name, verb, patience).await?;
            audit::refused(self.peer.facts(), verb, name, Refusal::NotAnOperator);
            return Err(refusal(ErrorCode::NotAllowed, "only an operator may do this"));
        };
        Ok(Entitled { entry: Arc::clone(entry), grounds })
    }

    /// Whether the peer is an operator.
    pub(super) async fn is_operator(&self, patience: Patience) -> bool {
        self.operator(patience).await.is_ok()
    }

    /// Whether these rules let the peer, and why. Root and the daemon's own user need no rule, so they do not
    /// wait for the name service.
    pub(super) async fn decide(&self, rules: &[Rule], patience: Patience) -> Result<Grounds, Refusal> {
        let own_uid = self.shared.own_uid;
        if let Decision::Allow(grounds) = decide(self.peer.facts(), own_uid, &[]) {
            return Ok(grounds);
        }
        let resolved = self.shared.directory.resolve(rules, patience).await;
        match decide(self.peer.facts(), own_uid, &resolved.rules) {
            Decision::Allow(grounds) => Ok(grounds),
            Decision::Deny if resolved.is_complete => Err(Refusal::NoRule),
            Decision::Deny => Err(Refusal::NamesUnanswered),
        }
    }

    pub(super) fn registry(&self) -> Arc<Registry> {
        self.shared.registry.borrow().clone()
    }

    async fn grounds(
        &self,
        registry: &Arc<Registry>,
        name: &TokenName,
        entry: &Entry,
        patience: Patience,
    ) -> Result<Grounds, Refusal> {
        if let Some(grounds) = self.with_allowed(registry, |allowed| allowed.tokens.get(name).cloned()) {
            return Ok(grounds);
        }
        let grounds = self.decide(&entry.allow, patience).await?;
        self.with_allowed(registry, |allowed| {
            if allowed.tokens.len() >= GROUNDS_MAX {
                allowed.tokens.clear();
            }
            allowed.tokens.insert(name.clone(), grounds.clone());
        });
        Ok(grounds)
    }

    async fn operator(&self, patience: Patience) -> Result<Grounds, Refusal> {
        let registry = self.registry();
        if let Some(grounds) = self.with_allowed(&registry, |allowed| allowed.operator.clone()) {
            return Ok(grounds);
        }
        let grounds = self.decide(&registry.admin, patience).await?;
        self.with_allowed(&registry, |allowed| allowed.operator = Some(grounds.clone()));
        Ok(grounds)
    }

    /// What is allowed under `registry`; that under another one is forgotten.
    fn with_allowed<T>(&self, registry: &Arc<Registry>, act: impl FnOnce(&mut Allowed) -> T) -> T {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&allowed.registry, registry) {
            *allowed = Allowed::nothing(Arc::clone(registry));
        }
        act(&mut allowed)
    }
}

/// The rules of the token that comes after where `name` would be, or of the first.
fn rules_near<'a>(registry: &'a Registry, name: &TokenName) -> &'a [Rule] {
    let near = registry.after(Some(name)).next().or_else(|| registry.after(None).next());
    near.map_or(&[], |(_, entry)| &entry.allow)
}

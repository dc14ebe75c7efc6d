//! What a peer may have. Every request begins here.
//!
//! A peer that may not have a name must not learn whether it exists: the answer, and as far as it can be helped
//! the time it takes, are the same in either case.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};

use tokend_protocol::{ErrorCode, ErrorReply, TokenName, Variant};

use super::right::{self, Right};
use super::{Session, refusal};
use crate::access::directory::Patience;
use crate::access::{Decision, ImplicitAccess, Reason, Rule, decide};
use crate::engine::registry::{Entry, Registry};
use crate::server::audit::{Operation, Refusal};

/// What a refused caller is told, whether the token exists or not.
const NOT_ALLOWED: &str = "not allowed, or no such token";

/// What one is told who may have the token in another form.
const FORM_NOT_ALLOWED: &str =
    "the token is not allowed in this form, only with other scopes, resources or audiences";

/// Tokens whose grounds a connection remembers. A peer that asks for more of them is decided about anew.
const GROUNDS_MAX: usize = 256;

/// What a peer may have, and why.
pub(super) struct Entitled {
    pub(super) entry: Arc<Entry>,
    pub(super) grounds: Arc<Reason>,
}

/// What a connection was found to be allowed under a registry. What it was refused is never remembered: it may
/// be allowed the next time, as when its user has become known.
#[derive(Debug)]
pub(super) struct Allowed {
    /// Under which. An idle connection keeps no former registry alive, nor what hangs on it.
    registry: Weak<Registry>,
    tokens: HashMap<TokenName, Right>,
    operator: Option<Arc<Reason>>,
}

impl Allowed {
    pub(super) fn nothing(registry: &Arc<Registry>) -> Self {
        Self { registry: Arc::downgrade(registry), tokens: HashMap::new(), operator: None }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}

impl Session {
    /// What a name leads to, if the peer may have it in this form. A name that it may not have and a name that does
    /// not exist look the same to anyone but an operator.
    pub(super) async fn entitled(
        &self,
        name: &TokenName,
        variant: &Variant,
        verb: Operation,
        patience: Patience,
    ) -> Result<Entitled, ErrorReply> {
        // Names may be waited for meanwhile. Nothing is done by a configuration that is not in force any more, as to
        // start a form of a token that it allowed.
        let seek = |registry: Arc<Registry>| async move {
            let sought = self.sought(&registry, name, variant, patience).await;
            (registry, sought)
        };
        let (registry, sought) = self.in_force(seek).await?;
        let reason = match sought {
            Ok(entitled) => return Ok(entitled),
            Err(reason) => reason,
        };
        let (audit, peer) = (&self.shared.audit, self.peer.facts());
        match (reason, registry.find(name)) {
            (Refusal::NoRuleOfForm, Some(entry)) => {
                audit.refused_form(peer, verb, (name, &right::ruled_part(entry, variant)));
            }
            _ => audit.refused(peer, verb, name, reason),
        }
        // Found out in either case, so that the time it takes tells nothing.
        let is_operator = self.is_operator(patience).await;
        if let Err(excess) = self.count_refusal() {
            return Err(self.overloaded(excess));
        }
        Err(match reason {
            Refusal::NoSuchToken if is_operator => refusal(ErrorCode::UnknownToken, "no such token"),
            Refusal::NoRuleOfForm => refusal(ErrorCode::NotAllowed, FORM_NOT_ALLOWED),
            _ => refusal(ErrorCode::NotAllowed, NOT_ALLOWED),
        })
    }

    /// What a name leads to, if the peer is an operator.
    pub(super) async fn operated(&self, name: &TokenName, verb: Operation) -> Result<Entitled, ErrorReply> {
        let patience = Patience::of_a_request();
        let operator = self.operator(patience).await;
        // Looked up under the configuration that was found to make it one.
        match (operator, self.registry().find(name)) {
            (Ok(grounds), Some(entry)) => Ok(Entitled { entry: Arc::clone(entry), grounds }),
            _ => Err(self.not_an_operator(name, &Variant::default(), verb, patience).await),
        }
    }

    /// The refusal of what is for operators. Who may have the token is told what is missing, and the rest what they
    /// would be told of any name.
    pub(super) async fn not_an_operator(
        &self,
        name: &TokenName,
        variant: &Variant,
        verb: Operation,
        patience: Patience,
    ) -> ErrorReply {
        if let Err(refused) = self.entitled(name, variant, verb, patience).await {
            return refused;
        }
        self.shared.audit.refused(self.peer.facts(), verb, name, Refusal::NotAnOperator);
        refusal(ErrorCode::NotAllowed, "only an operator may do this")
    }

    /// The refusal of a form that nobody may ask for, to one who may have the token. The caller's words are for the
    /// caller and in no record.
    pub(super) fn no_such_form(&self, verb: Operation, name: &TokenName, message: String) -> ErrorReply {
        self.shared.audit.refused(self.peer.facts(), verb, name, Refusal::NoSuchForm);
        refusal(ErrorCode::InvalidRequest, message)
    }

    /// Records that the peer is allowed something that gives no token away.
    pub(super) fn allowed(&self, verb: Operation, name: &TokenName, grounds: &Reason) {
        self.shared.audit.allowed(self.peer.facts(), verb, name, grounds);
    }

    /// Whether the peer is an operator.
    pub(super) async fn is_operator(&self, patience: Patience) -> bool {
        self.operator(patience).await.is_ok()
    }

    /// What the peer may have of a token, decided anew.
    pub(super) async fn decide_right(
        &self,
        registry: &Registry,
        entry: &Entry,
        patience: Patience,
    ) -> Result<Right, Refusal> {
        let implicit_access = self.implicit_access(registry);
        // Who needs no rule does not wait for the name service.
        let names = match implicit_access.grounds(self.peer.facts()) {
            Some(_) => Vec::new(),
            None => entry.names_in_rules().collect(),
        };
        let resolved = self.shared.directory.resolve(&names, patience).await;
        let decided = Right::decide(self.peer.facts(), implicit_access, entry, &resolved.numbers);
        decided.ok_or_else(|| refused(resolved.is_complete))
    }

    /// Who needs no rule under this registry.
    pub(super) fn implicit_access(&self, registry: &Registry) -> ImplicitAccess {
        ImplicitAccess { own_uid: self.shared.own_uid, root: registry.admin.root }
    }

    async fn sought(
        &self,
        registry: &Arc<Registry>,
        name: &TokenName,
        variant: &Variant,
        patience: Patience,
    ) -> Result<Entitled, Refusal> {
        let Some(entry) = registry.find(name) else {
            self.decide_for_nothing(registry, name, variant, patience).await;
            return Err(Refusal::NoSuchToken);
        };
        let right = self.right(registry, name, entry, patience).await?;
        let grounds = right.to(entry, variant).ok_or(Refusal::NoRuleOfForm)?;
        Ok(Entitled { entry: Arc::clone(entry), grounds })
    }

    /// What is not there takes as long as something that is there.
    async fn decide_for_nothing(
        &self,
        registry: &Registry,
        name: &TokenName,
        variant: &Variant,
        patience: Patience,
    ) {
        if let Some(decoy) = registry.decoy(name) {
            let right = self.decide_right(registry, decoy, patience).await;
            std::hint::black_box(right.map(|right| right.to(decoy, variant)).is_ok());
        }
    }

    async fn right(
        &self,
        registry: &Arc<Registry>,
        name: &TokenName,
        entry: &Entry,
        patience: Patience,
    ) -> Result<Right, Refusal> {
        if let Some(right) = self.with_allowed(registry, |allowed| allowed.tokens.get(name).cloned()) {
            return Ok(right);
        }
        let right = self.decide_right(registry, entry, patience).await?;
        if right.is_whole() {
            self.with_allowed(registry, |allowed| {
                if allowed.tokens.len() >= GROUNDS_MAX {
                    allowed.tokens.clear();
                }
                allowed.tokens.insert(name.clone(), right.clone());
            });
        }
        Ok(right)
    }

    /// Why the peer is an operator, if it is one by the configuration in force.
    pub(super) async fn operator(&self, patience: Patience) -> Result<Arc<Reason>, Refusal> {
        let decide = |registry: Arc<Registry>| async move { self.decide_operator(&registry, patience).await };
        self.in_force(decide).await.unwrap_or(Err(Refusal::NotAnOperator))
    }

    async fn decide_operator(
        &self,
        registry: &Arc<Registry>,
        patience: Patience,
    ) -> Result<Arc<Reason>, Refusal> {
        if let Some(grounds) = self.with_allowed(registry, |allowed| allowed.operator.clone()) {
            return Ok(grounds);
        }
        let (facts, implicit_access) = (self.peer.facts(), self.implicit_access(registry));
        let rules = &registry.admin.allow;
        let names: Vec<_> = match implicit_access.grounds(facts) {
            Some(_) => Vec::new(),
            None => rules.iter().flat_map(Rule::names).collect(),
        };
        let resolved = self.shared.directory.resolve(&names, patience).await;
        let Decision::Allow(grounds) = decide(facts, implicit_access, rules, &resolved.numbers) else {
            return Err(refused(resolved.is_complete));
        };
        let grounds = Arc::new(grounds);
        self.with_allowed(registry, |allowed| allowed.operator = Some(Arc::clone(&grounds)));
        Ok(grounds)
    }

    /// What is allowed under `registry`; that under another one is forgotten.
    fn with_allowed<T>(&self, registry: &Arc<Registry>, act: impl FnOnce(&mut Allowed) -> T) -> T {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if allowed.registry.as_ptr() != Arc::as_ptr(registry) {
            *allowed = Allowed::nothing(registry);
        }
        act(&mut allowed)
    }
}

/// Why nothing lets the peer in, by whether every name in the rules was answered.
fn refused(is_complete: bool) -> Refusal {
    if is_complete { Refusal::NoRule } else { Refusal::NamesUnanswered }
}

//! One peer's requests: authorise, then answer. Knows messages and not bytes.

mod headers;
mod listing;
mod view;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokend_protocol::{
    ErrorClass, ErrorCode, ErrorReply, GetRequest, HeadersReply, HeadersRequest, RefreshRequest,
    RefreshedReply, RejectOutcome, RejectRequest, RejectedReply, Reply, Request, Terms, TokenName,
    TokenReply, VERSION, VersionReply, WatchRequest,
};

pub use self::watch::Watch;
use crate::audit::{self, Refusal, Verb};
use crate::clock::Instant;
use crate::credential::{Attempted, Failed, Rejected, Token, Unobtainable};
use crate::directory;
use crate::peer::Peer;
use crate::policy::access::{Decision, Grounds, Rule, decide};
use crate::registry::{Entry, Registry};
use crate::shared::Shared;

/// What a refused caller is told, whether the token exists or not.
const NOT_ALLOWED: &str = "not allowed, or no such token";

/// One connected peer and what it was found to be allowed.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    peer: Peer,
    /// Decisions made for this connection under the registry that they were made under. Held for a read or
    /// a write, never across an await.
    decisions: Mutex<Decisions>,
}

#[derive(Debug)]
struct Decisions {
    registry: Arc<Registry>,
    made: HashMap<TokenName, Decision>,
    operator: Option<Decision>,
}

/// What a peer may have, and why.
struct Entitled {
    entry: Arc<Entry>,
    grounds: Grounds,
}

impl Session {
    /// A session of `peer`.
    pub fn new(shared: Arc<Shared>, peer: Peer) -> Self {
        let registry = shared.registry.borrow().clone();
        let decisions = Mutex::new(Decisions { registry, made: HashMap::new(), operator: None });
        Self { shared, peer, decisions }
    }

    /// Who it is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Answers any request but [`Request::Watch`], which has many answers: see [`Session::watch`].
    pub async fn answer(&self, request: Request) -> Reply {
        let answer = match request {
            Request::Get(request) => self.get(request).await,
            Request::Headers(request) => self.headers(request).await,
            Request::List(page) => Ok(self.list(page).await),
            Request::Status(page) => Ok(self.status(page).await),
            Request::Refresh(request) => self.refresh(request).await,
            Request::Reject(request) => self.reject(request).await,
            Request::Watch(_) => Err(refusal(ErrorCode::InvalidRequest, "a watch has no single answer")),
            Request::Version => Ok(Reply::Version(VersionReply {
                daemon: env!("CARGO_PKG_VERSION").to_owned(),
                oldest: VERSION,
                newest: VERSION,
            })),
        };
        answer.unwrap_or_else(Reply::Error)
    }

    /// The events of a watch.
    pub async fn watch(self: Arc<Self>, request: WatchRequest) -> Result<Watch, ErrorReply> {
        if request.names.is_empty() {
            return Err(refusal(ErrorCode::InvalidRequest, "a watch names at least one token"));
        }
        for name in &request.names {
            let entitled = self.entitled(name, Verb::Watch).await?;
            audit::allowed(&self.peer, Verb::Watch, name, &entitled.grounds);
        }
        Ok(Watch::new(self, request.names))
    }

    async fn get(&self, request: GetRequest) -> Result<Reply, ErrorReply> {
        let entitled = self.entitled(&request.name, Verb::Get).await?;
        let token = self.obtain(&entitled.entry, request.terms).await?;
        let info = self.info(&entitled.entry, &token);
        self.handed_out(&entitled, Verb::Get, &request.name, &token);
        Ok(Reply::Token(TokenReply { info, token: token.secret.clone() }))
    }

    async fn headers(&self, request: HeadersRequest) -> Result<Reply, ErrorReply> {
        let entitled = self.entitled(&request.name, Verb::Headers).await?;
        let supplied = headers::supplied(&entitled.entry.caller_headers, &request.supplied, &request.omitted)
            .map_err(|message| refusal(ErrorCode::InvalidRequest, message))?;
        let token = self.obtain(&entitled.entry, request.terms).await?;
        let headers =
            headers::compose(&token.secret, &entitled.entry.headers, supplied).await.map_err(|error| {
                tracing::warn!(token = %request.name, %error, "a header cannot be made");
                let message = "a secret of the header set cannot be read on this host";
                ErrorReply { class: Some(ErrorClass::Secret), ..refusal(ErrorCode::Refused, message) }
            })?;
        let info = self.info(&entitled.entry, &token);
        self.handed_out(&entitled, Verb::Headers, &request.name, &token);
        Ok(Reply::Headers(HeadersReply { info, headers }))
    }

    async fn refresh(&self, request: RefreshRequest) -> Result<Reply, ErrorReply> {
        let Entitled { entry, grounds } = self.operated(&request.name, Verb::Refresh).await?;
        audit::allowed(&self.peer, Verb::Refresh, &request.name, &grounds);
        let deadline = self.deadline(request.deadline_ms);
        let attempted =
            entry.credential.refresh(deadline).await.map_err(|reason| self.unobtainable(reason))?;
        let (info, changed) = self.after_attempt(&entry, attempted)?;
        Ok(Reply::Refreshed(RefreshedReply { info, changed }))
    }

    async fn reject(&self, request: RejectRequest) -> Result<Reply, ErrorReply> {
        let entitled = self.entitled(&request.name, Verb::Reject).await?;
        audit::allowed(&self.peer, Verb::Reject, &request.name, &entitled.grounds);
        let deadline = self.deadline(request.deadline_ms);
        let credential = &entitled.entry.credential;
        let rejected = credential
            .reject(request.fingerprint, deadline)
            .await
            .map_err(|reason| self.unobtainable(reason))?;
        let (attempted, outcome) = match rejected {
            Rejected::Superseded => (Attempted::Unchanged, RejectOutcome::Superseded),
            Rejected::TooSoon => (Attempted::Unchanged, RejectOutcome::TooSoon),
            Rejected::Attempted(Attempted::Changed) => (Attempted::Changed, RejectOutcome::Replaced),
            Rejected::Attempted(attempted) => (attempted, RejectOutcome::Unchanged),
        };
        let (info, _) = self.after_attempt(&entitled.entry, attempted)?;
        Ok(Reply::Rejected(RejectedReply { outcome, info }))
    }

    async fn obtain(&self, entry: &Entry, terms: Terms) -> Result<Arc<Token>, ErrorReply> {
        let min_ttl = Duration::from_millis(terms.min_ttl_ms.into());
        let obtained = entry.credential.obtain(min_ttl, self.deadline(terms.deadline_ms)).await;
        obtained.map_err(|reason| self.unobtainable(reason))
    }

    fn unobtainable(&self, reason: Unobtainable) -> ErrorReply {
        match reason {
            Unobtainable::Deadline => {
                refusal(ErrorCode::DeadlineExceeded, "the deadline passed before the provider answered")
            }
            Unobtainable::Ended => refusal(ErrorCode::Unavailable, "the configuration of the token changed"),
            Unobtainable::Failed(failed, next) => self.failed(&failed, next),
            Unobtainable::MinTtl(best) => ErrorReply {
                best_ttl_ms: Some(millis(best)),
                ..refusal(ErrorCode::MinTtlUnreachable, "the provider's tokens do not last as long as asked")
            },
        }
    }

    fn failed(&self, failed: &Failed, next_attempt: Instant) -> ErrorReply {
        let code = if failed.needs_operator() { ErrorCode::Refused } else { ErrorCode::Unavailable };
        ErrorReply {
            class: Some(failed.class),
            next_attempt: Some(self.shared.clock.timestamp(next_attempt)),
            ..refusal(code, &*failed.message)
        }
    }

    /// The held token after an attempt, and whether it is another one.
    fn after_attempt(
        &self,
        entry: &Entry,
        attempted: Attempted,
    ) -> Result<(tokend_protocol::TokenInfo, bool), ErrorReply> {
        let snapshot = entry.credential.snapshot();
        if let Attempted::Failed(failed) = attempted {
            return Err(self.failed(&failed, snapshot.next_attempt));
        }
        let held = snapshot.usable(self.shared.clock.now(), Duration::ZERO);
        let token = held.ok_or_else(|| refusal(ErrorCode::Unavailable, "no valid token is held any more"))?;
        Ok((self.info(entry, &token), attempted == Attempted::Changed))
    }

    fn info(&self, entry: &Entry, token: &Token) -> tokend_protocol::TokenInfo {
        view::token_info(token, &entry.credential.snapshot(), &self.shared.clock)
    }

    fn handed_out(&self, entitled: &Entitled, verb: Verb, name: &TokenName, token: &Token) {
        entitled.entry.count_hand_out();
        audit::handed_out(&self.peer, verb, name, token.fingerprint, &entitled.grounds);
    }

    fn deadline(&self, deadline_ms: u32) -> Instant {
        self.shared.clock.now().after(Duration::from_millis(deadline_ms.into()))
    }

    /// What a name leads to, if the peer may have it. A name that it may not have and a name that does not
    /// exist look the same to anyone but an operator.
    async fn entitled(&self, name: &TokenName, verb: Verb) -> Result<Entitled, ErrorReply> {
        let registry = self.registry();
        let Some(entry) = registry.find(name) else {
            audit::refused(&self.peer, verb, name, Refusal::NoSuchToken);
            return Err(if self.is_operator().await {
                refusal(ErrorCode::UnknownToken, "no such token")
            } else {
                refusal(ErrorCode::NotAllowed, NOT_ALLOWED)
            });
        };
        match self.decision(&registry, name, entry).await {
            Decision::Allow(grounds) => Ok(Entitled { entry: Arc::clone(entry), grounds }),
            Decision::Deny => {
                audit::refused(&self.peer, verb, name, Refusal::NoRule);
                Err(refusal(ErrorCode::NotAllowed, NOT_ALLOWED))
            }
        }
    }

    /// What a name leads to, if the peer is an operator. Anybody else who may have the token is told what is
    /// missing, and the rest what they would be told of any name.
    async fn operated(&self, name: &TokenName, verb: Verb) -> Result<Entitled, ErrorReply> {
        let registry = self.registry();
        let (Decision::Allow(grounds), Some(entry)) = (self.operator().await, registry.find(name)) else {
            self.entitled(name, verb).await?;
            audit::refused(&self.peer, verb, name, Refusal::NotAnOperator);
            return Err(refusal(ErrorCode::NotAllowed, "only an operator may do this"));
        };
        Ok(Entitled { entry: Arc::clone(entry), grounds })
    }

    async fn decision(&self, registry: &Arc<Registry>, name: &TokenName, entry: &Entry) -> Decision {
        if let Some(made) = self.with_decisions(registry, |decisions| decisions.made.get(name).cloned()) {
            return made;
        }
        let decision = self.decide(&entry.allow).await;
        self.with_decisions(registry, |decisions| decisions.made.insert(name.clone(), decision.clone()));
        decision
    }

    async fn is_operator(&self) -> bool {
        self.operator().await.is_allowed()
    }

    /// Whether the peer is an operator, and why.
    async fn operator(&self) -> Decision {
        let registry = self.registry();
        if let Some(made) = self.with_decisions(&registry, |decisions| decisions.operator.clone()) {
            return made;
        }
        let decision = self.decide(&registry.admin).await;
        self.with_decisions(&registry, |decisions| decisions.operator = Some(decision.clone()));
        decision
    }

    async fn decide(&self, rules: &[Rule]) -> Decision {
        decide(&self.peer, self.shared.own_uid, &directory::resolve(rules).await)
    }

    fn registry(&self) -> Arc<Registry> {
        self.shared.registry.borrow().clone()
    }

    /// The decisions under `registry`; those under another one are forgotten.
    fn with_decisions<T>(&self, registry: &Arc<Registry>, act: impl FnOnce(&mut Decisions) -> T) -> T {
        let mut decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&decisions.registry, registry) {
            *decisions = Decisions { registry: Arc::clone(registry), made: HashMap::new(), operator: None };
        }
        act(&mut decisions)
    }
}

/// A refusal without particulars.
pub fn refusal(code: ErrorCode, message: impl Into<String>) -> ErrorReply {
    ErrorReply { code, message: message.into(), class: None, next_attempt: None, best_ttl_ms: None }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

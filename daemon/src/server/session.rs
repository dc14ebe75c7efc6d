//! One peer's requests: authorise, then answer. Knows messages and not bytes.

mod entitlement;
mod explain;
mod failure;
mod headers;
mod in_force;
mod listing;
mod quota;
mod renewal;
mod right;
mod view;
mod watch;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokend_protocol::{
    CallOptions, ErrorClass, ErrorCode, ErrorReply, GetRequest, Header, HeadersReply, HeadersRequest,
    Message, Reply, Request, TokenInfo, TokenName, TokenReply, VERSION, Variant, VersionReply, WatchRequest,
};

use self::entitlement::{Allowed, Entitled};
pub use self::failure::refusal;
pub use self::watch::Watch;
use crate::access::directory::Patience;
use crate::clock::Instant;
use crate::engine::credential::{Credential, Token};
use crate::engine::registry::Entry;
use crate::engine::variants::{self, NoVariant};
use crate::peer::Peer;
use crate::quota::Allowance;
use crate::quota::Resource;
use crate::server::audit::Operation;
use crate::server::fair_queue::Turn;
use crate::server::peer_exit::PeerExit;
use crate::server::server_state::ServerState;

/// Tokens of one watch. It is asked for in one frame, and every name of it is audited.
const WATCHED_MAX: usize = 256;

/// Names of a watch that are looked at in one turn.
const WATCHED_IN_A_TURN: usize = 4;

/// What looking at so many takes, in units of a turn.
const WATCHED_UNITS: u32 = 8;

/// How long the secrets of a header set may take for a caller who wants only what is held: they are on this
/// host, and no provider has to be waited for.
const HELD_TIMEOUT: Duration = Duration::from_secs(1);

/// One connected peer and what it was found to be allowed.
#[derive(Debug)]
pub struct Session {
    shared: Arc<ServerState>,
    peer: Peer,
    /// Of the peer's user.
    allowance: Arc<Allowance>,
    /// What the peer was found to be allowed. Held for a read or a write, never across an await.
    allowed: Mutex<Allowed>,
}

impl Session {
    /// A session of `peer`.
    pub fn new(shared: Arc<ServerState>, peer: Peer) -> Self {
        let allowed = Mutex::new(Allowed::nothing(&shared.registry.borrow()));
        let allowance = shared.allowances.of(peer.facts().uid, shared.clock.now());
        Self { shared, peer, allowance, allowed }
    }

    /// The end of the peer's process.
    pub fn departure(&self) -> PeerExit {
        PeerExit::of(&self.peer)
    }

    /// Whether the peer's process has ended: whoever is at the other end now has none of its rights.
    pub fn is_over(&self) -> bool {
        self.peer.is_gone()
    }

    /// Waits for a turn of the peer's user.
    pub async fn turn(&self) -> Turn<'_> {
        self.shared.turns.take(self.peer.facts().uid).await
    }

    /// Lets others have their turns between some names of a watch and the next.
    async fn turn_for_name(&self, index: usize) {
        if index % WATCHED_IN_A_TURN == WATCHED_IN_A_TURN - 1 {
            self.turn().await.spend(WATCHED_UNITS);
        }
    }

    /// Answers any request but [`Request::Watch`], which has many answers: see [`Session::watch`].
    pub async fn answer(&self, request: Request) -> Reply {
        let answer = match request {
            Request::Get(request) => self.get(request).await,
            Request::Headers(request) => self.headers(request).await,
            Request::List(page) => self.list(page).await,
            Request::Status(page) => self.status(page).await,
            Request::Refresh(request) => self.refresh(request).await,
            Request::Reject(request) => self.reject(request).await,
            Request::Watch(_) => Err(refusal(ErrorCode::InvalidRequest, "a watch has no single answer")),
            Request::Explain(request) => self.explain(request).await,
            Request::Version => Ok(Reply::Version(VersionReply {
                daemon: env!("CARGO_PKG_VERSION").to_owned(),
                oldest: VERSION,
                newest: VERSION,
                highest_request: Request::HIGHEST,
            })),
        };
        answer.unwrap_or_else(Reply::Error)
    }

    /// The events of a watch.
    pub async fn watch(self: Arc<Self>, request: WatchRequest) -> Result<Watch, ErrorReply> {
        let mut names = request.names;
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Err(refusal(ErrorCode::InvalidRequest, "a watch names at least one token"));
        }
        if names.len() > WATCHED_MAX {
            let message = format!(
                "a watch of {} tokens, expected {WATCHED_MAX} at most: watch the others on a connection of \
                 their own",
                names.len()
            );
            return Err(refusal(ErrorCode::InvalidRequest, message));
        }
        let held = [self.take(Resource::Watches, 1)?, self.take(Resource::WatchedTokens, names.len())?];
        let patience = Patience::of_a_request();
        for (index, name) in names.iter().enumerate() {
            self.turn_for_name(index).await;
            let entitled = self.entitled(name, &Variant::default(), Operation::Watch, patience).await?;
            self.shared.audit.allowed(self.peer.facts(), Operation::Watch, name, &entitled.grounds);
        }
        Ok(Watch::new(self, names, held))
    }

    async fn get(&self, request: GetRequest) -> Result<Reply, ErrorReply> {
        let deadline = self.deadline(request.options.deadline_ms);
        let found = self.in_force(|_| self.token_of(&request, deadline)).await?;
        let (entitled, credential, token) = found?;
        let info = self.info(&credential, &token);
        self.handed_out(&entitled, Operation::Get, (&request.name, &request.variant), &token);
        Ok(Reply::Token(TokenReply {
            info,
            token: token.secret.clone(),
            token_type: token.token_type.to_string(),
            scope: token.scope.as_deref().map(str::to_owned),
        }))
    }

    async fn token_of(
        &self,
        request: &GetRequest,
        deadline: Instant,
    ) -> Result<(Entitled, Arc<Credential>, Arc<Token>), ErrorReply> {
        let GetRequest { name, options, variant } = request;
        let entitled = self.entitled(name, variant, Operation::Get, Patience::of_a_request()).await?;
        let credential = self.credential((Operation::Get, name), &entitled.entry, variant)?;
        let token = self.obtain((Operation::Get, name), &credential, *options, deadline).await?;
        Ok((entitled, credential, token))
    }

    async fn headers(&self, request: HeadersRequest) -> Result<Reply, ErrorReply> {
        let deadline = self.deadline(request.options.deadline_ms);
        let found = self.in_force(|_| self.headers_of(&request, deadline)).await?;
        let (entitled, credential, token, headers) = found?;
        let info = self.info(&credential, &token);
        self.handed_out(&entitled, Operation::Headers, (&request.name, &request.variant), &token);
        Ok(Reply::Headers(HeadersReply { info, headers }))
    }

    async fn headers_of(
        &self,
        request: &HeadersRequest,
        deadline: Instant,
    ) -> Result<(Entitled, Arc<Credential>, Arc<Token>, Vec<Header>), ErrorReply> {
        let HeadersRequest { name, options, supplied, omitted, variant } = request;
        let entitled = self.entitled(name, variant, Operation::Headers, Patience::of_a_request()).await?;
        let supplied = headers::supplied(&entitled.entry.caller_headers, supplied, omitted)
            .map_err(|message| refusal(ErrorCode::InvalidRequest, message))?;
        let credential = self.credential((Operation::Headers, name), &entitled.entry, variant)?;
        // Before the token, which must not grow old meanwhile.
        let configured = self.configured_headers(request, &entitled.entry, deadline).await?;
        let token = self.obtain((Operation::Headers, name), &credential, *options, deadline).await?;
        let headers = headers::compose(&token.secret, configured, supplied);
        Ok((entitled, credential, token, headers))
    }

    /// The configured headers, their secrets read now.
    async fn configured_headers(
        &self,
        request: &HeadersRequest,
        entry: &Entry,
        deadline: Instant,
    ) -> Result<Vec<Header>, ErrorReply> {
        let deadline = match request.options.deadline_ms {
            0 => self.shared.clock.now().after(HELD_TIMEOUT),
            _ => deadline,
        };
        let read = tokio::select! {
            // What can be had at once is had, however short the deadline.
            biased;
            read = headers::configured(&entry.headers) => read,
            () = self.shared.clock.sleep_until(deadline) => {
                let message = "the deadline passed before the secrets of the header set were read";
                return Err(refusal(ErrorCode::DeadlineExceeded, message));
            }
        };
        read.map_err(|error| {
            tracing::warn!(token = %request.name, %error, "a header cannot be made");
            let message = "a secret of the header set cannot be read on this host";
            ErrorReply { class: Some(ErrorClass::Secret), ..refusal(ErrorCode::NeedsOperator, message) }
        })
    }

    /// Where a name's token comes from in the form that was asked for.
    fn credential(
        &self,
        (verb, name): (Operation, &TokenName),
        entry: &Entry,
        variant: &Variant,
    ) -> Result<Arc<Credential>, ErrorReply> {
        let found = entry.variant(variant, &self.allowance, &self.shared.origins);
        found.map_err(|reason| match reason {
            NoVariant::NotPermitted(message) => self.no_such_form(verb, name, message),
            NoVariant::TooMany(excess) => self.over_quota(verb, name, excess),
            NoVariant::AllInUse => self.no_room_for_form(verb, name),
        })
    }

    async fn obtain(
        &self,
        (verb, name): (Operation, &TokenName),
        credential: &Credential,
        options: CallOptions,
        deadline: Instant,
    ) -> Result<Arc<Token>, ErrorReply> {
        let min_ttl = Duration::from_millis(options.min_ttl_ms.into());
        let _held = self
            .may_obtain(credential, min_ttl, deadline)
            .map_err(|excess| self.over_quota(verb, name, excess))?;
        credential.obtain(min_ttl, deadline).await.map_err(|reason| self.unobtainable(reason))
    }

    fn info(&self, credential: &Credential, token: &Token) -> TokenInfo {
        view::token_info(token, &credential.snapshot(), &self.shared.clock)
    }

    fn handed_out(
        &self,
        entitled: &Entitled,
        verb: Operation,
        (name, variant): (&TokenName, &Variant),
        token: &Token,
    ) {
        let Entitled { entry, grounds, .. } = entitled;
        entry.count_hand_out();
        let form = variants::as_configured(&entry.permitted, variant);
        self.shared.audit.handed_out(self.peer.facts(), verb, (name, &form), token.fingerprint, grounds);
    }

    fn deadline(&self, deadline_ms: u32) -> Instant {
        self.shared.clock.now().after(Duration::from_millis(deadline_ms.into()))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

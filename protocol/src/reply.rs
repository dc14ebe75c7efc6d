//! The replies of the daemon. Each comment on a variant of [`Reply`] begins with its number on the wire.
//!
//! These types are the wire format, under the rules of the requests. All times in a token's
//! reply are absolute, so its bytes stay the same until the token or its condition changes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    BootInstant, ErrorClass, ExplainedReply, Fingerprint, HeldToken, Secret, State, StatusReply, Timestamp,
    TokenName,
};

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// 0: a valid access token.
    Token(TokenReply),
    /// 1: the headers of an API call.
    Headers(HeadersReply),
    /// 2: a page of names.
    List(ListReply),
    /// 3: a page of the status.
    Status(StatusReply),
    /// 4: the token after a refresh.
    Refreshed(RefreshedReply),
    /// 5: the result of a rejection.
    Rejected(RejectedReply),
    /// 6: the condition of a watched token.
    Event(EventReply),
    /// 7: the daemon's version.
    Version(VersionReply),
    /// 8: the request failed or was refused.
    Error(ErrorReply),
    /// 9: why the subject may or may not read the token.
    Explained(ExplainedReply),
}

/// The lifetime and condition of a token that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// When the daemon sent the request that brought the token.
    pub issued_at: BootInstant,
    /// When the token expires.
    pub expires_at: BootInstant,
    /// When the token expires, in wall time.
    pub expires_at_wall: Timestamp,
    /// The condition of the token.
    pub state: State,
    /// Why the last attempt to renew the token failed, if it did.
    pub last_error: Option<ErrorClass>,
    /// When the daemon will renew the token.
    pub next_attempt: Option<Timestamp>,
    /// The fingerprint of this very token, for [`RejectRequest`](crate::RejectRequest).
    pub fingerprint: Fingerprint,
}

impl TokenInfo {
    /// The remaining lifetime at `now`; zero once the token has expired.
    pub fn remaining(&self, now: BootInstant) -> Duration {
        self.expires_at.since(now)
    }

    /// The age of the token at `now`.
    pub fn age(&self, now: BootInstant) -> Duration {
        now.since(self.issued_at)
    }
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenReply {
    /// The lifetime and condition of the token.
    pub info: TokenInfo,
    /// The access token.
    pub token: Secret,
    /// The scheme of the `Authorization` header, as in `Bearer`.
    pub token_type: String,
    /// The scopes that the provider says it granted, separated by spaces; `None` where it does not say.
    pub scope: Option<String>,
}

/// The headers of an API call, `Authorization` first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadersReply {
    /// The lifetime and condition of the token in the headers.
    pub info: TokenInfo,
    /// The headers, in order.
    pub headers: Vec<Header>,
}

/// A header to send. Its value may be or contain a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The field name.
    pub name: String,
    /// The field value.
    pub value: Secret,
}

/// A page of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListReply {
    /// The tokens, sorted by name.
    pub tokens: Vec<ListEntry>,
    /// Whether another page follows.
    pub more: bool,
}

/// A token that the caller may read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEntry {
    /// The name of the token.
    pub name: TokenName,
    /// The condition of the token.
    pub state: State,
}

/// The token after a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshedReply {
    /// The token that the daemon holds now.
    pub info: TokenInfo,
    /// Whether the token is another one than before. A provider with a cache may return the same token.
    pub changed: bool,
}

/// The result of a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedReply {
    /// What the daemon did.
    pub outcome: RejectOutcome,
    /// The token that the daemon holds now.
    pub info: TokenInfo,
}

/// What the daemon did about a refused token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RejectOutcome {
    /// 0: the refused token was current, and the provider returned a new one.
    Replaced,
    /// 1: the daemon holds another token already. Get it and try again.
    Superseded,
    /// 2: the provider returned the same token. The API has another reason to refuse it.
    Unchanged,
    /// 3: the daemon did not ask the provider: the token is too new, or the last request was too recent.
    TooSoon,
}

/// The condition of a watched token, sent at once and after every change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventReply {
    /// The place of the token in the list of the request, from 0.
    pub index: u32,
    /// The name of the token.
    pub name: TokenName,
    /// The condition of the token.
    pub state: State,
    /// The held token, while it is valid.
    pub held: Option<HeldToken>,
    /// Why the last attempt failed, if it did.
    pub last_error: Option<ErrorClass>,
    /// When the daemon will ask the provider next.
    pub next_attempt: Option<Timestamp>,
    /// The held token itself, if the request asks for tokens and the event before had another one or another expiry.
    pub token: Option<TokenReply>,
}

/// The daemon's version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReply {
    /// The release, as in `1.2.3`.
    pub daemon: String,
    /// The oldest protocol version that the daemon speaks.
    pub oldest: u8,
    /// The newest protocol version that the daemon speaks.
    pub newest: u8,
    /// The highest number of a request that the daemon knows.
    pub highest_request: u32,
}

/// Why a request failed, by what the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// 0: the caller may not do this, or (to anyone but an operator) there is no such token.
    NotAllowed,
    /// 1: there is no such token. Only operators get this code.
    UnknownToken,
    /// 2: no token now, for a reason that may pass. Try again.
    Unavailable,
    /// 3: no token until an operator acts.
    NeedsOperator,
    /// 4: the caller's deadline passed.
    DeadlineExceeded,
    /// 5: the request is malformed, or does not fit the configuration of the token (a missing caller header).
    InvalidRequest,
    /// 6: the daemon does not speak the protocol version of the frame.
    UnsupportedVersion,
    /// 7: the caller or its user has too many connections or requests. Send fewer.
    Overloaded,
    /// 8: the provider's tokens do not live as long as `min_ttl_ms` asks.
    MinTtlUnreachable,
    /// 9: the daemon is stopping. Connect again.
    ShuttingDown,
    /// 10: the daemon does not know a request with this number.
    UnknownRequest,
}

/// A failure or a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What the caller can do.
    pub code: ErrorCode,
    /// The reason for a person, without any secret.
    pub message: String,
    /// Why the provider returned no token, where that is the reason.
    pub class: Option<ErrorClass>,
    /// When the daemon will ask the provider next; with [`ErrorCode::Overloaded`], when to try again.
    pub next_attempt: Option<Timestamp>,
    /// With [`ErrorCode::MinTtlUnreachable`]: the longest remaining lifetime at hand, in milliseconds.
    pub best_ttl_ms: Option<u64>,
}

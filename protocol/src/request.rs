//! The requests of callers. Each comment on a variant of [`Request`] begins with its number on the wire.
//!
//! These types are the wire format: enums are append-only, a field never changes, and a serde attribute never changes
//! the bytes, only limits the length of a list.

use serde::{Deserialize, Serialize};

use crate::limits::{self, BoundedVariant};
use crate::{CallOptions, Fingerprint, TokenName, Variant};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// 0: get the access token. Answered by [`Reply::Token`](crate::Reply::Token).
    Get(GetRequest),
    /// 1: get all headers of an API call. Answered by [`Reply::Headers`](crate::Reply::Headers).
    Headers(HeadersRequest),
    /// 2: list the tokens that the caller may read. Answered by [`Reply::List`](crate::Reply::List).
    List(PageRequest),
    /// 3: describe the daemon and its tokens. Answered by [`Reply::Status`](crate::Reply::Status).
    Status(StatusRequest),
    /// 4: ask the provider for a new token now; for operators. Answered by
    /// [`Reply::Refreshed`](crate::Reply::Refreshed).
    Refresh(RefreshRequest),
    /// 5: report that an API refused a token. Answered by [`Reply::Rejected`](crate::Reply::Rejected).
    Reject(RejectRequest),
    /// 6: describe tokens now and at every change. Answered by any number of
    /// [`Reply::Event`](crate::Reply::Event), all with the id of this request.
    Watch(WatchRequest),
    /// 7: return the daemon's version. Answered by [`Reply::Version`](crate::Reply::Version).
    Version,
    /// 8: explain why a subject may or may not read a token. Answered by [`Reply::Explained`](crate::Reply::Explained).
    Explain(ExplainRequest),
}

/// Requests an access token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetRequest {
    /// The name of the token.
    pub name: TokenName,
    /// How long to wait, and how long the token must last.
    pub options: CallOptions,
    /// The variant of the token.
    #[serde(deserialize_with = "BoundedVariant::deserialize")]
    pub variant: Variant,
}

/// Requests the headers of an API call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadersRequest {
    /// The name of the token.
    pub name: TokenName,
    /// How long to wait, and how long the token must last.
    pub options: CallOptions,
    /// The headers that the configuration leaves to the caller (`caller_headers`).
    #[serde(deserialize_with = "limits::supplied")]
    pub supplied: Vec<CallerHeader>,
    /// The names of the `caller_headers` that this call leaves out.
    #[serde(deserialize_with = "limits::omitted")]
    pub omitted: Vec<String>,
    /// The variant of the token.
    #[serde(deserialize_with = "BoundedVariant::deserialize")]
    pub variant: Variant,
}

/// A header that the caller supplies for one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerHeader {
    /// The field name (RFC 9110 section 5.1). Case does not matter.
    pub name: String,
    /// The field value (RFC 9110 section 5.5).
    pub value: String,
}

/// Requests a page of a list, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRequest {
    /// The last name of the page before; `None` for the first page.
    pub after: Option<TokenName>,
}

/// Requests a page of the status of all tokens, or the detailed status of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRequest {
    /// The only token to describe. The reply then has its variants too.
    pub name: Option<TokenName>,
    /// The last name of the page before; `None` for the first page.
    pub after: Option<TokenName>,
}

/// Requests a new token from the provider, whatever the schedule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshRequest {
    /// The name of the token.
    pub name: TokenName,
    /// See [`CallOptions::deadline_ms`].
    pub deadline_ms: u32,
    /// The variant of the token.
    #[serde(deserialize_with = "BoundedVariant::deserialize")]
    pub variant: Variant,
}

/// Reports that an API refused a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectRequest {
    /// The name of the token.
    pub name: TokenName,
    /// The fingerprint of the refused token. If the daemon already holds another one, it does nothing.
    pub fingerprint: Fingerprint,
    /// See [`CallOptions::deadline_ms`].
    pub deadline_ms: u32,
    /// The variant with which the caller got the token.
    #[serde(deserialize_with = "BoundedVariant::deserialize")]
    pub variant: Variant,
}

/// Subscribes to the conditions of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    /// The tokens, each of them once.
    #[serde(deserialize_with = "limits::watched")]
    pub tokens: Vec<WatchedToken>,
    /// Whether the events carry the tokens themselves.
    pub with_tokens: bool,
}

/// A token to watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchedToken {
    /// The name of the token.
    pub name: TokenName,
    /// The variant of the token.
    #[serde(deserialize_with = "BoundedVariant::deserialize")]
    pub variant: Variant,
}

/// The token as configured.
impl From<TokenName> for WatchedToken {
    fn from(name: TokenName) -> Self {
        Self { name, variant: Variant::default() }
    }
}

/// Asks why a subject may or may not read a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// The name of the token.
    pub name: TokenName,
    /// The variant of the token.
    #[serde(deserialize_with = "BoundedVariant::deserialize")]
    pub variant: Variant,
    /// The subject of the decision.
    pub subject: Subject,
}

/// The subject of a decision. Only operators may ask about others than themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// 0: the caller of this connection.
    Caller,
    /// 1: a user by name or number, with its groups and nothing else.
    User(String),
    /// 2: the running process with this id.
    Process(u32),
    /// 3: any process of this systemd system unit, about which nothing else is known.
    Unit(String),
}

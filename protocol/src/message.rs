//! What callers ask and what the daemon answers.
//!
//! These types are the wire format (see the crate's documentation): enums are append-only, a field never
//! changes, and no type carries a serde attribute.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{ExplainRequest, ExplainedReply, Secret, TokenName};

/// A point in wall time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The same point as the standard library's type. A point past what that type can hold becomes the epoch.
    pub fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.0)).unwrap_or(UNIX_EPOCH)
    }
}

/// Tells one token from another without telling the token: eight bytes of a keyed hash.
///
/// The key is the daemon's own, so a fingerprint says nothing about the token and cannot be used to test
/// a guess. It is written as sixteen hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 8]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The text is not a [`Fingerprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is sixteen hexadecimal digits")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(FingerprintError);
        }
        u64::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| FingerprintError)
    }
}

/// What a caller asks. The comments give each variant's number on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// 0: the access token itself. Answered by [`Reply::Token`].
    Get(GetRequest),
    /// 1: the whole header set of an API call. Answered by [`Reply::Headers`].
    Headers(HeadersRequest),
    /// 2: the names that the caller may have. Answered by [`Reply::List`].
    List(PageRequest),
    /// 3: the condition of the daemon and of the tokens that the caller may see. Answered by [`Reply::Status`].
    Status(PageRequest),
    /// 4: ask the provider for a new token now. For operators. Answered by [`Reply::Refreshed`].
    Refresh(RefreshRequest),
    /// 5: an API refused this token. Answered by [`Reply::Rejected`].
    Reject(RejectRequest),
    /// 6: tell now and at every change. Answered by any number of [`Reply::Event`], all under this request's id.
    Watch(WatchRequest),
    /// 7: which daemon is this? Answered by [`Reply::Version`].
    Version,
    /// 8: why may somebody have a token or not? Answered by [`Reply::Explained`].
    Explain(ExplainRequest),
}

/// How long a caller will wait, and how long the token must last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The caller's deadline: milliseconds from the request's arrival after which no answer is of use.
    /// 0 asks only for what is held.
    pub deadline_ms: u32,
    /// The least remaining lifetime that is of use, in milliseconds. 0 takes any valid token.
    pub min_ttl_ms: u32,
}

/// The form in which a caller wants a token, out of what the configuration lets it choose. An empty list
/// leaves the configured terms as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Variant {
    /// These scopes alone (RFC 6749 section 3.3).
    pub scope: Vec<String>,
    /// For these resources (RFC 8707).
    pub resource: Vec<String>,
    /// For these audiences.
    pub audience: Vec<String>,
}

impl Variant {
    /// Whether it is the token as configured.
    pub fn is_empty(&self) -> bool {
        self.scope.is_empty() && self.resource.is_empty() && self.audience.is_empty()
    }
}

/// Asks for an access token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetRequest {
    /// Which token.
    pub name: TokenName,
    /// How long to wait and how long it must last.
    pub terms: Terms,
    /// In which form.
    pub variant: Variant,
}

/// Asks for a header set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadersRequest {
    /// Which token.
    pub name: TokenName,
    /// How long to wait and how long it must last.
    pub terms: Terms,
    /// The headers that the configuration leaves to the caller (`caller_headers`).
    pub supplied: Vec<CallerHeader>,
    /// Headers of `caller_headers` that this call does without, because its command is exempt from them.
    pub omitted: Vec<String>,
    /// In which form.
    pub variant: Variant,
}

/// A header that the caller supplies for one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerHeader {
    /// The field name (RFC 9110 section 5.1), matched without regard to case.
    pub name: String,
    /// The field value (RFC 9110 section 5.5).
    pub value: String,
}

/// Asks for a page of a listing, in order of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRequest {
    /// The last name of the page before, or `None` for the first page.
    pub after: Option<TokenName>,
}

/// Asks for a new token whatever the schedule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshRequest {
    /// Which token.
    pub name: TokenName,
    /// As in [`Terms::deadline_ms`].
    pub deadline_ms: u32,
}

/// Reports that an API refused a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectRequest {
    /// Which token.
    pub name: TokenName,
    /// The refused one. If another is current by now, nothing happens: the caller only held an old one.
    pub fingerprint: Fingerprint,
    /// As in [`Terms::deadline_ms`].
    pub deadline_ms: u32,
    /// In which form.
    pub variant: Variant,
}

/// Subscribes to tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    /// Which tokens.
    pub names: Vec<TokenName>,
}

/// What the daemon answers. The comments give each variant's number on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// 0: a valid access token.
    Token(TokenReply),
    /// 1: the headers of an API call.
    Headers(HeadersReply),
    /// 2: a page of names.
    List(ListReply),
    /// 3: a page of conditions.
    Status(StatusReply),
    /// 4: the provider was asked.
    Refreshed(RefreshedReply),
    /// 5: what became of a refused token.
    Rejected(RejectedReply),
    /// 6: the present condition of a watched token.
    Event(EventReply),
    /// 7: which daemon this is.
    Version(VersionReply),
    /// 8: the request was not granted.
    Error(ErrorReply),
    /// 9: why somebody may have a token or not.
    Explained(ExplainedReply),
}

/// The condition of a token. A valid token is handed out in the first three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// 0: valid, and no new one is due.
    Fresh,
    /// 1: valid, and a new one is being asked for.
    Refreshing,
    /// 2: valid, and the last attempt to get a new one failed.
    Degraded,
    /// 3: none, and no attempt has failed: either the first has not ended, or the token expired unreplaced.
    Pending,
    /// 4: none; the last attempt failed in a way that passes.
    Unavailable,
    /// 5: none; the provider refuses, or the daemon cannot read its own secret. An operator is needed.
    Refused,
}

impl State {
    /// The state as one lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Refreshing => "refreshing",
            Self::Degraded => "degraded",
            Self::Pending => "pending",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
        }
    }
}

/// What went wrong with a token request, by what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorClass {
    /// 0: no connection: DNS, routing, a refused or reset connection.
    Unreachable,
    /// 1: the provider took longer than the deadline of one attempt.
    Timeout,
    /// 2: the provider's certificate or its TLS is not good.
    Tls,
    /// 3: the provider asks for fewer requests (429).
    Throttled,
    /// 4: the provider failed (5xx, `temporarily_unavailable`, `server_error`).
    Server,
    /// 5: the answer is not a token response (RFC 6749 section 5.1).
    Malformed,
    /// 6: the provider refused the request (RFC 6749 section 5.2).
    Refused,
    /// 7: a secret that the request needs could not be read on this host.
    Secret,
    /// 8: a fault of the daemon's own.
    Internal,
}

impl ErrorClass {
    /// The class as one lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Throttled => "throttled",
            Self::Server => "server",
            Self::Malformed => "malformed",
            Self::Refused => "refused",
            Self::Secret => "secret",
            Self::Internal => "internal",
        }
    }
}

/// How good a handed-out token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Milliseconds since the request that brought the token was sent.
    pub age_ms: u64,
    /// Milliseconds that it remains valid, at the moment of the reply.
    pub expires_in_ms: u64,
    /// The same end in wall time.
    pub expires_at: Timestamp,
    /// Its condition.
    pub state: State,
    /// Why the last attempt to renew it failed, if it did.
    pub last_error: Option<ErrorClass>,
    /// When it will be renewed next.
    pub next_attempt: Option<Timestamp>,
    /// Names this very token, as in [`RejectRequest`].
    pub fingerprint: Fingerprint,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenReply {
    /// How good it is.
    pub info: TokenInfo,
    /// The access token.
    pub token: Secret,
}

/// The headers of an API call, `Authorization` first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadersReply {
    /// How good the token in them is.
    pub info: TokenInfo,
    /// The headers in order.
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
    /// The names, in order.
    pub tokens: Vec<ListEntry>,
    /// Whether a page follows.
    pub more: bool,
}

/// A name that the caller may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEntry {
    /// The name.
    pub name: TokenName,
    /// The token's condition.
    pub state: State,
}

/// A page of conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReply {
    /// The daemon's own condition.
    pub daemon: DaemonStatus,
    /// The tokens, in order of their names.
    pub tokens: Vec<TokenStatus>,
    /// Whether a page follows.
    pub more: bool,
}

/// The daemon's own condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its release, as in `1.2.3`.
    pub version: String,
    /// Its process id. 0 to anybody but an operator.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// Open connections, this one among them. 0 to anybody but an operator.
    pub connections: u32,
    /// When a reload last failed; `None` once one has succeeded, and to anybody but an operator.
    pub reload_failed_at: Option<Timestamp>,
    /// Further facts about the daemon.
    pub attributes: Vec<Attribute>,
}

/// The condition of one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// Its name.
    pub name: TokenName,
    /// The `[provider.NAME]` that it comes from.
    pub provider: String,
    /// Its condition.
    pub state: State,
    /// The held token, while it is valid.
    pub held: Option<HeldToken>,
    /// The last failure since the last success.
    pub last_error: Option<LastError>,
    /// Failures in a row.
    pub failures: u32,
    /// When the provider will be asked next.
    pub next_attempt: Option<Timestamp>,
    /// Token requests sent since the daemon started.
    pub requests: u64,
    /// Hand-outs since the daemon started.
    pub hand_outs: u64,
    /// How the provider's replies departed from the RFCs, and how often.
    pub deviations: Vec<Deviation>,
    /// Further facts about the token.
    pub attributes: Vec<Attribute>,
}

/// A token that is held, without the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldToken {
    /// As in [`TokenInfo::age_ms`].
    pub age_ms: u64,
    /// As in [`TokenInfo::expires_in_ms`].
    pub expires_in_ms: u64,
    /// As in [`TokenInfo::expires_at`].
    pub expires_at: Timestamp,
    /// As in [`TokenInfo::fingerprint`].
    pub fingerprint: Fingerprint,
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// Its class.
    pub class: ErrorClass,
    /// What happened, for a person. Never a reply's body.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// A departure from the RFCs that was tolerated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deviation {
    /// Which, as a word such as `expires_in-string`.
    pub kind: String,
    /// How often.
    pub count: u64,
}

/// A further fact, for people. Facts stand in order of their names, each name once.
///
/// A program may show it and must not rely on it: any may be missing, and the value is worded for a reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// What it is about: a word in lower case, with hyphens, such as `clock-skew` or `client-secret`.
    pub name: String,
    /// What there is to say.
    pub value: String,
}

/// The provider was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshedReply {
    /// The token now held.
    pub info: TokenInfo,
    /// Whether it is another one than before; a provider that caches may give the same again.
    pub changed: bool,
}

/// What became of a refused token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedReply {
    /// What was done.
    pub outcome: RejectOutcome,
    /// The token now held.
    pub info: TokenInfo,
}

/// What was done about a refused token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RejectOutcome {
    /// 0: it was current, and the provider gave a new one.
    Replaced,
    /// 1: it was not current any more. Get the current one and try again.
    Superseded,
    /// 2: the provider gave the same token again. The API's refusal has another cause.
    Unchanged,
    /// 3: it was current, but it is too new or the provider was asked too lately to be asked again.
    TooSoon,
}

/// The condition of a watched token, sent at once and after every change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventReply {
    /// Its name.
    pub name: TokenName,
    /// Its condition.
    pub state: State,
    /// The held token, while it is valid.
    pub held: Option<HeldToken>,
    /// Why the last attempt failed, if it did.
    pub last_error: Option<ErrorClass>,
    /// When the provider will be asked next.
    pub next_attempt: Option<Timestamp>,
}

/// Which daemon this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReply {
    /// The daemon's release, as in `1.2.3`.
    pub daemon: String,
    /// The oldest protocol version that it speaks.
    pub oldest: u8,
    /// The newest.
    pub newest: u8,
}

/// Why a request was not granted, by what the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// 0: the caller may not have it, or (to anyone but an operator) there is no such token.
    NotAllowed,
    /// 1: there is no such token. Only operators are told.
    UnknownToken,
    /// 2: no token now, for a reason that passes. Try again.
    Unavailable,
    /// 3: no token, and an operator is needed.
    Refused,
    /// 4: the caller's deadline passed.
    DeadlineExceeded,
    /// 5: the request makes no sense: a malformed message, a missing or unknown caller header.
    InvalidRequest,
    /// 6: the frame's protocol version is not spoken here.
    UnsupportedVersion,
    /// 7: the caller has too much open or in flight. Try again with less.
    Overloaded,
    /// 8: the provider's tokens do not live as long as `min_ttl` asks.
    MinTtlUnreachable,
    /// 9: the daemon is stopping. Connect again.
    ShuttingDown,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What the caller can do.
    pub code: ErrorCode,
    /// The same for a person, in a sentence without policy, secrets or a provider's words but its error code.
    pub message: String,
    /// Why the provider gave no token, where that is the reason.
    pub class: Option<ErrorClass>,
    /// When the provider will be asked next, where that is of use; with [`ErrorCode::Overloaded`], when there is room
    /// again, where that can be told.
    pub next_attempt: Option<Timestamp>,
    /// The longest remaining lifetime at hand in milliseconds, with [`ErrorCode::MinTtlUnreachable`].
    pub best_ttl_ms: Option<u64>,
}

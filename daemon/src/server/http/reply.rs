//! Writes the replies over HTTP. Pure but for the remaining lifetimes, for which the caller gives the time.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tokend_protocol::{
    BootInstant, ErrorCode, ErrorReply, Header, RejectOutcome, Reply, Timestamp, TokenInfo, TokenReply,
    documents::{self, Dialect, rfc3339},
};

use super::request::Form;

/// A reply before it is written.
#[derive(Debug)]
pub struct Written {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// Why a request is refused or failed (RFC 9457).
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// The word for the kind of error that `tokenctl --json` has too.
    pub code: &'static str,
    pub detail: Cow<'static, str>,
    /// Why the provider gave no token, if that is the reason.
    pub class: Option<&'static str>,
    /// In seconds.
    pub retry_after: Option<u64>,
    /// The longest lifetime at hand, in seconds, if that is less than was asked for.
    pub best_ttl: Option<u64>,
    /// The method for this path, if it is another one.
    pub allow: Option<Method>,
    /// Whether the connection is closed.
    pub closes: bool,
}

#[derive(Serialize)]
struct ProblemDocument<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best_ttl: Option<u64>,
}

#[derive(Serialize)]
struct TokenDocument<'a> {
    access_token: &'a str,
    token_type: &'a str,
    scope: Option<&'a str>,
    #[serde(flatten)]
    info: Info,
}

#[derive(Serialize)]
struct HeadersDocument<'a> {
    headers: HeaderSet<'a>,
    #[serde(flatten)]
    info: Info,
}

#[derive(Serialize)]
struct RejectedDocument {
    outcome: &'static str,
    #[serde(flatten)]
    info: Info,
}

#[derive(Serialize)]
struct ListDocument<'a> {
    tokens: Vec<Listed<'a>>,
    more: bool,
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    state: &'static str,
}

/// The lifetime of a token.
#[derive(Serialize)]
struct Info {
    /// In whole seconds (RFC 6749 section 5.1).
    expires_in: u64,
    /// As in RFC 3339.
    expires_at: String,
    fingerprint: String,
    state: &'static str,
}

struct HeaderSet<'a>(&'a [Header]);

impl Serialize for HeaderSet<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut set = serializer.serialize_map(Some(self.0.len()))?;
        for header in self.0 {
            set.serialize_entry(&header.name, header.value.expose())?;
        }
        set.end()
    }
}

impl Written {
    fn json(document: &impl Serialize) -> Self {
        Self::new(StatusCode::OK, "application/json", document)
    }

    fn new(status: StatusCode, media_type: &'static str, document: &impl Serialize) -> Self {
        // Strings, numbers and structs of them can always be written as JSON.
        let mut body = serde_json::to_vec(document).unwrap_or_default();
        body.push(b'\n');
        Self::text(status, media_type, body)
    }

    fn text(status: StatusCode, media_type: &'static str, body: Vec<u8>) -> Self {
        let mut written = Self { status, headers: HeaderMap::new(), body };
        written.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        written.with(CACHE_CONTROL, HeaderValue::from_static("no-store"))
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The reply for hyper, with this body.
    pub fn into_response<B>(self, body: impl FnOnce(Vec<u8>) -> B) -> Response<B> {
        let mut response = Response::new(body(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// Writes the answer of a session.
pub fn write(reply: &Reply, form: Form, now: BootInstant, wall: Timestamp) -> Written {
    match reply {
        Reply::Token(token) if form == Form::Authorization => authorization(token),
        Reply::Token(TokenReply { info: held, token, token_type, scope }) => {
            let (access_token, scope) = (token.expose(), scope.as_deref());
            Written::json(&TokenDocument { access_token, token_type, scope, info: info(held, now) })
        }
        Reply::Headers(reply) => Written::json(&HeadersDocument {
            headers: HeaderSet(&reply.headers),
            info: info(&reply.info, now),
        }),
        Reply::Rejected(reply) => {
            let outcome = match reply.outcome {
                RejectOutcome::Replaced => "replaced",
                RejectOutcome::Superseded => "superseded",
                RejectOutcome::Unchanged => "unchanged",
                RejectOutcome::TooSoon => "too-soon",
            };
            Written::json(&RejectedDocument { outcome, info: info(&reply.info, now) })
        }
        Reply::List(list) => {
            let listed = list.tokens.iter();
            let listed =
                listed.map(|entry| Listed { name: entry.name.as_str(), state: entry.state.as_str() });
            Written::json(&ListDocument { tokens: listed.collect(), more: list.more })
        }
        Reply::Status(reply) => {
            Written::json(&documents::page(&reply.daemon, &reply.tokens, Some(reply.more), now))
        }
        Reply::Error(error) => Problem::of(error, wall).write(),
        // No request over HTTP has another answer.
        _ => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "protocol", "the daemon gave another answer")
            .write(),
    }
}

/// Writes the metrics.
pub fn metrics(text: String, dialect: Dialect) -> Written {
    Written::text(StatusCode::OK, dialect.media_type(), text.into_bytes())
}

fn authorization(token: &TokenReply) -> Written {
    let value = Bytes::from(format!("{} {}", token.token_type, token.token.expose()));
    match HeaderValue::from_maybe_shared(value) {
        Ok(mut value) => {
            value.set_sensitive(true);
            let written =
                Written { status: StatusCode::NO_CONTENT, headers: HeaderMap::new(), body: Vec::new() };
            written.with(AUTHORIZATION, value).with(CACHE_CONTROL, HeaderValue::from_static("no-store"))
        }
        // No token is accepted that does not fit into a header.
        Err(_) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "protocol", "the token fits into no header")
                .write()
        }
    }
}

fn info(info: &TokenInfo, now: BootInstant) -> Info {
    Info {
        expires_in: info.remaining(now).as_secs(),
        expires_at: rfc3339(info.expires_at_wall.to_system_time()),
        fingerprint: info.fingerprint.to_string(),
        state: info.state.as_str(),
    }
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        let (class, retry_after, best_ttl, allow) = (None, None, None, None);
        Self { status, code, detail, class, retry_after, best_ttl, allow, closes: false }
    }

    pub fn invalid(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-request", detail)
    }

    pub fn no_such_path() -> Self {
        let detail = "there is no such path: see HTTP.md";
        Self::new(StatusCode::NOT_FOUND, "unknown-request", detail)
    }

    /// The problem of an error reply at this time.
    pub fn of(error: &ErrorReply, wall: Timestamp) -> Self {
        let (status, code) = match error.code {
            ErrorCode::NotAllowed => (StatusCode::FORBIDDEN, "not-allowed"),
            ErrorCode::UnknownToken => (StatusCode::NOT_FOUND, "unknown-token"),
            ErrorCode::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            ErrorCode::NeedsOperator => (StatusCode::SERVICE_UNAVAILABLE, "needs-operator"),
            ErrorCode::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting-down"),
            ErrorCode::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "deadline-exceeded"),
            ErrorCode::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "overloaded"),
            ErrorCode::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid-request"),
            ErrorCode::MinTtlUnreachable => (StatusCode::BAD_REQUEST, "min-ttl-unreachable"),
            ErrorCode::UnknownRequest | ErrorCode::UnsupportedVersion => {
                (StatusCode::INTERNAL_SERVER_ERROR, "protocol")
            }
        };
        let wait = error.next_attempt.map(|at| at.0.saturating_sub(wall.0).div_ceil(1000).max(1));
        let may_pass = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
        Self {
            class: error.class.map(tokend_protocol::ErrorClass::as_str),
            retry_after: wait.or((error.code != ErrorCode::NeedsOperator).then_some(1)).filter(|_| may_pass),
            best_ttl: error.best_ttl_ms.map(|best| best / 1000),
            ..Self::new(status, code, error.message.clone())
        }
    }

    pub fn write(&self) -> Written {
        let document = ProblemDocument {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            class: self.class,
            best_ttl: self.best_ttl,
        };
        let mut written = Written::new(self.status, "application/problem+json", &document);
        if let Some(seconds) = self.retry_after {
            written = written.with(RETRY_AFTER, seconds.into());
        }
        if let Some(Ok(method)) = self.allow.as_ref().map(|method| HeaderValue::from_str(method.as_str())) {
            written = written.with(ALLOW, method);
        }
        if self.closes { written.with(CONNECTION, HeaderValue::from_static("close")) } else { written }
    }
}

impl fmt::Display for Written {
    /// As it is on the wire, for a caller that no server takes: see [`super::refusal`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP/1.1 {}\r\n", self.status)?;
        for (name, value) in &self.headers {
            write!(f, "{name}: {}\r\n", value.to_str().unwrap_or_default())?;
        }
        write!(f, "content-length: {}\r\n\r\n{}", self.body.len(), String::from_utf8_lossy(&self.body))
    }
}

//! The request of each call. A retry builds it again, because the remaining time has changed.

use std::fmt;
use std::time::Duration;

use tokend_protocol::{
    CallOptions, CallerHeader, ExplainRequest, Fingerprint, GetRequest, HeadersRequest, PageRequest,
    RefreshRequest, RejectRequest, Request, StatusRequest, Subject, TokenName, Variant, WatchRequest,
    WatchedToken,
};

/// The caller's part of the headers of an API call: values for headers that the configuration leaves to the caller,
/// and headers that this call leaves out.
///
/// ```
/// use tokend_client::CallerHeaders;
///
/// let headers = CallerHeaders::new().supply("Requestor-ID", "4711").omit("Subscription-Key");
/// // Values may be personal data, so they are not shown.
/// assert!(!format!("{headers:?}").contains("4711"));
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CallerHeaders {
    supplied: Vec<CallerHeader>,
    omitted: Vec<String>,
}

impl CallerHeaders {
    /// Supplies nothing and leaves out nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Supplies the value of one of the token's `caller_headers`.
    #[must_use]
    pub fn supply(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.supplied.push(CallerHeader { name: name.into(), value: value.into() });
        self
    }

    /// Leaves out one of the token's `caller_headers`, for an API call that does not need it.
    #[must_use]
    pub fn omit(mut self, name: impl Into<String>) -> Self {
        self.omitted.push(name.into());
        self
    }
}

impl fmt::Debug for CallerHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let supplied: Vec<_> = self.supplied.iter().map(|header| &header.name).collect();
        f.debug_struct("CallerHeaders").field("supplied", &supplied).field("omitted", &self.omitted).finish()
    }
}

/// The token, variant and lifetime that a call asks for.
#[derive(Clone, Copy)]
pub(crate) struct TokenCall<'a> {
    pub(crate) name: &'a TokenName,
    pub(crate) variant: &'a Variant,
    pub(crate) min_ttl: Duration,
}

impl TokenCall<'_> {
    fn options(self, deadline_ms: u32) -> CallOptions {
        CallOptions { deadline_ms, min_ttl_ms: round_up(self.min_ttl) }
    }

    fn names(self) -> (TokenName, Variant) {
        (self.name.clone(), self.variant.clone())
    }
}

pub(crate) fn token(token_call: TokenCall<'_>) -> impl Fn(u32) -> Request {
    move |deadline_ms| {
        let (name, variant) = token_call.names();
        Request::Get(GetRequest { name, options: token_call.options(deadline_ms), variant })
    }
}

pub(crate) fn headers(token_call: TokenCall<'_>, caller: &CallerHeaders) -> impl Fn(u32) -> Request {
    move |deadline_ms| {
        let (name, variant) = token_call.names();
        let CallerHeaders { supplied, omitted } = caller.clone();
        let options = token_call.options(deadline_ms);
        Request::Headers(HeadersRequest { name, options, supplied, omitted, variant })
    }
}

pub(crate) fn refresh(token_call: TokenCall<'_>) -> impl Fn(u32) -> Request {
    move |deadline_ms| {
        let (name, variant) = token_call.names();
        Request::Refresh(RefreshRequest { name, deadline_ms, variant })
    }
}

pub(crate) fn reject(token_call: TokenCall<'_>, fingerprint: Fingerprint) -> impl Fn(u32) -> Request {
    move |deadline_ms| {
        let (name, variant) = token_call.names();
        Request::Reject(RejectRequest { name, fingerprint, deadline_ms, variant })
    }
}

pub(crate) fn explain(token_call: TokenCall<'_>, subject: &Subject) -> impl Fn(u32) -> Request {
    move |_| {
        let (name, variant) = token_call.names();
        Request::Explain(ExplainRequest { name, variant, subject: subject.clone() })
    }
}

pub(crate) fn list(after: Option<&TokenName>) -> impl Fn(u32) -> Request {
    move |_| Request::List(PageRequest { after: after.cloned() })
}

pub(crate) fn status(after: Option<&TokenName>) -> impl Fn(u32) -> Request {
    move |_| Request::Status(StatusRequest { name: None, after: after.cloned() })
}

pub(crate) fn status_of(name: &TokenName) -> impl Fn(u32) -> Request {
    move |_| Request::Status(StatusRequest { name: Some(name.clone()), after: None })
}

/// Watches the conditions of tokens as configured.
pub(crate) fn watch(names: &[TokenName]) -> Request {
    let tokens = names.iter().cloned().map(WatchedToken::from).collect();
    Request::Watch(WatchRequest { tokens, with_tokens: false })
}

pub(crate) fn version(_deadline_ms: u32) -> Request {
    Request::Version
}

/// Rounds up to whole milliseconds, because a token that expires a little too early is of no use.
fn round_up(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_lifetime_is_rounded_up_and_saturates() {
        assert_eq!(round_up(Duration::ZERO), 0);
        assert_eq!(round_up(Duration::from_nanos(1)), 1);
        assert_eq!(round_up(Duration::from_secs(90)), 90_000);
        assert_eq!(round_up(Duration::MAX), u32::MAX);
    }
}

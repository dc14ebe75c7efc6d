//! What is asked: each call's request, made anew for each sending because the deadline in it shrinks.

use std::fmt;
use std::time::Duration;

use tokend_protocol::{
    CallOptions, CallerHeader, ExplainRequest, Fingerprint, GetRequest, HeadersRequest, PageRequest,
    RefreshRequest, RejectRequest, Request, StatusRequest, Subject, TokenName,
};

use crate::options;

/// The caller's part of a header set: values for headers that the configuration leaves to the caller, and
/// headers that this call does without.
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
    /// None supplied, none omitted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the value of one of the token's `caller_headers`.
    #[must_use]
    pub fn supply(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.supplied.push(CallerHeader { name: name.into(), value: value.into() });
        self
    }

    /// Does without one of the token's `caller_headers`, because the API's command is exempt from it.
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

pub(crate) fn token(name: &TokenName, terms: &options::Terms) -> impl Fn(u32) -> Request {
    move |deadline_ms| {
        let variant = terms.variant.clone();
        let options = CallOptions { deadline_ms, min_ttl_ms: round_up(terms.min_ttl) };
        Request::Get(GetRequest { name: name.clone(), options, variant })
    }
}

pub(crate) fn headers(
    name: &TokenName,
    terms: &options::Terms,
    caller: &CallerHeaders,
) -> impl Fn(u32) -> Request {
    move |deadline_ms| {
        Request::Headers(HeadersRequest {
            name: name.clone(),
            options: CallOptions { deadline_ms, min_ttl_ms: round_up(terms.min_ttl) },
            supplied: caller.supplied.clone(),
            omitted: caller.omitted.clone(),
            variant: terms.variant.clone(),
        })
    }
}

pub(crate) fn list(after: Option<&TokenName>) -> impl Fn(u32) -> Request {
    move |_| Request::List(PageRequest { after: after.cloned() })
}

pub(crate) fn status(after: Option<&TokenName>) -> impl Fn(u32) -> Request {
    move |_| Request::Status(StatusRequest { name: None, after: after.cloned() })
}

pub(crate) fn refresh(name: &TokenName, terms: &options::Terms) -> impl Fn(u32) -> Request {
    move |deadline_ms| {
        let variant = terms.variant.clone();
        Request::Refresh(RefreshRequest { name: name.clone(), deadline_ms, variant })
    }
}

pub(crate) fn reject(
    name: &TokenName,
    terms: &options::Terms,
    fingerprint: Fingerprint,
) -> impl Fn(u32) -> Request {
    move |deadline_ms| {
        let variant = terms.variant.clone();
        Request::Reject(RejectRequest { name: name.clone(), fingerprint, deadline_ms, variant })
    }
}

pub(crate) fn explain(
    name: &TokenName,
    terms: &options::Terms,
    subject: &Subject,
) -> impl Fn(u32) -> Request {
    move |_| {
        let (variant, subject) = (terms.variant.clone(), subject.clone());
        Request::Explain(ExplainRequest { name: name.clone(), variant, subject })
    }
}

pub(crate) fn version(_deadline_ms: u32) -> Request {
    Request::Version
}

/// To whole milliseconds, upwards: a token that lasts a little too short is of no use.
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

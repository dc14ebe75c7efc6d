//! One token request and its outcome. Nothing here schedules, and nothing is asked twice in the same words: where
//! several client secrets are configured, one that the provider refuses is followed by the next.

pub mod deviation;
pub mod discovery;
pub mod error;
pub mod http;
pub mod jwt;
pub mod redact;
pub mod request;
pub mod response;
pub mod secret_choice;
pub mod skew;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{ErrorClass, Secret};

pub use deviation::Deviation;
pub use secret_choice::SecretInUse;
pub use skew::ClockSkew;

/// Where a token comes from. There are two: [`http::HttpProvider`] and the scripted one of the tests.
pub trait Provider: Send + Sync + 'static {
    /// Sends one token request. It must end by itself, in success or failure, within a bounded time.
    fn request(&self) -> impl Future<Output = Outcome> + Send;

    /// Ends when something on this host that the last request depended on has changed, so that the next one may
    /// end otherwise. It may cost something while it is waited for, and nothing else.
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

/// How a token request ended.
#[derive(Debug)]
pub struct Outcome {
    /// The token, or why there is none.
    pub result: Result<Granted, Failure>,
    /// Where the reply departed from the RFCs.
    pub deviations: Vec<Deviation>,
    /// How many token requests were sent.
    pub requests: u32,
    /// The client secret that brought the token, where several are configured.
    pub client_secret: Option<SecretInUse>,
    /// How far the provider's clock is off, where its reply tells the time.
    pub clock_skew: Option<ClockSkew>,
}

/// A token as the provider gave it.
#[derive(Debug)]
pub struct Granted {
    /// The access token.
    pub token: Secret,
    /// How long it is valid, counted from when the request was sent.
    pub lifetime: Duration,
    /// The token type that the provider named; `Bearer` in this spelling, also where it named none.
    pub token_type: Arc<str>,
    /// The scopes that the provider says it granted, separated by spaces.
    pub scope: Option<Arc<str>>,
}

/// Why a token request brought no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What can be done about it.
    pub class: ErrorClass,
    /// What happened, in words fit for a caller: a fixed text or an RFC 6749 error code.
    pub message: String,
    /// More for an operator alone: the provider's own description or the TLS library's words, cleaned and
    /// capped, or the path of a file.
    pub detail: Option<String>,
    /// The wait that the provider asked for (RFC 9110 section 10.2.3).
    pub retry_after: Option<Duration>,
    /// Whether the provider does not take the client for who it says it is, so that another secret may help.
    pub refuses_client: bool,
}

impl Outcome {
    /// The end of so many requests, with nothing more to tell.
    pub fn of(result: Result<Granted, Failure>, requests: u32) -> Self {
        Self { result, deviations: Vec::new(), requests, client_secret: None, clock_skew: None }
    }
}

impl Failure {
    /// A failure with no `Retry-After`.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), detail: None, retry_after: None, refuses_client: false }
    }

    /// The same with more for an operator.
    #[must_use]
    pub fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }
}

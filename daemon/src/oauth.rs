//! Sends one token request and returns its outcome. This module schedules and repeats nothing, except that a refused
//! client secret is followed by the next configured one.

pub mod assertion;
pub mod client;
pub mod discovery;
pub mod http;
pub mod redact;
pub mod reply;
pub mod request;
pub mod response;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{ErrorClass, Secret};

/// A source of one kind of token: [`http::HttpProvider`], or a scripted one in tests.
pub trait Provider: Send + Sync + 'static {
    /// Sends one token request. It ends by itself, in success or failure, within a bounded time.
    fn request(&self) -> impl Future<Output = Outcome> + Send;

    /// Ends when a secret file, a certificate or the `ca_file` of the last request has changed. Costs nothing unless it is awaited.
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

/// The message of a failure in which the provider gave a token that is not valid any more.
pub const EXPIRED_ON_ARRIVAL: &str = "an access token that had expired when it arrived";

/// The message of a failure that concerns a `ca_file` of this host, and no provider.
pub const CA_FILE_UNUSABLE: &str = "the ca_file cannot be used";

/// How a token request ended.
#[derive(Debug)]
pub struct Outcome {
    pub result: Result<Granted, Failure>,
    /// Where the reply deviated from the RFCs. `client-lib/tokenctl/JSON.md` explains each word.
    pub deviations: Vec<&'static str>,
    pub requests: u32,
    pub client_secret: Option<SecretInUse>,
    /// Details of the last request for `status NAME`, by key, such as `asked` and `provider-said`: operators alone see them.
    /// They are cleaned and capped, and never logged.
    pub facts: BTreeMap<&'static str, String>,
    /// By how many seconds the provider's clock is ahead of this host's, if the reply has a `Date`. Lifetimes do not depend
    /// on it. But an API that compares a token's claims with the wall clock may refuse the token.
    pub clock_skew: Option<i64>,
}

/// A token as the provider gave it.
#[derive(Debug)]
pub struct Granted {
    pub token: Secret,
    /// Counted from when the request was sent.
    pub lifetime: Duration,
    /// The scopes that the provider says it granted, separated by spaces.
    pub scope: Option<Arc<str>>,
}

/// Why a token request brought no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub class: ErrorClass,
    /// The message for callers: a fixed text or an RFC 6749 error code.
    pub message: String,
    /// Details that only operators and the log see: the source of a secret, or what to do. No words of the provider.
    pub detail: Option<String>,
    /// The provider's words, or the TLS library's text about its certificate, cleaned and capped. Never logged.
    pub provider_said: Option<String>,
    /// `Retry-After` (RFC 9110 section 10.2.3).
    pub retry_after: Option<Duration>,
    /// Whether it lasts until an operator changes something.
    pub needs_operator: bool,
    /// For a refusal that is not by its OAuth error code about what was asked.
    pub refusal: Option<Refusal>,
}

/// A refusal that another client secret, or the next answer of a gateway, may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The provider did not authenticate the client: `invalid_client`, or a 401 without an OAuth error code.
    Client,
    /// `invalid_grant`: the user name or the password, where the grant has them.
    User,
    /// The answer has this HTTP status and no OAuth error code. It may be a gateway's.
    WithoutCode(u16),
    /// The same, of a request with a user's password, which the answer may be about.
    PasswordWithoutCode(u16),
    /// Status 400 with an error code that no RFC defines.
    UnknownCode,
}

/// The client secret that brought a token, where several are configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretInUse {
    /// Its position in the configuration, from 0. Another one than 0 means that a rotation is not finished.
    pub index: u8,
    /// How many are configured.
    pub of: u8,
}

impl Outcome {
    pub fn of(result: Result<Granted, Failure>, requests: u32) -> Self {
        let (deviations, facts) = (Vec::new(), BTreeMap::new());
        Self { result, deviations, requests, client_secret: None, facts, clock_skew: None }
    }
}

impl Failure {
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        let needs_operator = matches!(class, ErrorClass::Refused | ErrorClass::Secret);
        let message = message.into();
        let (detail, provider_said, retry_after, refusal) = (None, None, None, None);
        Self { class, message, detail, provider_said, retry_after, needs_operator, refusal }
    }

    /// Whether a wrong client secret may explain it, so that another one may help.
    pub fn may_be_the_secret(&self) -> bool {
        use Refusal::{Client, PasswordWithoutCode, UnknownCode, WithoutCode};
        matches!(self.refusal, Some(Client | WithoutCode(400 | 403) | PasswordWithoutCode(_) | UnknownCode))
    }

    /// Whether it may be a gateway's, and so pass by itself.
    pub fn may_be_a_gateways(&self) -> bool {
        matches!(self.refusal, Some(Refusal::WithoutCode(_) | Refusal::PasswordWithoutCode(400 | 403)))
    }

    #[must_use]
    pub fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }
}

impl fmt::Display for SecretInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = ["first", "second", "third"].get(usize::from(self.index)).unwrap_or(&"last");
        write!(f, "the {place} of {} is in use", self.of)?;
        if self.index > 0 {
            f.write_str("; the first is refused or cannot be read")?;
        }
        Ok(())
    }
}

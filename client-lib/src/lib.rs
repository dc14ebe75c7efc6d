//! Gets access tokens from the tokend daemon of this host.
//!
//! A service gets a token by its name in the daemon's configuration, each time that it needs one. The daemon has
//! requested the token before and renews it in time, so a call takes a few microseconds on a Unix socket. A call never
//! waits for the provider while the daemon holds a valid token. Do not cache the token: get it again for each piece of
//! work, or let a [source](#sources) keep it.
//!
//! ```no_run
//! use tokend_client::blocking::Client;
//!
//! let token = Client::from_env().token("psb")?;
//! let authorization: http::HeaderValue = token.header_value()?;
//! # let _ = authorization;
//! # Ok::<(), tokend_client::Error>(())
//! ```
//!
//! # Two clients
//!
//! [`blocking::Client`] needs no async runtime and is always available. The async `Client` needs the feature
//! `tokio`, which is off by default so that a small program does not build a runtime that it never uses. Both have the
//! same calls, the same types and the same errors.
//!
//! # Sources
//!
//! A service that needs a token for each of its own calls keeps a source: a [`blocking::TokenSource`], or the async
//! `TokenSource`. Reading the token costs no system call but the clock's, because the daemon sends each new token to the
//! source.
//!
//! ```no_run
//! use tokend_client::blocking::Client;
//!
//! let source = Client::from_env().token("psb")?.source();
//! let value: http::HeaderValue = source.header_value()?;
//! # let _ = value;
//! # Ok::<(), tokend_client::Error>(())
//! ```
//!
//! - A source never hands out a token that has expired. It waits for another one, until the client's deadline.
//! - While the daemon is away, the last token stays in use until it expires. The source connects again by itself, with a
//!   back-off of at most five seconds.
//! - If the daemon refuses the token, the source drops it at once and returns the error. It asks again at least every half minute,
//!   because a reload may permit the token.
//! - The watch of a source counts as a use of the token, so an on-demand token is renewed as long as the source exists.
//!
//! # Guarantees of every call
//!
//! - It ends at its deadline ([`Options::deadline`]), whatever the daemon does.
//! - If the daemon was restarted since the last call, the call connects again and repeats the request once. Every
//!   request may safely be repeated.
//! - An [`Error`] says what to do, and contains no secret. A token is a [`Secret`].
//!
//! A token's reply has the time of expiry and not a lifetime, so it stays true. [`TokenInfo::remaining`] and [`now`] give the
//! remaining lifetime.
//!
//! # When an API refuses a token
//!
//! Report the token to the daemon. It decides whether to ask for a new one, however many callers report the token.
//!
//! ```no_run
//! use tokend_client::{RejectOutcome, blocking::Client};
//! # fn call_api(_: &tokend_client::Secret) -> u16 { 401 }
//!
//! let token = Client::from_env().token("psb")?;
//! let reply = token.get()?;
//! if call_api(&reply.token) == 401 {
//!     let rejected = token.reject(reply.info.fingerprint)?;
//!     if matches!(rejected.outcome, RejectOutcome::Replaced | RejectOutcome::Superseded) {
//!         call_api(&token.get()?.token);
//!     }
//! }
//! # Ok::<(), tokend_client::Error>(())
//! ```
//!
//! `ApiClient` (feature `reqwest`) and `TokenLayer` (feature `tower`) do this for every request. With the feature `tracing`, sources
//! log new tokens, failures and rejections. `testing::FakeDaemon` (feature `testing`) is a daemon for the tests of a service.

/// The code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub mod blocking;
#[cfg(feature = "tokio")]
mod client;
mod deadline;
mod error;
mod failure;
mod options;
mod reply;
mod request;
mod source;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "reqwest")]
pub use client::{ApiClient, ApiError};
#[cfg(feature = "tokio")]
pub use client::{Client, Token, TokenSource, Watch};
#[cfg(feature = "tower")]
pub use client::{TokenLayer, WithToken};
pub use deadline::now;
pub use error::Error;
pub use options::{DEFAULT_DEADLINE, DEFAULT_SOCKET, Options, SOCKET_VARIABLE};
pub use reply::Status;
pub use request::CallerHeaders;
pub use source::{SourceHeaders, SourceToken};
pub use tokend_protocol::{
    Attribute, BootInstant, Count, DaemonStatus, Deviation, ErrorClass, EventReply, ExplainedCondition,
    ExplainedList, ExplainedReply, ExplainedRule, Fingerprint, FingerprintError, HEADERS_MAX, Header,
    HeadersReply, HeldToken, LastError, ListEntry, RefreshedReply, RejectOutcome, RejectedReply, Secret,
    State, Subject, SubjectFacts, TERMS_MAX, Timestamp, TokenInfo, TokenName, TokenNameError, TokenReply,
    TokenStatus, VERSION as PROTOCOL_VERSION, Variant, VariantStatus, VersionReply, WATCHED_TOKENS_MAX,
};

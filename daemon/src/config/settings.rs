//! Checked settings, by the keys that CONFIGURATION.md describes. Their equality decides what a reload keeps, and so does
//! the hash of [`CredentialSettings`].

mod client;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};
use url::Url;

use crate::access::{Principal, RootAccess, Rule};
use crate::quota::Quota;
use crate::secret_source::SecretSource;

pub use client::{
    AssertionAudience, AssertionSettings, BasicEncoding, ClientAuthentication, PrivateKeySettings,
    TlsSettings,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSettings {
    /// Where to listen, unless systemd passes a socket.
    pub socket: PathBuf,
    /// Where to speak HTTP, if anywhere, unless systemd passes a socket.
    pub http_socket: Option<PathBuf>,
    /// Where to give systemd the credentials of units, if anywhere, unless systemd passes a socket.
    pub credential_socket: Option<PathBuf>,
    pub socket_group: Option<Principal>,
    pub state_dir: PathBuf,
    pub state_key: Option<SecretSource>,
    pub egress_dir: Option<PathBuf>,
    pub max_connections: usize,
    pub quota: Quota,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminSettings {
    pub allow: Vec<Rule>,
    pub root: RootAccess,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSettings {
    /// The `NAME` of its `[provider.NAME]`, for people.
    pub provider: Arc<str>,
    /// The token request. Tokens with equal ones share one credential.
    pub credential: Arc<CredentialSettings>,
    pub max_requests_per_minute: Option<u32>,
    /// `None`: the policy chooses.
    pub refresh_before: Option<Duration>,
    /// `None` with `warm = "always"`: the token is renewed whether anybody uses it or not.
    pub idle_timeout: Option<Duration>,
    pub variants: Arc<VariantSettings>,
    pub headers: Box<[HeaderSettings]>,
    pub caller_headers: Box<[String]>,
    pub allow: Box<[Rule]>,
}

/// `variants`: the terms out of which a caller may choose a variant of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VariantSettings {
    pub terms: Terms,
    pub rules: Vec<TermRules>,
}

/// Rules of a term, besides those of the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TermRules {
    pub kind: TermKind,
    pub term: String,
    pub allow: Vec<Rule>,
}

/// A kind of terms that a caller may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TermKind {
    Scope,
    Resource,
    Audience,
}

/// All settings of a token request: the canonical key of a credential. Equal ones bring the same token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CredentialSettings {
    /// Shared by all tokens of a provider.
    pub client: Arc<ClientSettings>,
    pub grant: Grant,
    pub terms: Terms,
    pub params: BTreeMap<String, String>,
    pub default_lifetime: Duration,
    /// Whether a token with less scope than asked for is refused.
    pub scope_required: bool,
}

/// The settings of token requests that are in the section of a provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientSettings {
    pub endpoint: Endpoint,
    pub client_id: String,
    pub authentication: ClientAuthentication,
    /// Shared with the HTTP client.
    pub tls: Option<Arc<TlsSettings>>,
    pub accept: String,
    pub ca_file: Option<PathBuf>,
    pub proxy: Option<Url>,
    /// A `token_type` in replies that means `Bearer`.
    pub token_type: Option<String>,
}

/// The token endpoint (RFC 6749 section 3.2), or the issuer, whose metadata names it (RFC 8414, `OpenID` Connect
/// Discovery 1.0).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Endpoint {
    Token(Url),
    Issuer(Url),
}

/// `grant_type` with what it needs (RFC 6749 sections 4.3 to 4.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Grant {
    ClientCredentials,
    Password(Box<UserPassword>),
    /// An assertion that others make (RFC 7523 section 2.1).
    JwtBearer(Box<SecretSource>),
    /// RFC 8693.
    TokenExchange(Box<TokenExchange>),
    /// An extension. It may have an assertion (RFC 7521 section 4.1); other form fields are among the parameters.
    Other {
        grant_type: String,
        assertion: Option<Box<SecretSource>>,
    },
}

/// The token that is given in exchange (RFC 8693 section 2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TokenExchange {
    pub subject_token: SecretSource,
    pub subject_token_type: String,
    pub requested_token_type: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct UserPassword {
    pub username: String,
    pub password: SecretSource,
}

/// Scopes (RFC 6749 section 3.3), resources (RFC 8707) and audiences.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Terms {
    pub scope: TermSet,
    pub resource: TermSet,
    pub audience: TermSet,
}

/// Words whose order has no meaning but is kept for the wire, as in a scope (RFC 6749 section 3.3).
#[derive(Clone, Debug, Default)]
pub struct TermSet(Box<[String]>);

/// A header of an API call, besides `Authorization`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderSettings {
    pub name: String,
    pub value: HeaderValue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderValue {
    Fixed(String),
    /// Read when it is needed.
    Secret(SecretSource),
}

/// The keys of stored records depend on the names and the order.
impl Serialize for CredentialSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'a> {
            endpoint: &'a Endpoint,
            client_id: &'a str,
            authentication: &'a ClientAuthentication,
            grant: &'a Grant,
            #[serde(flatten)]
            terms: &'a Terms,
            params: &'a BTreeMap<String, String>,
            accept: &'a str,
            ca_file: &'a Option<PathBuf>,
            proxy: &'a Option<Url>,
            #[serde(skip_serializing_if = "Option::is_none")]
            tls: &'a Option<Arc<TlsSettings>>,
            default_lifetime: Duration,
            #[serde(skip_serializing_if = "Option::is_none")]
            token_type: &'a Option<String>,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            scope_required: bool,
        }
        let Self { client, grant, terms, params, default_lifetime, scope_required } = self;
        let ClientSettings { endpoint, client_id, authentication, tls, accept, ca_file, proxy, token_type } =
            &**client;
        let (default_lifetime, scope_required) = (*default_lifetime, *scope_required);
        let written = Written {
            endpoint,
            client_id,
            authentication,
            grant,
            terms,
            params,
            accept,
            ca_file,
            proxy,
            tls,
            default_lifetime,
            token_type,
            scope_required,
        };
        written.serialize(serializer)
    }
}

impl TermKind {
    pub const ALL: [Self; 3] = [Self::Scope, Self::Resource, Self::Audience];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scope => "scope",
            Self::Resource => "resource",
            Self::Audience => "audience",
        }
    }
}

impl Terms {
    pub fn of(&self, kind: TermKind) -> &TermSet {
        match kind {
            TermKind::Scope => &self.scope,
            TermKind::Resource => &self.resource,
            TermKind::Audience => &self.audience,
        }
    }
}

impl Endpoint {
    pub fn url(&self) -> &Url {
        match self {
            Self::Token(url) | Self::Issuer(url) => url,
        }
    }
}

impl Grant {
    pub const JWT_BEARER: &'static str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
    pub const TOKEN_EXCHANGE: &'static str = "urn:ietf:params:oauth:grant-type:token-exchange";

    /// The secret that the request needs besides that of the client, and its key in the configuration.
    pub fn secret(&self) -> Option<(&'static str, &SecretSource)> {
        match self {
            Self::Password(user) => Some(("password", &user.password)),
            Self::JwtBearer(assertion) => Some(("assertion", assertion)),
            Self::TokenExchange(exchange) => Some(("subject_token", &exchange.subject_token)),
            Self::Other { assertion, .. } => assertion.as_deref().map(|assertion| ("assertion", assertion)),
            Self::ClientCredentials => None,
        }
    }
}

impl TermSet {
    /// The terms in the order of the configuration.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// Each term once, sorted, so that equal sets compare and hash alike.
    fn sorted(&self) -> Vec<&str> {
        let mut terms: Vec<&str> = self.0.iter().map(String::as_str).collect();
        terms.sort_unstable();
        terms.dedup();
        terms
    }
}

impl FromIterator<String> for TermSet {
    fn from_iter<I: IntoIterator<Item = String>>(terms: I) -> Self {
        Self(terms.into_iter().collect())
    }
}

impl PartialEq for TermSet {
    fn eq(&self, other: &Self) -> bool {
        self.sorted() == other.sorted()
    }
}

impl Eq for TermSet {}

impl Serialize for TermSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.sorted())
    }
}

impl std::hash::Hash for TermSet {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.sorted().hash(state);
    }
}

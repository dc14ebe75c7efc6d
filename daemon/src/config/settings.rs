//! Checked settings. Their equality decides what a reload keeps, and so does the hash of [`CredentialSettings`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};
use url::Url;

use crate::access::{Principal, RootAccess, Rule};
use crate::quota::Quota;
use crate::secret_source::SecretSource;

/// `[daemon]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSettings {
    /// `socket`: where to listen, unless systemd passes a socket.
    pub socket: PathBuf,
    /// `socket_group`: the group that may connect to a socket made by the daemon itself.
    pub socket_group: Option<Principal>,
    /// `state_dir`: directory for tokens that survive a reboot.
    pub state_dir: PathBuf,
    /// `state_key`: seals the tokens that survive a reboot. Without it none does.
    pub state_key: Option<SecretSource>,
    /// `egress_dir`: the Unix sockets through which providers are reached. `None`: the daemon connects by itself.
    pub egress_dir: Option<PathBuf>,
    /// `max_connections`: open at once.
    pub max_connections: usize,
    /// `max_..._per_uid`: the limits of one user.
    pub quota: Quota,
}

/// `[admin]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminSettings {
    /// `allow`: who is an operator besides root and the daemon's own user.
    pub allow: Vec<Rule>,
    /// `root`: whether root needs no rule, be it for a token or as an operator.
    pub root: RootAccess,
}

/// `[token.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSettings {
    /// The `[provider.NAME]` it comes from, for people.
    pub provider: Arc<str>,
    /// The token request. Tokens with equal ones share one credential.
    pub credential: Arc<CredentialSettings>,
    /// `max_requests_per_minute` of the provider: the most that its host is sent.
    pub max_requests_per_minute: Option<u32>,
    /// `refresh_before`: how long before its expiry the token is renewed. `None`: the policy chooses.
    pub refresh_before: Option<Duration>,
    /// `idle_timeout` with `warm = "on-demand"`: how long after its last use it is still renewed. `None` with
    /// `warm = "always"`: it is renewed whether anybody uses it or not.
    pub idle_timeout: Option<Duration>,
    /// `variants`: scopes, resources and audiences that callers may choose.
    pub variants: VariantSettings,
    /// `headers`: the headers of an API call besides `Authorization`, in order of their names.
    pub headers: Vec<HeaderSettings>,
    /// `caller_headers`: the headers that the caller supplies per call.
    pub caller_headers: Vec<String>,
    /// `allow`: who may have it besides root and the daemon's own user.
    pub allow: Vec<Rule>,
}

/// `variants`: the terms out of which a caller may choose a variant of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VariantSettings {
    /// The terms of each kind.
    pub terms: Terms,
    /// Rules of single terms.
    pub rules: Vec<TermRules>,
}

/// Rules of a term, besides those of the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TermRules {
    /// The kind of the term.
    pub kind: TermKind,
    /// The term.
    pub term: String,
    /// The rules.
    pub allow: Vec<Rule>,
}

/// A kind of terms that a caller may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TermKind {
    /// A scope (RFC 6749 section 3.3).
    Scope,
    /// A resource (RFC 8707).
    Resource,
    /// An audience.
    Audience,
}

/// All settings of a token request: the canonical key of a credential. Equal ones bring the same token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CredentialSettings {
    /// `token_endpoint` or `issuer`.
    pub endpoint: Endpoint,
    /// `client_id`.
    pub client_id: String,
    /// `token_endpoint_auth_method` with what it needs.
    pub authentication: ClientAuthentication,
    /// `grant_type` with what it needs.
    pub grant: Grant,
    /// `scope`, `resource` and `audience`.
    #[serde(flatten)]
    pub terms: Terms,
    /// `params`: further form fields.
    pub params: BTreeMap<String, String>,
    /// `accept`: the Accept header of the token request.
    pub accept: String,
    /// `ca_file`: a trust root besides the system's.
    pub ca_file: Option<PathBuf>,
    /// `proxy`: an HTTP proxy for the token request.
    pub proxy: Option<Url>,
    /// `default_lifetime`: for replies that have none.
    pub default_lifetime: Duration,
}

/// The token endpoint, or the way to discover it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Endpoint {
    /// The token endpoint itself (RFC 6749 section 3.2).
    Token(Url),
    /// The issuer, whose metadata names the token endpoint (RFC 8414, `OpenID` Connect Discovery 1.0).
    Issuer(Url),
}

/// Client authentication, by the IANA names of the methods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum ClientAuthentication {
    /// `client_secret_basic`.
    SecretBasic {
        /// The client secrets, in order of preference. At least one.
        secrets: Vec<SecretSource>,
        /// How id and secret are joined.
        encoding: BasicEncoding,
    },
    /// `client_secret_post`.
    SecretPost {
        /// The client secrets, in order of preference. At least one.
        secrets: Vec<SecretSource>,
    },
    /// `none`: a public client.
    None,
}

/// How `client_secret_basic` joins id and secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum BasicEncoding {
    /// `form`: each form-encoded first, as RFC 6749 section 2.3.1 says.
    Form,
    /// `raw`: as they are, as some providers demand.
    Raw,
}

/// The grant with what it needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Grant {
    /// `client_credentials` (RFC 6749 section 4.4).
    ClientCredentials,
    /// `password` (RFC 6749 section 4.3).
    Password {
        /// The resource owner's user name.
        username: String,
        /// The resource owner's password.
        password: SecretSource,
    },
}

/// Terms of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Terms {
    /// Scopes (RFC 6749 section 3.3).
    pub scope: TermSet,
    /// Resources (RFC 8707), sent as they are.
    pub resource: TermSet,
    /// Audiences.
    pub audience: TermSet,
}

/// Words whose order has no meaning but is kept for the wire, as in a scope (RFC 6749 section 3.3).
#[derive(Clone, Debug, Default)]
pub struct TermSet(Vec<String>);

/// A header of an API call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderSettings {
    /// The field name, as configured.
    pub name: String,
    /// The field value.
    pub value: HeaderValue,
}

/// The value of a header of an API call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderValue {
    /// Written in the configuration.
    Fixed(String),
    /// Read when it is needed.
    Secret(SecretSource),
}

impl TermKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Scope, Self::Resource, Self::Audience];

    /// The kind as a configuration has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scope => "scope",
            Self::Resource => "resource",
            Self::Audience => "audience",
        }
    }
}

impl Terms {
    /// The terms of a kind.
    pub fn of(&self, kind: TermKind) -> &TermSet {
        match kind {
            TermKind::Scope => &self.scope,
            TermKind::Resource => &self.resource,
            TermKind::Audience => &self.audience,
        }
    }

    pub(super) fn of_mut(&mut self, kind: TermKind) -> &mut TermSet {
        match kind {
            TermKind::Scope => &mut self.scope,
            TermKind::Resource => &mut self.resource,
            TermKind::Audience => &mut self.audience,
        }
    }
}

impl Endpoint {
    /// The URL, of either kind.
    pub fn url(&self) -> &Url {
        match self {
            Self::Token(url) | Self::Issuer(url) => url,
        }
    }
}

impl ClientAuthentication {
    /// The client secrets, in order of preference; none for a public client.
    pub fn secrets(&self) -> &[SecretSource] {
        match self {
            Self::SecretBasic { secrets, .. } | Self::SecretPost { secrets } => secrets,
            Self::None => &[],
        }
    }
}

impl TermSet {
    /// The terms in the order of the configuration.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// Each term once, sorted, so that equal sets compare and hash alike.
    pub(crate) fn sorted(&self) -> Vec<&str> {
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

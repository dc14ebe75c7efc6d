//! How a client authenticates.

use std::path::PathBuf;

use serde::Serialize;

use crate::secret_source::SecretSource;
use crate::signing_key::SigningAlg;

/// `token_endpoint_auth_method` with what it needs. There is at least one secret; the first is preferred.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum ClientAuthentication {
    SecretBasic {
        secrets: Vec<SecretSource>,
        encoding: BasicEncoding,
    },
    SecretPost {
        secrets: Vec<SecretSource>,
    },
    None,
    /// An assertion that the daemon makes with the client secret (`OpenID` Connect Core 1.0 section 9).
    SecretJwt {
        secrets: Vec<SecretSource>,
        assertion: AssertionSettings,
    },
    /// An assertion that the daemon makes with a private key (RFC 7523 section 2.2).
    PrivateKeyJwt(Box<PrivateKeySettings>),
    /// An assertion that others make, such as a SPIFFE JWT-SVID.
    Assertion {
        assertions: Vec<SecretSource>,
        assertion_type: String,
    },
    /// `tls_client_auth` and `self_signed_tls_client_auth`: by the certificate of [`TlsSettings`] (RFC 8705 section 2).
    Tls,
}

/// The certificate of the client, for mutual TLS (RFC 8705). It is presented to a server that asks for one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TlsSettings {
    /// The file with the certificate and its chain.
    pub certificate: PathBuf,
    pub key: SecretSource,
    pub passphrase: Option<SecretSource>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct PrivateKeySettings {
    pub keys: Vec<SecretSource>,
    pub passphrase: Option<SecretSource>,
    /// `kid` of the assertion. A JWK may have its own.
    pub key_id: Option<String>,
    /// The file with the certificate of the key, for `x5t` and `x5t#S256` of the assertion.
    pub certificate: Option<PathBuf>,
    pub assertion: AssertionSettings,
}

/// The client assertions that the daemon makes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AssertionSettings {
    /// `None`: by the kind of the key.
    pub alg: Option<SigningAlg>,
    pub audience: AssertionAudience,
}

/// `aud` of a client assertion.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum AssertionAudience {
    TokenEndpoint,
    Issuer,
    Other(String),
}

/// How `client_secret_basic` joins id and secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum BasicEncoding {
    /// Each form-encoded first, as RFC 6749 section 2.3.1 says.
    Form,
    /// As they are, as some providers demand.
    Raw,
}

impl ClientAuthentication {
    /// The client secrets, private keys or assertions. None for a public client.
    pub fn secrets(&self) -> &[SecretSource] {
        match self {
            Self::SecretBasic { secrets, .. }
            | Self::SecretPost { secrets }
            | Self::SecretJwt { secrets, .. }
            | Self::Assertion { assertions: secrets, .. } => secrets,
            Self::PrivateKeyJwt(key) => &key.keys,
            Self::None | Self::Tls => &[],
        }
    }

    /// The key in the configuration that has these secrets.
    pub fn name_of_secrets(&self) -> &'static str {
        match self {
            Self::PrivateKeyJwt(_) => "private_key",
            Self::Assertion { .. } => "client_assertion",
            _ => "client_secret",
        }
    }

    /// The source of the passphrase of the private keys.
    pub fn passphrase(&self) -> Option<&SecretSource> {
        if let Self::PrivateKeyJwt(key) = self { key.passphrase.as_ref() } else { None }
    }
}

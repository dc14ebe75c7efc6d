//! By what a record is found again: a hash of the settings whose token it has.
//!
//! The hash must be the same in the next release, or an upgrade would lose every token. So it is taken over an
//! encoding of its own, by name: a setting that a later release adds is left out where it has the value that means
//! what releases without it did, and nothing that is here may change its name or its form.

use std::fmt;

use ring::digest;

use crate::config::{BasicEncoding, ClientAuthentication, CredentialSettings, Endpoint, Grant, TermSet};
use crate::secret_source::SecretSource;

/// Bytes of a key.
pub const KEY_LENGTH: usize = 32;

/// By what a record is found.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; KEY_LENGTH]);

impl Key {
    /// That of a credential. Equal settings have equal keys, in every release.
    pub fn of_credential(settings: &CredentialSettings) -> Self {
        // Every setting is named, so that one that is added cannot be forgotten here.
        let CredentialSettings {
            endpoint,
            client_id,
            authentication,
            grant,
            scope,
            resource,
            audience,
            params,
            accept,
            ca_file,
            proxy,
            default_lifetime,
        } = settings;
        let mut encoding = Encoding::begin("tokend credential");
        match endpoint {
            Endpoint::Token(url) => encoding.field("token_endpoint", url.as_str()),
            Endpoint::Issuer(url) => encoding.field("issuer", url.as_str()),
        }
        encoding.field("client_id", client_id);
        encoding.authentication(authentication);
        encoding.grant(grant);
        encoding.terms("scope", scope);
        encoding.terms("resource", resource);
        encoding.terms("audience", audience);
        for (name, value) in params {
            encoding.field("params.name", name);
            encoding.field("params.value", value);
        }
        encoding.field("accept", accept);
        if let Some(path) = ca_file {
            encoding.field("ca_file", path.as_os_str().as_encoded_bytes());
        }
        if let Some(url) = proxy {
            encoding.field("proxy", url.as_str());
        }
        encoding.field("default_lifetime", default_lifetime.as_nanos().to_le_bytes());
        encoding.end()
    }

    /// That of an issuer, by its origin.
    pub fn of_issuer(origin: &str) -> Self {
        let mut encoding = Encoding::begin("tokend issuer");
        encoding.field("origin", origin);
        encoding.end()
    }

    /// That of something of which there is one.
    pub fn of_the(name: &str) -> Self {
        let mut encoding = Encoding::begin("tokend");
        encoding.field("name", name);
        encoding.end()
    }

    /// As it was told by [`Key::as_bytes`].
    pub const fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// As it is written.
    pub fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

/// The first bytes are enough to tell keys apart.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(")?;
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// Names and values, each with its length, so that no two lists of them are the same bytes.
struct Encoding(digest::Context);

impl Encoding {
    fn begin(domain: &str) -> Self {
        let mut encoding = Self(digest::Context::new(&digest::SHA256));
        encoding.piece(domain.as_bytes());
        encoding
    }

    fn field(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.piece(name.as_bytes());
        self.piece(value.as_ref());
    }

    fn piece(&mut self, bytes: &[u8]) {
        self.0.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        self.0.update(bytes);
    }

    /// As a set: the order has no meaning.
    fn terms(&mut self, name: &str, terms: &TermSet) {
        terms.sorted().into_iter().for_each(|term| self.field(name, term));
    }

    fn authentication(&mut self, authentication: &ClientAuthentication) {
        const METHOD: &str = "token_endpoint_auth_method";
        match authentication {
            ClientAuthentication::SecretBasic { encoding, .. } => {
                self.field(METHOD, "client_secret_basic");
                let encoding = match encoding {
                    BasicEncoding::Form => "form",
                    BasicEncoding::Raw => "raw",
                };
                self.field("client_secret_basic_encoding", encoding);
            }
            ClientAuthentication::SecretPost { .. } => self.field(METHOD, "client_secret_post"),
            ClientAuthentication::None => self.field(METHOD, "none"),
        }
        authentication.secrets().iter().for_each(|source| self.source("client_secret", source));
    }

    fn grant(&mut self, grant: &Grant) {
        match grant {
            Grant::ClientCredentials => self.field("grant_type", "client_credentials"),
            Grant::Password { username, password } => {
                self.field("grant_type", "password");
                self.field("username", username);
                self.source("password", password);
            }
        }
    }

    /// Where a secret is kept, never the secret.
    fn source(&mut self, name: &str, source: &SecretSource) {
        match source {
            SecretSource::Credential(credential) => {
                self.field(name, "credential");
                self.field("credential", credential);
            }
            SecretSource::File(path) => {
                self.field(name, "file");
                self.field("file", path.as_os_str().as_encoded_bytes());
            }
            SecretSource::Environment(variable) => {
                self.field(name, "env");
                self.field("env", variable);
            }
            SecretSource::Command(words) => {
                self.field(name, "command");
                for word in words {
                    self.field("command", word);
                }
            }
        }
    }

    fn end(self) -> Key {
        Key(self.0.finish().as_ref().first_chunk().copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;
    use crate::oauth::request::tests::settings;

    fn base() -> CredentialSettings {
        let secrets = vec![SecretSource::Credential("a".into())];
        settings(ClientAuthentication::SecretPost { secrets })
    }

    fn terms(words: &[&str]) -> TermSet {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_key_of_these_settings_is_this_one_in_every_release() {
        let Key(bytes) = Key::of_credential(&base());
        let hex = bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        assert_eq!(
            hex, "c1d9245aa5a8b0eeebcb418bdfc9ef26cf12d74fe9829a07ba398c37b4af2682",
            "an upgrade would lose every token"
        );
    }

    #[test]
    fn the_order_of_terms_makes_no_other_key() {
        let with = |words| Key::of_credential(&CredentialSettings { scope: terms(words), ..base() });
        assert_eq!(with(&["a", "b"]), with(&["b", "a", "b"]));
    }

    #[test]
    fn every_setting_makes_another_key() {
        let change: [fn(&mut CredentialSettings); 15] = [
            |_| (),
            |s| s.endpoint = Endpoint::Issuer("https://id.example/token".parse().unwrap()),
            |s| s.endpoint = Endpoint::Token("https://id.example/other".parse().unwrap()),
            |s| s.client_id = "other".into(),
            |s| s.authentication = ClientAuthentication::None,
            |s| {
                s.authentication =
                    ClientAuthentication::SecretPost { secrets: vec![SecretSource::File("a".into())] }
            },
            |s| {
                s.grant =
                    Grant::Password { username: "u".into(), password: SecretSource::Environment("a".into()) }
            },
            |s| s.scope = terms(&["a"]),
            |s| s.scope = terms(&["a", "b"]),
            |s| s.resource = terms(&["a"]),
            |s| s.audience = terms(&["a"]),
            |s| drop(s.params.insert("a".into(), "b".into())),
            |s| s.accept = "*/*".into(),
            |s| s.ca_file = Some("/a".into()),
            |s| s.default_lifetime = Duration::from_secs(1),
        ];
        let keys: HashSet<Key> = change
            .iter()
            .map(|change| {
                let mut settings = base();
                change(&mut settings);
                Key::of_credential(&settings)
            })
            .collect();
        assert_eq!(keys.len(), change.len());
    }
}

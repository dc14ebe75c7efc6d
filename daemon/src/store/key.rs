//! The keys under which records are stored.

use ring::digest;
use serde::{Deserialize, Serialize};

use crate::config::CredentialSettings;

pub const KEY_LENGTH: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key(pub [u8; KEY_LENGTH]);

impl Key {
    /// The key of a credential: a hash of its settings as JSON.
    ///
    /// Equal settings must have equal keys in every release, or an upgrade would lose every token. So no serialized
    /// setting may change its name, place or shape. An added one is skipped where it means what earlier releases did.
    pub fn of_credential(settings: &CredentialSettings) -> Self {
        Self::hash(&("credential", settings))
    }

    /// The key of the throttle of a host or a token endpoint.
    pub fn of_throttle(name: &str) -> Self {
        Self::hash(&("issuer", name))
    }

    /// The key of a singleton record.
    pub fn named(name: &str) -> Self {
        Self::hash(&("name", name))
    }

    fn hash(value: &impl Serialize) -> Self {
        // Fails only for a path that is not UTF-8, and a configuration has none.
        let json = serde_json::to_vec(value).unwrap_or_default();
        let hash = digest::digest(&digest::SHA256, &json);
        Self(hash.as_ref().first_chunk().copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;
    use crate::config::{BasicEncoding, ClientAuthentication, Endpoint, Grant, TermSet, Terms};
    use crate::oauth::request::tests::settings;
    use crate::secret_source::SecretSource;

    fn base() -> CredentialSettings {
        let secrets = vec![SecretSource::Credential("a".into())];
        settings(ClientAuthentication::SecretPost { secrets })
    }

    fn terms(words: &[&str]) -> TermSet {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// The keys of settings of which no two are the same.
    fn keys() -> Vec<Key> {
        let basic = |encoding| ClientAuthentication::SecretBasic {
            secrets: vec![SecretSource::Command(vec!["a".into()])],
            encoding,
        };
        let password = SecretSource::Environment("a".into());
        let changed = |change: &dyn Fn(&mut CredentialSettings)| {
            let mut settings = base();
            change(&mut settings);
            Key::of_credential(&settings)
        };
        let file = vec![SecretSource::File("a".into())];
        vec![
            Key::of_credential(&base()),
            changed(&|s| s.endpoint = Endpoint::Issuer("https://id.example/token".parse().unwrap())),
            changed(&|s| s.endpoint = Endpoint::Token("https://id.example/other".parse().unwrap())),
            changed(&|s| s.client_id = "other".into()),
            changed(&|s| s.authentication = ClientAuthentication::None),
            changed(&|s| s.authentication = ClientAuthentication::SecretPost { secrets: file.clone() }),
            changed(&|s| s.authentication = basic(BasicEncoding::Form)),
            changed(&|s| s.authentication = basic(BasicEncoding::Raw)),
            changed(&|s| s.grant = Grant::Password { username: "u".into(), password: password.clone() }),
            changed(&|s| s.terms.scope = terms(&["a"])),
            changed(&|s| s.terms.scope = terms(&["a", "b"])),
            changed(&|s| s.terms.resource = terms(&["a"])),
            changed(&|s| s.terms.audience = terms(&["a"])),
            changed(&|s| drop(s.params.insert("a".into(), "b".into()))),
            changed(&|s| s.accept = "*/*".into()),
            changed(&|s| s.ca_file = Some("/a".into())),
            changed(&|s| s.proxy = Some("http://proxy.example".parse().unwrap())),
            changed(&|s| s.default_lifetime = Duration::from_secs(1)),
        ]
    }

    #[test]
    fn every_setting_changes_the_key() {
        assert_eq!(keys().iter().collect::<HashSet<_>>().len(), keys().len());
    }

    #[test]
    fn the_order_of_terms_does_not_matter() {
        let with = |words| {
            Key::of_credential(&CredentialSettings {
                terms: Terms { scope: terms(words), ..Terms::default() },
                ..base()
            })
        };
        assert_eq!(with(&["a", "b"]), with(&["b", "a", "b"]));
    }

    #[test]
    fn keys_are_the_same_in_every_release() {
        let all: Vec<u8> = keys().iter().flat_map(|key| key.0).collect();
        let hash = digest::digest(&digest::SHA256, &all);
        let start: &[u8] = &[0xc7, 0xc4, 0x42, 0xf6, 0xb5, 0xb3, 0x03, 0x82];
        assert!(hash.as_ref().starts_with(start), "an upgrade would lose every token: {hash:?}");
    }
}

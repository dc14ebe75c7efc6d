//! Fingerprints, which name tokens without revealing them.

use ring::hmac;
use tokend_protocol::{Fingerprint, Secret};

/// Makes fingerprints under a secret key, so that nobody can test a guessed token against a log.
#[derive(Debug)]
pub struct Fingerprinter(hmac::Key);

#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the kernel gives no random bytes")]
pub struct NoRandomness;

impl Fingerprinter {
    pub fn with_key(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The fingerprint of a token: the first eight bytes of its HMAC-SHA-256.
    pub fn fingerprint(&self, token: &Secret) -> Fingerprint {
        let tag = hmac::sign(&self.0, token.expose().as_bytes());
        Fingerprint(tag.as_ref().first_chunk().copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_depends_on_the_token_and_the_key() {
        let [one, other] = [1, 2].map(|byte| Fingerprinter::with_key(&[byte; 32]));
        let secret = |text: &str| Secret::from(text.to_owned());
        assert_eq!(one.fingerprint(&secret("a")), one.fingerprint(&secret("a")));
        assert_ne!(one.fingerprint(&secret("a")), one.fingerprint(&secret("b")));
        assert_ne!(one.fingerprint(&secret("a")), other.fingerprint(&secret("a")));
    }
}

//! Private keys of clients, in PEM (RFC 7468) or as a JWK (RFC 7517), and the signatures that they make in JWTs (RFC 7515).
//! This module reads no file: its callers have the text of the key. No error repeats any of a key.

mod der;
mod jwk;

use std::fmt;

use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::Kdf;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaEncoding, RsaKeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use serde::Serialize;

/// `alg`: a signature algorithm of JWTs (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum SigningAlg {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

/// Why a text cannot be used as a private key, and the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("neither PEM nor a JWK; expected \"-----BEGIN PRIVATE KEY-----\" or {{\"kty\": ..}}")]
    NotAKey,
    #[error("has no private key; a certificate or a public key cannot sign")]
    NoPrivateKey,
    #[error(
        "a JWK that lacks a member of its kind of key, or has one that is not valid (RFC 7518 section 6)"
    )]
    BadJwk,
    #[error("encrypted; set private_key_passphrase")]
    Encrypted,
    #[error("cannot be decrypted: the passphrase is wrong")]
    NotDecrypted,
    #[error("encrypted in a way that is not known; convert it: openssl pkcs8 -topk8 -in KEY -out NEW")]
    UnknownEncryption,
    #[error(
        "encrypted with parameters that take too much time or memory; convert it: openssl pkcs8 -topk8 -in KEY -out NEW"
    )]
    Costly,
    #[error("encrypted in an old format of OpenSSL; convert it: openssl pkcs8 -topk8 -in KEY -out NEW")]
    OldEncryption,
    #[error(
        "not a valid key of a known kind; expected RSA of 2048 to 4096 bits, EC on P-256 or P-384 with its public key, or \
         Ed25519"
    )]
    Unsupported,
    #[error("{kind} cannot sign with {alg}; expected {expected}")]
    WrongAlg { kind: &'static str, alg: SigningAlg, expected: &'static str },
}

/// A private key.
#[derive(Debug)]
pub struct SigningKey {
    pair: KeyPair,
    /// `kid` of a JWK.
    pub key_id: Option<String>,
    /// `alg` of a JWK.
    alg: Option<SigningAlg>,
}

#[derive(Debug)]
enum KeyPair {
    Rsa(Box<RsaKeyPair>),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl SigningAlg {
    pub const ALL: [Self; 12] = [
        Self::Hs256,
        Self::Hs384,
        Self::Hs512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The algorithm for HMAC with a shared secret, if it is one of these.
    fn hmac(self) -> Option<hmac::Algorithm> {
        match self {
            Self::Hs256 => Some(hmac::HMAC_SHA256),
            Self::Hs384 => Some(hmac::HMAC_SHA384),
            Self::Hs512 => Some(hmac::HMAC_SHA512),
            _ => None,
        }
    }

    /// Whether it takes a shared secret in place of a private key.
    pub fn is_symmetric(self) -> bool {
        self.hmac().is_some()
    }
}

impl fmt::Display for SigningAlg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl SigningKey {
    /// Reads a key as [`read_pem`] does, or as a JWK.
    ///
    /// # Errors
    /// The text has no key, or one that cannot be used.
    pub fn read(text: &str, passphrase: Option<&str>) -> Result<Self, KeyError> {
        if text.trim_start().starts_with('{') {
            return jwk::read(text);
        }
        let pair = match read_pem(text, passphrase)? {
            PrivateKeyDer::Pkcs8(key) => KeyPair::of_pkcs8(key.secret_pkcs8_der())?,
            PrivateKeyDer::Pkcs1(key) => KeyPair::rsa(RsaKeyPair::from_der(key.secret_pkcs1_der()))?,
            PrivateKeyDer::Sec1(key) => KeyPair::of_sec1(key.secret_sec1_der())?,
            _ => return Err(KeyError::Unsupported),
        };
        Ok(Self { pair, key_id: None, alg: None })
    }

    /// The algorithm that is asked for, or else that of the JWK, or else the usual one for the kind of key.
    ///
    /// # Errors
    /// The key cannot sign with it.
    pub fn alg(&self, asked: Option<SigningAlg>) -> Result<SigningAlg, KeyError> {
        use SigningAlg::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        let (kind, algs, expected): (_, &[_], _) = match self.pair {
            KeyPair::Rsa(_) => (
                "an RSA key",
                &[Rs256, Rs384, Rs512, Ps256, Ps384, Ps512],
                "RS256 to RS512 or PS256 to PS512",
            ),
            KeyPair::P256(_) => ("a key on P-256", &[Es256], "ES256"),
            KeyPair::P384(_) => ("a key on P-384", &[Es384], "ES384"),
            KeyPair::Ed25519(_) => ("an Ed25519 key", &[EdDsa], "EdDSA"),
        };
        match asked.or(self.alg) {
            Some(alg) if !algs.contains(&alg) => Err(KeyError::WrongAlg { kind, alg, expected }),
            Some(alg) => Ok(alg),
            None => Ok(algs.first().copied().unwrap_or(Rs256)),
        }
    }

    /// Signs a message. An RSA signature takes about a millisecond.
    ///
    /// # Errors
    /// The key cannot sign with the algorithm.
    pub fn sign(&self, alg: SigningAlg, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.alg(Some(alg))?;
        let random = SystemRandom::new();
        let signed = match &self.pair {
            KeyPair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(padding(alg), &random, message, &mut signature).map(|()| signature)
            }
            KeyPair::P256(pair) | KeyPair::P384(pair) => {
                pair.sign(&random, message).map(|signature| signature.as_ref().to_vec())
            }
            KeyPair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        };
        signed.map_err(|_| KeyError::Unsupported)
    }
}

/// The private key in PKCS#8, PKCS#1 or SEC1 PEM. Other PEM blocks beside it are ignored.
///
/// # Errors
/// The text has no key, or one that cannot be decrypted.
pub fn read_pem(text: &str, passphrase: Option<&str>) -> Result<PrivateKeyDer<'static>, KeyError> {
    let blocks = pem::parse_many(text).map_err(|_| KeyError::NotAKey)?;
    if blocks.is_empty() {
        return Err(KeyError::NotAKey);
    }
    let is_private = |block: &pem::Pem| block.tag().ends_with("PRIVATE KEY");
    let block = blocks.into_iter().find(is_private).ok_or(KeyError::NoPrivateKey)?;
    if block.headers().get("Proc-Type").is_some() {
        return Err(KeyError::OldEncryption);
    }
    Ok(match block.tag() {
        "PRIVATE KEY" => PrivateKeyDer::Pkcs8(block.into_contents().into()),
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(block.into_contents().into()),
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(block.into_contents().into()),
        "ENCRYPTED PRIVATE KEY" => {
            let passphrase = passphrase.ok_or(KeyError::Encrypted)?;
            let key = EncryptedPrivateKeyInfoRef::try_from(block.contents());
            let key = key.map_err(|_| KeyError::UnknownEncryption)?;
            if is_costly(&key.encryption_algorithm) {
                return Err(KeyError::Costly);
            }
            let opened = key.decrypt(passphrase).map_err(|_| KeyError::NotDecrypted)?;
            PrivateKeyDer::Pkcs8(opened.as_bytes().to_vec().into())
        }
        _ => return Err(KeyError::Unsupported),
    })
}

/// Whether deriving the key from the passphrase takes more than seconds, or more than 64 MiB. Its parameters are in the file, and may
/// be anything.
fn is_costly(encryption: &EncryptionScheme) -> bool {
    match encryption.pbes2().map(|parameters| &parameters.kdf) {
        Some(Kdf::Pbkdf2(pbkdf2)) => pbkdf2.iteration_count > 10_000_000,
        Some(Kdf::Scrypt(scrypt)) => {
            let (cost, block, lanes) = (scrypt.cost_parameter, scrypt.block_size, scrypt.parallelization);
            let bytes =
                [128, u64::from(block), u64::from(lanes)].into_iter().try_fold(cost, u64::checked_mul);
            cost == 0 || bytes.is_none_or(|bytes| bytes > 64 << 20)
        }
        _ => false,
    }
}

/// Authenticates a message with a shared secret. `None` if the algorithm takes a private key.
pub fn authenticate(secret: &str, alg: SigningAlg, message: &[u8]) -> Option<Vec<u8>> {
    let key = hmac::Key::new(alg.hmac()?, secret.as_bytes());
    Some(hmac::sign(&key, message).as_ref().to_vec())
}

impl KeyPair {
    fn rsa<E>(pair: Result<RsaKeyPair, E>) -> Result<Self, KeyError> {
        pair.map(|pair| Self::Rsa(Box::new(pair))).map_err(|_| KeyError::Unsupported)
    }

    /// A key in PKCS#8 (RFC 5958): of the first kind that takes it.
    fn of_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let p256 =
            || EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random).map(Self::P256);
        let p384 =
            || EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, der, &random).map(Self::P384);
        let ed25519 = || Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(Self::Ed25519);
        let other = p256().or_else(|_| p384()).or_else(|_| ed25519());
        other.or_else(|_| Self::rsa(RsaKeyPair::from_pkcs8(der)))
    }

    /// A key in SEC1 (RFC 5915). Its curve need not be in it, so each is tried.
    fn of_sec1(der: &[u8]) -> Result<Self, KeyError> {
        let curves: [&[u8]; 2] = [&der::P256, &der::P384];
        let pairs = curves.iter().filter_map(|curve| Self::of_pkcs8(&der::pkcs8_of_sec1(curve, der)?).ok());
        pairs.into_iter().next().ok_or(KeyError::Unsupported)
    }
}

fn padding(alg: SigningAlg) -> &'static dyn RsaEncoding {
    match alg {
        SigningAlg::Rs384 => &RSA_PKCS1_SHA384,
        SigningAlg::Rs512 => &RSA_PKCS1_SHA512,
        SigningAlg::Ps256 => &RSA_PSS_SHA256,
        SigningAlg::Ps384 => &RSA_PSS_SHA384,
        SigningAlg::Ps512 => &RSA_PSS_SHA512,
        _ => &RSA_PKCS1_SHA256,
    }
}

#[cfg(test)]
mod tests;

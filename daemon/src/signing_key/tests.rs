//! OpenSSL made the keys in `tests/`. Nothing but tests uses them.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{self, KeyPair as _, UnparsedPublicKey, VerificationAlgorithm};
use serde_json::{Value, json};

use super::*;

macro_rules! key {
    ($file:literal) => {
        include_str!(concat!("tests/", $file))
    };
}

/// One RSA key, in three formats.
const RSA: [&str; 3] = [key!("rsa.pkcs8.pem"), key!("rsa.pkcs1.pem"), key!("rsa.jwk.json")];
const P256: [&str; 3] = [key!("p256.pkcs8.pem"), key!("p256.sec1.pem"), key!("p256.jwk.json")];
const P384: [&str; 2] = [key!("p384.sec1.pem"), key!("p384.jwk.json")];
const ED25519: [&str; 2] = [key!("ed25519.pkcs8.pem"), key!("ed25519.jwk.json")];

fn read(text: &str) -> SigningKey {
    SigningKey::read(text, None).unwrap()
}

fn refused(text: &str) -> String {
    SigningKey::read(text, None).unwrap_err().to_string()
}

fn public_key(key: &SigningKey) -> Vec<u8> {
    match &key.pair {
        KeyPair::Rsa(pair) => pair.public_key().as_ref().to_vec(),
        KeyPair::P256(pair) | KeyPair::P384(pair) => pair.public_key().as_ref().to_vec(),
        KeyPair::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
    }
}

/// A JWK with another member.
fn jwk(text: &str, member: &str, value: Value) -> String {
    let mut jwk: Value = serde_json::from_str(text).unwrap();
    jwk[member] = value;
    jwk.to_string()
}

#[test]
fn a_key_is_the_same_in_each_format() {
    for formats in [&RSA[..], &P256, &P384, &ED25519] {
        let keys: Vec<_> = formats.iter().map(|text| public_key(&read(text))).collect();
        assert!(keys.iter().all(|key| *key == keys[0]), "{}", formats[0]);
    }
}

#[test]
fn a_signature_is_valid_by_the_public_key_in_the_format_of_jws() {
    use SigningAlg::*;
    let rsa: [(_, &dyn VerificationAlgorithm); 6] = [
        (Rs256, &signature::RSA_PKCS1_2048_8192_SHA256),
        (Rs384, &signature::RSA_PKCS1_2048_8192_SHA384),
        (Rs512, &signature::RSA_PKCS1_2048_8192_SHA512),
        (Ps256, &signature::RSA_PSS_2048_8192_SHA256),
        (Ps384, &signature::RSA_PSS_2048_8192_SHA384),
        (Ps512, &signature::RSA_PSS_2048_8192_SHA512),
    ];
    let others: [(_, _, &dyn VerificationAlgorithm); 3] = [
        (P256[0], Es256, &signature::ECDSA_P256_SHA256_FIXED),
        (P384[0], Es384, &signature::ECDSA_P384_SHA384_FIXED),
        (ED25519[0], EdDsa, &signature::ED25519),
    ];
    let rsa = rsa.map(|(alg, verification)| (RSA[0], alg, verification));
    for (text, alg, verification) in rsa.into_iter().chain(others) {
        let key = read(text);
        let signature = key.sign(alg, b"message").unwrap();
        let public = UnparsedPublicKey::new(verification, public_key(&key));
        assert!(public.verify(b"message", &signature).is_ok(), "{alg}");
        assert!(public.verify(b"other", &signature).is_err(), "{alg}");
    }
}

#[test]
fn the_algorithm_is_the_one_that_is_asked_for_or_that_of_the_jwk_or_the_usual_one() {
    let alg = |text: &str, asked| read(text).alg(asked).map_err(|error| error.to_string());
    let usual = [(RSA[0], "RS256"), (P256[0], "ES256"), (P384[0], "ES384"), (ED25519[0], "EdDSA")];
    for (text, expected) in usual {
        assert_eq!(alg(text, None).unwrap().as_str(), expected);
    }
    assert_eq!(alg(RSA[0], Some(SigningAlg::Ps256)), Ok(SigningAlg::Ps256));
    let of_jwk = jwk(RSA[2], "alg", json!("PS384"));
    assert_eq!(alg(&of_jwk, None), Ok(SigningAlg::Ps384));
    assert_eq!(alg(&of_jwk, Some(SigningAlg::Rs512)), Ok(SigningAlg::Rs512));
    let message = "a key on P-256 cannot sign with PS256; expected ES256";
    assert_eq!(alg(P256[0], Some(SigningAlg::Ps256)), Err(message.to_owned()));
    assert!(alg(RSA[0], Some(SigningAlg::Hs256)).is_err());
    assert!(read(P256[0]).sign(SigningAlg::Es384, b"message").is_err());
}

#[test]
fn a_jwk_brings_its_key_id() {
    assert_eq!(read(P256[2]).key_id, None);
    assert_eq!(read(&jwk(P256[2], "kid", json!("k1"))).key_id.as_deref(), Some("k1"));
}

#[test]
fn an_encrypted_key_needs_its_passphrase() {
    let encrypted = key!("p256.encrypted.pem");
    for encrypted in [encrypted, key!("p256.3des.pem"), key!("p256.scrypt.pem")] {
        let opened = SigningKey::read(encrypted, Some("swordfish")).unwrap();
        assert_eq!(public_key(&opened), public_key(&read(P256[0])));
    }
    // Scrypt with 127 lanes, which is 2 GiB.
    let costly = SigningKey::read(key!("p256.costly.pem"), Some("swordfish")).unwrap_err();
    assert_eq!(costly, KeyError::Costly);
    assert_eq!(SigningKey::read(encrypted, None).unwrap_err(), KeyError::Encrypted);
    assert_eq!(SigningKey::read(encrypted, Some("wrong")).unwrap_err(), KeyError::NotDecrypted);
    let old = SigningKey::read(key!("p256.old.pem"), Some("swordfish")).unwrap_err();
    assert_eq!(old, KeyError::OldEncryption);
    // A passphrase that is not needed does no harm: keys are replaced one after the other.
    assert!(SigningKey::read(P256[0], Some("swordfish")).is_ok());
}

#[test]
fn other_blocks_beside_the_key_are_ignored() {
    let public = key!("p256.public.pem");
    let both = format!("{public}\nBag Attributes\n{}", P256[0]);
    assert_eq!(public_key(&read(&both)), public_key(&read(P256[0])));
    assert!(refused(public).starts_with("has no private key"));
}

#[test]
fn what_is_no_usable_key_is_refused_with_the_reason() {
    let without = |member| jwk(P256[2], member, Value::Null);
    let cases = [
        ("hunter2", "neither PEM nor a JWK"),
        ("-----BEGIN PRIVATE KEY-----\nhunter2", "neither PEM nor a JWK"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a valid key of a known kind"),
        ("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "not a valid key"),
        ("-----BEGIN DSA PRIVATE KEY-----\nAAAA\n-----END DSA PRIVATE KEY-----\n", "not a valid key"),
        (key!("p521.sec1.pem"), "not a valid key of a known kind"),
        (key!("rsa1024.pkcs8.pem"), "not a valid key of a known kind; expected RSA of 2048"),
        ("{\"hunter2\":", "a JWK that lacks a member"),
        ("{\"keys\": []}", "a JWK that lacks a member"),
        (&without("d"), "has no private key"),
        (&without("y"), "a JWK that lacks a member"),
        (&jwk(P256[2], "y", json!("AAAA")), "a JWK that lacks a member"),
        (&jwk(P256[2], "alg", json!("ES512")), "a JWK that lacks a member"),
        (&jwk(P256[2], "crv", json!("P-521")), "not a valid key of a known kind"),
        (&jwk(P256[2], "kty", json!("oct")), "not a valid key of a known kind"),
    ];
    for (text, expected) in cases {
        let message = refused(text);
        assert!(message.starts_with(expected), "{message}");
        assert!(!message.contains("hunter2"), "no error repeats any of the text: {message}");
    }
}

#[test]
fn a_shared_secret_authenticates() {
    // RFC 4231 section 4.3.
    let (secret, message) = ("Jefe", b"what do ya want for nothing?");
    let authenticated =
        |alg| authenticate(secret, alg, message).map(|bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes));
    assert_eq!(authenticated(SigningAlg::Hs256).unwrap(), "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM");
    assert_eq!(authenticated(SigningAlg::Rs256), None);
}

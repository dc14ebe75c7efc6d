//! A private key as a JWK (RFC 7517, RFC 7518 section 6, RFC 8037 section 2).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, RsaKeyPair,
};
use serde::Deserialize;

use super::{KeyError, KeyPair, SigningAlg, SigningKey};

/// The members of all kinds of keys. Unknown ones are ignored, as RFC 7517 section 4 says.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<String>,
    n: Option<String>,
    e: Option<String>,
    p: Option<String>,
    q: Option<String>,
    dp: Option<String>,
    dq: Option<String>,
    qi: Option<String>,
}

pub(super) fn read(text: &str) -> Result<SigningKey, KeyError> {
    let jwk: Jwk = serde_json::from_str(text).map_err(|_| KeyError::BadJwk)?;
    if jwk.d.is_none() && matches!(&*jwk.kty, "RSA" | "EC" | "OKP") {
        return Err(KeyError::NoPrivateKey);
    }
    let pair = match (&*jwk.kty, jwk.crv.as_deref()) {
        ("RSA", _) => rsa(&jwk)?,
        ("EC", Some("P-256")) => KeyPair::P256(ec(&ECDSA_P256_SHA256_FIXED_SIGNING, &jwk)?),
        ("EC", Some("P-384")) => KeyPair::P384(ec(&ECDSA_P384_SHA384_FIXED_SIGNING, &jwk)?),
        ("OKP", Some("Ed25519")) => {
            let pair =
                Ed25519KeyPair::from_seed_and_public_key(&bytes(jwk.d.as_ref())?, &bytes(jwk.x.as_ref())?);
            KeyPair::Ed25519(pair.map_err(|_| KeyError::BadJwk)?)
        }
        _ => return Err(KeyError::Unsupported),
    };
    let alg = match &jwk.alg {
        None => None,
        Some(name) => {
            let known = SigningAlg::ALL.into_iter().find(|alg| alg.as_str() == name);
            Some(known.ok_or(KeyError::BadJwk)?)
        }
    };
    Ok(SigningKey { pair, key_id: jwk.kid, alg })
}

fn rsa(jwk: &Jwk) -> Result<KeyPair, KeyError> {
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n: bytes(jwk.n.as_ref())?, e: bytes(jwk.e.as_ref())? },
        d: bytes(jwk.d.as_ref())?,
        p: bytes(jwk.p.as_ref())?,
        q: bytes(jwk.q.as_ref())?,
        dP: bytes(jwk.dp.as_ref())?,
        dQ: bytes(jwk.dq.as_ref())?,
        qInv: bytes(jwk.qi.as_ref())?,
    };
    KeyPair::rsa(RsaKeyPair::from_components(&components))
}

fn ec(algorithm: &'static EcdsaSigningAlgorithm, jwk: &Jwk) -> Result<EcdsaKeyPair, KeyError> {
    // An uncompressed point (SEC1 section 2.3.3).
    let public = [&[4], &*bytes(jwk.x.as_ref())?, &*bytes(jwk.y.as_ref())?].concat();
    let random = SystemRandom::new();
    EcdsaKeyPair::from_private_key_and_public_key(algorithm, &bytes(jwk.d.as_ref())?, &public, &random)
        .map_err(|_| KeyError::BadJwk)
}

fn bytes(member: Option<&String>) -> Result<Vec<u8>, KeyError> {
    let text = member.ok_or(KeyError::BadJwk)?;
    BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError::BadJwk)
}

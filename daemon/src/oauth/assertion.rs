//! Makes client assertions: JWTs (RFC 7519) that prove the client's identity with its private key or its secret (RFC 7523
//! section 3, `OpenID` Connect Core 1.0 section 9).

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use tokend_protocol::Secret;

use crate::config::{AssertionAudience, PrivateKeySettings, read_certificates};
use crate::oauth::discovery::TokenEndpoint;
use crate::signing_key::{self, KeyError, SigningAlg, SigningKey};

/// How long an assertion is valid. It is used at once, so this only has to cover the way to the provider and the
/// inaccuracy of a clock that is known from a `Date` header.
const LIFETIME: Duration = Duration::from_secs(60);

/// The facts that an assertion states.
#[derive(Clone, Debug)]
pub struct Claims {
    pub client_id: String,
    pub audience: String,
    /// The time since 1970, by the provider's clock.
    pub now: Duration,
}

/// The header of an assertion (RFC 7515 section 4.1).
#[derive(Default, Serialize)]
struct Header<'a> {
    alg: &'a str,
    typ: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x5t: Option<String>,
    #[serde(rename = "x5t#S256", skip_serializing_if = "Option::is_none")]
    x5t_s256: Option<String>,
}

#[derive(Serialize)]
struct Payload<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    jti: String,
    iat: u64,
    exp: u64,
}

impl Claims {
    pub fn new(
        client_id: &str,
        audience: &AssertionAudience,
        endpoint: &TokenEndpoint,
        now: Duration,
    ) -> Self {
        let audience = match (audience, &endpoint.issuer) {
            (AssertionAudience::Other(audience), _) => audience.clone(),
            (AssertionAudience::Issuer, Some(issuer)) => issuer.clone(),
            (AssertionAudience::Issuer | AssertionAudience::TokenEndpoint, _) => endpoint.url.to_string(),
        };
        Self { client_id: client_id.to_owned(), audience, now }
    }
}

/// The time by the provider's clock, which is `skew` seconds ahead of this host's.
pub fn by_clock_of_provider(wall: Duration, skew: i64) -> Duration {
    let by = Duration::from_secs(skew.unsigned_abs());
    if skew < 0 { wall.saturating_sub(by) } else { wall.saturating_add(by) }
}

/// An assertion that a private key signs, of which this is the text. Reads the file with its certificate, if there is one.
///
/// # Errors
/// The key or the certificate cannot be used: the name of the setting, and the reason.
pub fn by_key_of(
    settings: &PrivateKeySettings,
    key: &Secret,
    passphrase: Option<&Secret>,
    claims: &Claims,
) -> Result<Secret, String> {
    let certificates = settings.certificate.as_deref().map(read_certificates).transpose();
    let certificates = certificates.map_err(|error| format!("client_certificate: {error}"))?;
    let certificate = certificates.as_ref().and_then(|chain| chain.first());
    let (alg, key_id) = (settings.assertion.alg, settings.key_id.as_deref());
    SigningKey::read(key.expose(), passphrase.map(Secret::expose))
        .and_then(|key| by_key(&key, alg, key_id, certificate.map(AsRef::as_ref), claims))
        .map_err(|error| format!("private_key: {error}"))
}

/// An assertion that a private key signs. Without a `key_id`, its `kid` is that of the JWK. With the DER of the key's
/// certificate, the header has its thumbprints, as Microsoft Entra ID wants.
///
/// # Errors
/// The key cannot sign with the algorithm.
fn by_key(
    key: &SigningKey,
    alg: Option<SigningAlg>,
    key_id: Option<&str>,
    certificate: Option<&[u8]>,
    claims: &Claims,
) -> Result<Secret, KeyError> {
    let alg = key.alg(alg)?;
    let thumbprint = |of| certificate.map(|der| BASE64_URL_SAFE_NO_PAD.encode(digest(of, der)));
    let header = Header {
        kid: key_id.or(key.key_id.as_deref()),
        x5t: thumbprint(&SHA1_FOR_LEGACY_USE_ONLY),
        x5t_s256: thumbprint(&SHA256),
        ..Header::default()
    };
    let message = message(alg, header, claims);
    let signature = key.sign(alg, message.as_bytes())?;
    Ok(joined(message, &signature))
}

/// An assertion that the client secret authenticates. `None` if the algorithm takes a private key.
pub fn by_secret(secret: &Secret, alg: SigningAlg, claims: &Claims) -> Option<Secret> {
    let message = message(alg, Header::default(), claims);
    let signature = signing_key::authenticate(secret.expose(), alg, message.as_bytes())?;
    Some(joined(message, &signature))
}

/// The header and the claims, as they are signed (RFC 7515 section 5.1).
fn message(alg: SigningAlg, header: Header<'_>, claims: &Claims) -> String {
    let header = Header { alg: alg.as_str(), typ: "JWT", ..header };
    let Claims { client_id, audience, now } = claims;
    let payload = Payload {
        iss: client_id,
        sub: client_id,
        aud: audience,
        jti: new_id(),
        iat: now.as_secs(),
        exp: (*now + LIFETIME).as_secs(),
    };
    format!("{}.{}", encoded(&header), encoded(&payload))
}

fn joined(mut message: String, signature: &[u8]) -> Secret {
    message.push('.');
    BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut message);
    Secret::from(message)
}

fn encoded(part: &impl Serialize) -> String {
    // Structs of texts and numbers can always be written.
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).unwrap_or_default())
}

/// A `jti` that is never repeated: 128 random bits.
fn new_id() -> String {
    let mut random = [0; 16];
    // The kernel always has random numbers for a process that has started.
    let _ = SystemRandom::new().fill(&mut random);
    BASE64_URL_SAFE_NO_PAD.encode(random)
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    use serde_json::{Value, json};

    use super::*;

    const KEY: &str = include_str!("../signing_key/tests/p256.jwk.json");

    fn claims() -> Claims {
        let now = Duration::from_millis(1_700_000_000_900);
        Claims { client_id: "my \"client\"".to_owned(), audience: "https://id.example/token".to_owned(), now }
    }

    /// The header, the claims, what is signed, and the signature.
    fn parts(assertion: &Secret) -> (Value, Value, String, Vec<u8>) {
        let parts: Vec<&str> = assertion.expose().split('.').collect();
        let [header, payload, signature] = parts.try_into().unwrap();
        let decoded = |part| BASE64_URL_SAFE_NO_PAD.decode(part).unwrap();
        let json = |part| serde_json::from_slice(&decoded(part)).unwrap();
        (json(header), json(payload), format!("{header}.{payload}"), decoded(signature))
    }

    fn signed(key_id: Option<&str>, certificate: Option<&[u8]>) -> Secret {
        by_key(&SigningKey::read(KEY, None).unwrap(), None, key_id, certificate, &claims()).unwrap()
    }

    #[test]
    fn an_assertion_names_the_client_and_the_audience_for_a_minute() {
        let (header, mut payload, ..) = parts(&signed(None, None));
        assert_eq!(header, json!({ "alg": "ES256", "typ": "JWT" }));
        let id = payload.as_object_mut().unwrap().remove("jti").unwrap();
        assert_eq!(id.as_str().unwrap().len(), 22);
        let client = "my \"client\"";
        let expected = json!({
            "iss": client, "sub": client, "aud": "https://id.example/token", "iat": 1_700_000_000, "exp": 1_700_000_060,
        });
        assert_eq!(payload, expected);
        let (_, again, ..) = parts(&signed(None, None));
        assert_ne!(again["jti"], id, "an identifier is never repeated");
    }

    #[test]
    fn the_signature_is_over_the_header_and_the_claims() {
        let (.., message, signature) = parts(&signed(None, None));
        let jwk: Value = serde_json::from_str(KEY).unwrap();
        let coordinate = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
        let public = [vec![4], coordinate("x"), coordinate("y")].concat();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public);
        assert!(public.verify(message.as_bytes(), &signature).is_ok());
    }

    #[test]
    fn the_header_identifies_the_key() {
        let (header, ..) = parts(&signed(Some("k1"), Some(b"DER")));
        assert_eq!(header["kid"], "k1");
        // printf DER | openssl dgst -sha1 -binary | base64, and -sha256, in the alphabet of base64url
        assert_eq!(header["x5t"], "il8CqqUhLpu-kH2OhOO19-jGeWc");
        assert_eq!(header["x5t#S256"], "v_0oyO6xCl5Qzxe1j0d-oYA4la5pdE5utTy8w79Cets");
        let with_own = KEY.replacen('{', "{\"kid\":\"own\",", 1);
        let key = SigningKey::read(&with_own, None).unwrap();
        for (key_id, expected) in [(None, "own"), (Some("k1"), "k1")] {
            let (header, ..) = parts(&by_key(&key, None, key_id, None, &claims()).unwrap());
            assert_eq!(header["kid"], expected);
        }
    }

    #[test]
    fn a_client_secret_authenticates_an_assertion() {
        let secret = Secret::from("s/3+c".to_owned());
        let (header, _, message, signature) =
            parts(&by_secret(&secret, SigningAlg::Hs384, &claims()).unwrap());
        assert_eq!(header["alg"], "HS384");
        let expected = signing_key::authenticate(secret.expose(), SigningAlg::Hs384, message.as_bytes());
        assert_eq!(Some(signature), expected);
        assert!(by_secret(&secret, SigningAlg::Rs256, &claims()).is_none());
    }
}

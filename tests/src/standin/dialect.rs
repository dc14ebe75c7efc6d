//! How each provider words its token reply.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::Kind;
use crate::{Answer, secrets};

/// How long a provider's tokens live.
pub(super) fn lifetime(kind: Kind) -> Duration {
    let seconds = match kind {
        Kind::EconnectPsb | Kind::AritmaPsd2 => 3600,
        Kind::BnpParibasCib => 1799,
        Kind::PartnerApi => 1200,
        Kind::CubeConnect => 24 * 3600,
    };
    Duration::from_secs(seconds)
}

/// A new token and the reply that brings it.
pub(super) fn reply(kind: Kind, lifetime: Duration) -> (String, Answer) {
    let seconds = lifetime.as_secs();
    let token = match kind {
        Kind::AritmaPsd2 => jwt(seconds),
        _ => secrets::invent("access-token"),
    };
    let body = match kind {
        Kind::EconnectPsb => json!({
            "access_token": token, "expires_in": seconds, "token_type": "Bearer", "scope": "ap",
        }),
        Kind::BnpParibasCib => gateway_body(&token, seconds),
        Kind::PartnerApi => json!({ "access_token": token, "token_type": "bearer", "expires_in": seconds }),
        Kind::AritmaPsd2 => json!({
            "access_token": token, "expires_in": seconds, "token_type": "Bearer",
            "scope": "banking.ais.read banking.channel.psd2",
        }),
        Kind::CubeConnect => json!({
            "access_token": token, "expires_in": seconds, "token_type": "bearer", "scope": "profile",
        }),
    };
    (token, Answer::json(200, &body))
}

/// The gateway's reply: numbers as strings, and a field whose name is empty.
fn gateway_body(token: &str, seconds: u64) -> Value {
    json!({
        "refresh_token_expires_in": "0",
        "api_product_list": "[aisp, pisp]",
        "api_product_list_json": ["aisp", "pisp"],
        "organization_name": "customer",
        "": "",
        "token_type": "BearerToken",
        "issued_at": now().as_millis().to_string(),
        "client_id": "bnp-client",
        "access_token": token,
        "application_name": "4f1c1c5e-0000-4000-8000-000000000001",
        "scope": "pisp piisp aisp extended_transaction_history",
        "expires_in": seconds.to_string(),
        "refresh_count": "0",
        "status": "approved",
    })
}

fn jwt(seconds: u64) -> String {
    let issued = now().as_secs();
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(&json!({ "alg": "RS256", "typ": "at+jwt", "kid": "1" }));
    let claims = part(&json!({
        "iss": "https://id.example", "iat": issued, "exp": issued + seconds, "jti": secrets::invent("jti"),
    }));
    format!("{header}.{claims}.{}", BASE64_URL_SAFE_NO_PAD.encode(secrets::invent("signature")))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

//! Reads the lifetime that a JWT access token claims for itself (RFC 9068, RFC 7519 section 4.1).
//!
//! The signature is not verified: these claims can only shorten a lifetime, so a forged one gains nothing.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// The largest claim set that is looked at, encoded.
const CLAIMS_MAX: usize = 64 * 1024;

/// The claims about time, in seconds since the Unix epoch.
#[derive(Deserialize)]
struct Claims {
    exp: f64,
    iat: Option<f64>,
}

/// The remaining lifetime, or `None` where the text is not a JWT with an `exp`. The time now is the reply's `date`, else
/// the token's `iat`, else the host's clock `wall`.
pub fn remaining_lifetime(token: &str, date: Option<Duration>, wall: Duration) -> Option<Duration> {
    let mut parts = token.split('.');
    let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || claims.len() > CLAIMS_MAX {
        return None;
    }
    let json = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let Claims { exp, iat } = serde_json::from_slice(&json).ok()?;
    let now = date.map(|date| date.as_secs_f64()).or(iat).unwrap_or(wall.as_secs_f64());
    // An expiry that is too far away for a Duration never comes.
    Some(Duration::try_from_secs_f64((exp - now).max(0.0)).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    fn remaining(claims: &str, date: Option<u64>) -> Duration {
        let (date, wall) = (date.map(Duration::from_secs), Duration::from_secs(9000));
        remaining_lifetime(&token(claims), date, wall).unwrap()
    }

    #[test]
    fn a_text_without_an_expiry_claim_has_no_lifetime() {
        let no_exp = token(r#"{"iat":1}"#);
        let wrong_type = token(r#"{"exp":"soon"}"#);
        for text in ["opaque", "a.b", "a.b.c.d", "a.!!.c", "..", &no_exp, &wrong_type] {
            assert_eq!(remaining_lifetime(text, None, Duration::ZERO), None, "{text}");
        }
    }

    #[test]
    fn the_providers_clock_is_believed_before_the_hosts() {
        let with_iat = r#"{"iss":"x","iat":1400,"exp":5000.5}"#;
        let without_iat = r#"{"exp":5000.5}"#;
        assert_eq!(remaining(with_iat, Some(2000)), Duration::from_millis(3_000_500));
        assert_eq!(remaining(with_iat, None), Duration::from_millis(3_600_500));
        assert_eq!(remaining(without_iat, None), Duration::ZERO);
        assert_eq!(remaining(without_iat, Some(6000)), Duration::ZERO);
    }

    #[test]
    fn an_expiry_beyond_all_bounds_is_far_away() {
        for exp in [1e20, 1e300, f64::MAX] {
            let claims = format!(r#"{{"iat":-1e308,"exp":{exp:e}}}"#);
            assert_eq!(remaining(&claims, None), Duration::MAX, "{exp}");
            assert_eq!(remaining(&claims, Some(2000)), Duration::MAX, "{exp}");
        }
        assert_eq!(remaining(r#"{"exp":-1e300}"#, None), Duration::ZERO);
    }
}

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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// `exp`.
    pub expires_at: f64,
    /// `iat`.
    pub issued_at: Option<f64>,
}

#[derive(Deserialize)]
struct Claims {
    exp: f64,
    #[serde(default)]
    iat: Option<f64>,
}

/// Reads the claims, or `None` where the text is not a JWT with an `exp`.
pub fn times(token: &str) -> Option<Times> {
    let mut parts = token.split('.');
    let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || claims.len() > CLAIMS_MAX {
        return None;
    }
    let json = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let Claims { exp, iat } = serde_json::from_slice(&json).ok()?;
    Some(Times { expires_at: exp, issued_at: iat })
}

impl Times {
    /// The remaining lifetime. The time now is the reply's `date`, else the token's `iat`, else the host's clock `wall`.
    pub fn remaining(self, date: Option<Duration>, wall: Duration) -> Duration {
        let now = date.map(|date| date.as_secs_f64()).or(self.issued_at).unwrap_or(wall.as_secs_f64());
        let seconds = self.expires_at - now;
        if seconds <= 0.0 {
            return Duration::ZERO;
        }
        // An expiry that is too far away for a Duration never comes.
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn reads_exp_and_iat() {
        let times = times(&token(r#"{"iss":"x","iat":1000,"exp":4600.5}"#));
        assert_eq!(times, Some(Times { expires_at: 4600.5, issued_at: Some(1000.0) }));
    }

    #[test]
    fn a_text_without_an_expiry_claim_has_no_times() {
        let no_exp = token(r#"{"iat":1}"#);
        let wrong_type = token(r#"{"exp":"soon"}"#);
        for text in ["opaque", "a.b", "a.b.c.d", "a.!!.c", "..", &no_exp, &wrong_type] {
            assert_eq!(times(text), None, "{text}");
        }
    }

    #[test]
    fn the_providers_clock_is_believed_before_the_hosts() {
        let remaining = |issued_at, date: Option<u64>| {
            let times = Times { expires_at: 5000.0, issued_at };
            times.remaining(date.map(Duration::from_secs), Duration::from_secs(9000)).as_secs()
        };
        assert_eq!(remaining(Some(1400.0), Some(2000)), 3000);
        assert_eq!(remaining(Some(1400.0), None), 3600);
        assert_eq!(remaining(None, None), 0);
        assert_eq!(remaining(None, Some(6000)), 0);
    }

    #[test]
    fn an_expiry_beyond_all_bounds_is_far_away() {
        for exp in [1e20, 1e300, f64::MAX] {
            let times = times(&token(&format!(r#"{{"iat":-1e308,"exp":{exp:e}}}"#))).unwrap();
            assert_eq!(times.remaining(None, Duration::ZERO), Duration::MAX, "{exp}");
            assert_eq!(
                times.remaining(Some(Duration::from_secs(2000)), Duration::ZERO),
                Duration::MAX,
                "{exp}"
            );
        }
        let long_ago = Times { expires_at: -1e300, issued_at: None };
        assert_eq!(long_ago.remaining(None, Duration::ZERO), Duration::ZERO);
    }
}

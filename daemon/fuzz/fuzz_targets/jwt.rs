//! Any bytes as a JWT: reading its claims and computing its lifetime never panics.
#![no_main]

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use tokend::oauth::response::claimed_lifetime;

fuzz_target!(|input: &[u8]| {
    // As the whole token, and as the claims of one: few mutations survive base64.
    let claims = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(input));
    for token in [str::from_utf8(input).unwrap_or_default(), &claims] {
        for wall in [0, 1_700_000_000, u64::MAX] {
            let wall = Duration::from_secs(wall);
            let by_host = claimed_lifetime(token, None, wall);
            let by_provider = claimed_lifetime(token, Some(wall), Duration::ZERO);
            assert_eq!(by_host.is_some(), by_provider.is_some());
        }
    }
});

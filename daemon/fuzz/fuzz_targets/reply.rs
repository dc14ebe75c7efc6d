//! Any reply of a token endpoint: an accepted token fits into a header, its lifetime is bounded, and no message or
//! detail contains a secret of the request.
#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::header::{CONTENT_TYPE, DATE, HeaderMap, RETRY_AFTER};
use libfuzzer_sys::fuzz_target;
use tokend::config::{CredentialSettings, parse};
use tokend::oauth::redact::SentSecrets;
use tokend::oauth::response::{Context, HttpReply, read};

/// The secret of the request. Seeds and dictionary contain it.
const SECRET: &str = "s3cr3t value";

static SENT: LazyLock<SentSecrets> =
    LazyLock::new(|| SentSecrets::new([SECRET, "s3cr3t+value"].map(str::to_owned).into()));

static SETTINGS: LazyLock<CredentialSettings> = LazyLock::new(|| {
    let text = "[provider.p]\ntoken_endpoint = \"https://id.example/token\"\nclient_id = \"c\"\n\
                token_endpoint_auth_method = \"none\"\n[token.t]\nprovider = \"p\"\n";
    let config = parse(Path::new("/tokend.toml"), text).expect("a good configuration").config;
    let token = config.tokens.into_values().next().expect("a token");
    Arc::unwrap_or_clone(token.credential)
});

const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

// Four lines: the status, and the values of Content-Type, Date and Retry-After. Then the body.
fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(5, |byte| *byte == b'\n');
    let mut line = || parts.next().map(|line| str::from_utf8(line).unwrap_or_default()).unwrap_or_default();
    let status = line().parse().unwrap_or(200);
    let mut headers = HeaderMap::new();
    for name in [CONTENT_TYPE, DATE, RETRY_AFTER] {
        let value = Some(line()).filter(|text| !text.is_empty());
        headers.extend(value.and_then(|text| Some((name, text.parse().ok()?))));
    }
    let body = parts.next().unwrap_or_default().to_vec();
    let reply = HttpReply { status, headers, body };
    let wall = Duration::from_secs(1_700_000_000);
    let context = Context { settings: &SETTINGS, wall, sent: &SENT };
    let outcome = read(&reply, context);
    for said in outcome.facts.values() {
        assert!(!said.contains(SECRET) && !said.contains("s3cr3t+value"));
    }
    match outcome.result {
        Ok(granted) => {
            let token = granted.token.expose();
            assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
            assert!(granted.lifetime > Duration::ZERO && granted.lifetime <= LONGEST);
        }
        Err(failure) => {
            let detail = failure.detail.unwrap_or_default();
            for told in [&failure.message, &detail] {
                assert!(!told.contains(SECRET) && !told.contains("s3cr3t+value"));
                assert!(told.chars().count() <= 400 && !told.chars().any(char::is_control));
            }
        }
    }
});

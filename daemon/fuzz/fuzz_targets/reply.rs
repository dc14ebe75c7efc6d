//! Any reply of a token endpoint: an accepted token fits into a header, its lifetime is bounded, and no message or
//! detail contains a secret of the request.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use http::header::{CONTENT_TYPE, DATE, HeaderMap, RETRY_AFTER};
use libfuzzer_sys::fuzz_target;
use tokend::oauth::redact::SentSecrets;
use tokend::oauth::response::{Context, HttpReply, read};

/// The secret of the request. Seeds and dictionary contain it.
const SECRET: &str = "s3cr3t value";

static SENT: LazyLock<SentSecrets> =
    LazyLock::new(|| SentSecrets::new([SECRET, "s3cr3t+value"].map(str::to_owned).into()));

const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

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
    let context = Context { default_lifetime: Duration::from_secs(300), wall, sent: &SENT };
    match read(&reply, context).result {
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

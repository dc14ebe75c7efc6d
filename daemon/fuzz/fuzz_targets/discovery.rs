//! Any metadata document: an accepted token endpoint uses TLS, or is on this host if the issuer is there without TLS,
//! and has no user name or password.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokend::oauth::discovery::{metadata_urls, read};
use tokend::oauth::response::HttpReply;
use url::Url;

static ISSUERS: LazyLock<[Url; 2]> = LazyLock::new(|| {
    ["https://id.example/", "http://127.0.0.1:7000/t"].map(|url| url.parse().expect("a URL"))
});

// A line with the status, then the document.
fuzz_target!(|input: &[u8]| {
    let (status, body) = match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (&b"200"[..], input),
    };
    let status = str::from_utf8(status).ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    let reply = HttpReply { status, body: body.to_vec(), ..HttpReply::default() };
    for issuer in &*ISSUERS {
        for has_certificate in [false, true] {
            let Ok(Some(endpoint)) = read(issuer, has_certificate, &reply, Duration::ZERO) else { continue };
            let endpoint = endpoint.url;
            assert!(endpoint.scheme() == "https" || (issuer.scheme() == "http" && is_loopback(&endpoint)));
            assert!(endpoint.username().is_empty() && endpoint.password().is_none());
        }
    }
    // The configured issuer can be any https URL.
    if let Ok(issuer) = str::from_utf8(body).unwrap_or_default().parse::<Url>()
        && issuer.scheme() == "https"
    {
        for url in metadata_urls(&issuer) {
            assert_eq!(
                (url.host_str(), url.port(), url.scheme()),
                (issuer.host_str(), issuer.port(), "https")
            );
        }
    }
});

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host == "localhost"
        || host == "[::1]"
        || host.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
}

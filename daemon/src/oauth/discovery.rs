//! Finds the token endpoint in an issuer's metadata (RFC 8414, OpenID Connect Discovery 1.0). Pure functions.

use std::time::Duration;

use serde::Deserialize;
use tokend_protocol::ErrorClass;
use url::Url;

use crate::config::is_secure_endpoint;
use crate::oauth::response::{self, HttpReply};
use crate::oauth::{Failure, Refusal, redact};

/// The endpoint of token requests, and who answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenEndpoint {
    pub url: Url,
    /// The issuer as it names itself. `None` if only the endpoint is configured.
    pub issuer: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    token_endpoint: String,
    /// Endpoints for clients with a certificate (RFC 8705 section 5).
    #[serde(default)]
    mtls_endpoint_aliases: serde_json::Value,
}

/// The URLs at which an issuer's metadata may be, in the order in which to look: OpenID Connect appends the well-known part
/// to the issuer's path, RFC 8414 prepends it.
pub fn metadata_urls(issuer: &Url) -> [Url; 2] {
    let path = issuer.path().trim_end_matches('/');
    let paths = [
        format!("{path}/.well-known/openid-configuration"),
        format!("/.well-known/oauth-authorization-server{path}"),
    ];
    paths.map(|path| {
        let mut url = issuer.clone();
        url.set_path(&path);
        url
    })
}

/// The token endpoint in a reply, or `None` where there is no document at this URL. A client with a certificate may have another
/// one than others.
pub fn read(
    issuer: &Url,
    has_certificate: bool,
    reply: &HttpReply,
    wall: Duration,
) -> Result<Option<TokenEndpoint>, Failure> {
    let message = match reply.status {
        200..300 => return token_endpoint(issuer, has_certificate, reply.text()).map(Some),
        404 | 410 => return Ok(None),
        status @ 300..400 => format!(
            "discovery: a redirect (status {status}), which is never followed: configure the final issuer"
        ),
        status => format!("discovery: status {status}"),
    };
    let failure = Failure::new(response::class(reply.status, None), message);
    let refusal = (failure.class == ErrorClass::Refused).then_some(Refusal::WithoutCode(reply.status));
    Err(Failure { retry_after: reply.retry_after(wall), refusal, ..failure })
}

/// Whether a failure at one URL ends the search: the issuer cannot be reached, or asked for a pause.
pub fn ends_search(failure: &Failure) -> bool {
    use ErrorClass::{Internal, Secret, Throttled, Timeout, Tls, Unreachable};
    failure.retry_after.is_some()
        || matches!(failure.class, Unreachable | Timeout | Tls | Throttled | Internal | Secret)
}

/// The token endpoint in a metadata document, whose issuer must be the configured one (RFC 8414 section 3.3).
fn token_endpoint(issuer: &Url, has_certificate: bool, document: &[u8]) -> Result<TokenEndpoint, Failure> {
    let refused = |message: &str| Failure::new(ErrorClass::Refused, format!("discovery: {message}"));
    let malformed = |message: &str| Failure::new(ErrorClass::Malformed, format!("discovery: {message}"));
    let metadata: Metadata = serde_json::from_slice(document)
        .map_err(|_| malformed("a document without issuer and token_endpoint"))?;
    if metadata.issuer.trim_end_matches('/') != issuer.as_str().trim_end_matches('/') {
        let message =
            "the document is that of another issuer; configure the issuer exactly as it names itself";
        let provider_said = Some(redact::printable(&format!("issuer: {}", metadata.issuer)));
        return Err(Failure { provider_said, ..refused(message) });
    }
    let alias = metadata.mtls_endpoint_aliases.get("token_endpoint").filter(|_| has_certificate);
    let endpoint = alias.and_then(serde_json::Value::as_str).unwrap_or(&metadata.token_endpoint);
    let url = Url::parse(endpoint).map_err(|_| malformed("a token_endpoint that is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("a token_endpoint with a user name or password before the host"));
    }
    // Only an issuer on this host may name an endpoint without TLS. Another issuer could choose which local service gets
    // the secret.
    let is_secure = url.scheme() == "https" || (issuer.scheme() == "http" && is_secure_endpoint(&url));
    let endpoint = TokenEndpoint { url, issuer: Some(metadata.issuer) };
    if is_secure { Ok(endpoint) } else { Err(refused("a token_endpoint without TLS")) }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderValue, RETRY_AFTER};

    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn both_well_known_forms_with_and_without_a_path() {
        let urls = |issuer| metadata_urls(&url(issuer)).iter().map(Url::to_string).collect::<Vec<_>>();
        assert_eq!(
            urls("https://id.example"),
            [
                "https://id.example/.well-known/openid-configuration",
                "https://id.example/.well-known/oauth-authorization-server"
            ]
        );
        assert_eq!(
            urls("https://id.example/tenant/"),
            [
                "https://id.example/tenant/.well-known/openid-configuration",
                "https://id.example/.well-known/oauth-authorization-server/tenant"
            ]
        );
    }

    #[test]
    fn takes_the_endpoint_only_from_the_issuers_own_document_and_only_with_tls() {
        let read = |document: &str| token_endpoint(&url("https://id.example/"), false, document.as_bytes());
        let good = r#"{"issuer":"https://id.example","token_endpoint":"https://id.example/token/","x":1}"#;
        let issuer = Some("https://id.example".to_owned());
        assert_eq!(read(good), Ok(TokenEndpoint { url: url("https://id.example/token/"), issuer }));
        let cases = [
            (
                r#"{"issuer":"https://evil.example","token_endpoint":"https://id.example/token"}"#,
                ErrorClass::Refused,
            ),
            (
                r#"{"issuer":"https://id.example","token_endpoint":"http://id.example/token"}"#,
                ErrorClass::Refused,
            ),
            (
                r#"{"issuer":"https://id.example","token_endpoint":"http://127.0.0.1/token"}"#,
                ErrorClass::Refused,
            ),
            (
                r#"{"issuer":"https://id.example","token_endpoint":"https://id.example@evil.example/token"}"#,
                ErrorClass::Refused,
            ),
            (
                r#"{"issuer":"https://id.example","token_endpoint":"https://:p@evil.example/token"}"#,
                ErrorClass::Refused,
            ),
            (
                r#"{"issuer":"https://id.example","token_endpoint":"ftp://id.example/token"}"#,
                ErrorClass::Refused,
            ),
            (r#"{"issuer":"https://id.example","token_endpoint":"/token"}"#, ErrorClass::Malformed),
            (r#"{"issuer":"https://id.example"}"#, ErrorClass::Malformed),
            ("<html>", ErrorClass::Malformed),
        ];
        for (document, class) in cases {
            assert_eq!(read(document).unwrap_err().class, class, "{document}");
        }
    }

    #[test]
    fn a_client_with_a_certificate_has_an_endpoint_of_its_own() {
        let document = r#"{"issuer":"https://id.example","token_endpoint":"https://id.example/token",
            "mtls_endpoint_aliases":{"token_endpoint":"https://mtls.id.example/token","x":1}}"#;
        let read = |has_certificate, document: &str| {
            let found = token_endpoint(&url("https://id.example"), has_certificate, document.as_bytes());
            found.map(|found| found.url.to_string())
        };
        assert_eq!(read(false, document).unwrap(), "https://id.example/token");
        assert_eq!(read(true, document).unwrap(), "https://mtls.id.example/token");
        let unsafe_alias = document.replace("https://mtls", "http://mtls");
        assert_eq!(read(true, &unsafe_alias).unwrap_err().class, ErrorClass::Refused);
        for other in ["null", "[]", r#"{"token_endpoint":null}"#] {
            let document = format!(
                r#"{{"issuer":"https://id.example","token_endpoint":"https://id.example/token","mtls_endpoint_aliases":{other}}}"#
            );
            assert_eq!(read(true, &document).unwrap(), "https://id.example/token");
        }
    }

    #[test]
    fn an_issuer_on_this_host_may_do_without_tls() {
        let read = |endpoint: &str| {
            let document = format!(r#"{{"issuer":"http://127.0.0.1:7000","token_endpoint":"{endpoint}"}}"#);
            token_endpoint(&url("http://127.0.0.1:7000"), false, document.as_bytes())
        };
        for endpoint in
            ["http://127.0.0.1:7000/token", "http://localhost:7001/token", "https://id.example/token"]
        {
            assert_eq!(read(endpoint).unwrap().url, url(endpoint));
        }
        assert_eq!(read("http://id.example/token").unwrap_err().class, ErrorClass::Refused);
    }

    #[test]
    fn a_status_is_sorted_as_that_of_a_token_response() {
        let fail = |status, retry_after: Option<&'static str>| {
            let mut reply = HttpReply { status, ..HttpReply::default() };
            let retry_after = retry_after.map(HeaderValue::from_static);
            reply.headers.extend(retry_after.map(|value| (RETRY_AFTER, value)));
            super::read(&url("https://id.example"), false, &reply, Duration::ZERO).unwrap_err()
        };
        let cases = [
            (403, ErrorClass::Refused),
            (302, ErrorClass::Refused),
            (408, ErrorClass::Server),
            (429, ErrorClass::Throttled),
            (500, ErrorClass::Server),
            (503, ErrorClass::Server),
        ];
        for (status, class) in cases {
            let failure = fail(status, None);
            assert_eq!(failure.class, class, "{status}");
            assert!(
                failure.message.starts_with("discovery: ") && failure.message.contains(&status.to_string())
            );
        }
        assert_eq!(fail(429, Some("60")).retry_after, Some(Duration::from_secs(60)));
    }

    #[test]
    fn the_search_goes_on_unless_the_issuer_cannot_be_asked_or_wants_a_rest() {
        use ErrorClass::*;
        for class in [Unreachable, Timeout, Tls, Throttled, Internal] {
            assert!(ends_search(&Failure::new(class, "x")), "{class:?}");
        }
        for class in [Refused, Malformed, Server] {
            assert!(!ends_search(&Failure::new(class, "x")), "{class:?}");
        }
        let rest = Failure { retry_after: Some(Duration::ZERO), ..Failure::new(Server, "x") };
        assert!(ends_search(&rest));
        let reply = HttpReply { status: 404, ..HttpReply::default() };
        assert_eq!(super::read(&url("https://id.example"), false, &reply, Duration::ZERO), Ok(None));
    }
}

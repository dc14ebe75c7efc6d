//! Which token endpoint an issuer's metadata names (RFC 8414, OpenID Connect Discovery 1.0). Pure functions.

use reqwest::Url;
use serde::Deserialize;
use tokend_protocol::ErrorClass;

use crate::config::is_secure_endpoint;
use crate::provider::Failure;

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    token_endpoint: String,
}

/// Where an issuer's metadata may be, in the order in which to look: OpenID Connect appends the well-known
/// part to the issuer's path, RFC 8414 puts it in front.
pub fn metadata_urls(issuer: &Url) -> Vec<Url> {
    let path = issuer.path().trim_end_matches('/');
    let paths = [
        format!("{path}/.well-known/openid-configuration"),
        format!("/.well-known/oauth-authorization-server{path}"),
    ];
    let with_path = |path: &String| {
        let mut url = issuer.clone();
        url.set_path(path);
        url
    };
    paths.iter().map(with_path).collect()
}

/// The token endpoint in a metadata document, which must be the issuer's own (RFC 8414 section 3.3).
pub fn token_endpoint(issuer: &Url, document: &[u8]) -> Result<Url, Failure> {
    let refused = |message: &str| Failure::new(ErrorClass::Refused, format!("discovery: {message}"));
    let metadata: Metadata = serde_json::from_slice(document).map_err(|_| {
        Failure::new(ErrorClass::Malformed, "discovery: a document without issuer and token_endpoint")
    })?;
    if metadata.issuer.trim_end_matches('/') != issuer.as_str().trim_end_matches('/') {
        return Err(refused(
            "the document is that of another issuer; configure the issuer exactly as it names itself",
        ));
    }
    let endpoint = Url::parse(&metadata.token_endpoint)
        .map_err(|_| Failure::new(ErrorClass::Malformed, "discovery: a token_endpoint that is no URL"))?;
    if is_secure_endpoint(&endpoint) { Ok(endpoint) } else { Err(refused("a token_endpoint without TLS")) }
}

#[cfg(test)]
mod tests {
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
        let read = |document: &str| token_endpoint(&url("https://id.example/"), document.as_bytes());
        let good = r#"{"issuer":"https://id.example","token_endpoint":"https://id.example/token/","x":1}"#;
        assert_eq!(read(good), Ok(url("https://id.example/token/")));
        let cases = [
            (
                r#"{"issuer":"https://evil.example","token_endpoint":"https://id.example/token"}"#,
                ErrorClass::Refused,
            ),
            (
                r#"{"issuer":"https://id.example","token_endpoint":"http://id.example/token"}"#,
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
}

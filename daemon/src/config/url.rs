//! Readers of URLs. Secrets travel to them, so what would be sent in the clear is refused here.

use url::Url;

use super::fault::quoted;
use super::section::Field;

/// A token endpoint: a URL that may have a query (RFC 6749 section 3.2).
pub(super) fn token_endpoint(field: &Field<'_>) -> Option<Url> {
    secure_url(field)
}

/// An issuer: a URL without a query (RFC 8414 section 2).
pub(super) fn issuer(field: &Field<'_>) -> Option<Url> {
    let url = secure_url(field)?;
    if url.query().is_some() {
        field.fault("an issuer has no query (RFC 8414); remove what follows the \"?\"");
        return None;
    }
    Some(url)
}

/// A proxy: any HTTP URL without a path, because what goes through it is encrypted end to end.
pub(super) fn proxy(field: &Field<'_>) -> Option<Url> {
    let url = http_url(field)?;
    if url.path() != "/" || url.query().is_some() {
        field.fault(
            "expected a proxy as scheme, host and port, such as \"http://proxy.example:3128\", and no more",
        );
        return None;
    }
    Some(url)
}

/// Secrets travel to this URL, so it is encrypted unless it stays on this host.
fn secure_url(field: &Field<'_>) -> Option<Url> {
    let url = http_url(field)?;
    if url.scheme() == "http" && !is_loopback(&url) {
        let host = quoted(url.host_str().unwrap_or_default());
        field.fault(format!(
            "http:// to {host} would send the client secret unencrypted; expected https:// \
             (http:// is for loopback hosts alone)"
        ));
        return None;
    }
    Some(url)
}

/// The text of a URL may hold a password, so no fault repeats it.
fn http_url(field: &Field<'_>) -> Option<Url> {
    const EXPECTED: &str = "expected a URL such as \"https://host.example/path\"";
    let text = field.text()?;
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            field.fault(format!("not a URL ({error}); {EXPECTED}"));
            return None;
        }
    };
    let problem = if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "has white space".to_owned()
    } else if !matches!(url.scheme(), "https" | "http") {
        format!("a URL of the scheme {}", quoted(url.scheme()))
    } else if !url.username().is_empty() || url.password().is_some() {
        "has a user name or password before the host, which would be shown in logs".to_owned()
    } else if url.port() == Some(0) {
        "has port 0, at which nobody listens".to_owned()
    } else if url.fragment().is_some() {
        "has a fragment, which is never sent".to_owned()
    } else {
        return Some(url);
    };
    field.fault(format!("{problem}; {EXPECTED}"));
    None
}

/// Whether what is sent there stays on this host.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

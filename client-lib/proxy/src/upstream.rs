//! Where requests go.

use std::str::FromStr;

use http::uri::PathAndQuery;
use url::{Host, Url};

/// The base of all URLs to which requests are sent.
#[derive(Clone, Debug)]
pub struct Upstream(Url);

/// Why a text is no upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadUpstream(&'static str);

impl std::fmt::Display for BadUpstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadUpstream {}

impl FromStr for Upstream {
    type Err = BadUpstream;

    fn from_str(text: &str) -> Result<Self, BadUpstream> {
        let url: Url = text.parse().map_err(|_| BadUpstream("expected a URL such as https://api.example"))?;
        let is_local = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        match url.scheme() {
            "https" => (),
            "http" if is_local => (),
            "http" => return Err(BadUpstream("others could read the token: use https://")),
            _ => return Err(BadUpstream("expected https://")),
        }
        if !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some()
        {
            return Err(BadUpstream("expected no user, query or fragment in the URL"));
        }
        Ok(Self(url))
    }
}

impl Upstream {
    /// The URL for a path of a request. `None` if that is outside the base, by `..` in the path for example.
    pub(crate) fn url(&self, path: &PathAndQuery) -> Option<Url> {
        let base = self.0.path().trim_end_matches('/');
        let mut url = self.0.clone();
        if !path.path().starts_with('/') {
            return None;
        }
        url.set_path(&format!("{base}{}", path.path()));
        url.set_query(path.query());
        // `set_path` resolves dots, also encoded ones.
        let is_inside = url.path().strip_prefix(base).is_some_and(|rest| rest.starts_with('/'));
        is_inside.then_some(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(upstream: &str, path: &str) -> Option<String> {
        let upstream: Upstream = upstream.parse().unwrap();
        upstream.url(&path.parse().unwrap()).map(|url| url.to_string())
    }

    #[test]
    fn a_request_keeps_its_path_and_query_below_the_base() {
        assert_eq!(
            url("https://api.example", "/a/b?c=d%20e").as_deref(),
            Some("https://api.example/a/b?c=d%20e")
        );
        assert_eq!(url("https://api.example:444/v1/", "/a").as_deref(), Some("https://api.example:444/v1/a"));
        assert_eq!(url("https://api.example/v1", "/").as_deref(), Some("https://api.example/v1/"));
        assert_eq!(
            url("https://api.example", "//evil.example/x").as_deref(),
            Some("https://api.example//evil.example/x")
        );
        assert_eq!(
            url("https://api.example", "/@evil.example").as_deref(),
            Some("https://api.example/@evil.example")
        );
        for outside in ["/../admin", "/a/../../admin", "/%2e%2e/admin", "/..", "/.%2E/admin", "*"] {
            assert_eq!(url("https://api.example/v1", outside), None, "{outside}");
        }
    }

    #[test]
    fn the_token_goes_over_tls_or_stays_on_this_host() {
        for good in ["https://api.example/x", "http://localhost:8080", "http://127.0.0.1", "http://[::1]:1/"]
        {
            assert!(good.parse::<Upstream>().is_ok(), "{good}");
        }
        for bad in [
            "http://api.example",
            "ftp://localhost",
            "api.example",
            "https://u:p@api.example",
            "https://a/?b",
            "http://127.0.0.1.evil.example",
        ] {
            assert!(bad.parse::<Upstream>().is_err(), "{bad}");
        }
    }
}

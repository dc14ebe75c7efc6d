//! One request: checked, given the headers of the token, sent to the upstream, and answered with its reply.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, ORIGIN, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, RETRY_AFTER, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use reqwest::{Body, Client, redirect, retry};
use rustls::{ClientConfig, RootCertStore, crypto, pki_types::CertificateDer, pki_types::pem::PemObject};
use serde_json::json;
use tokend_client::{Error as NoToken, SourceHeaders, TokenSource};
use url::Url;

use crate::Upstream;

/// How long a connection to the upstream may take to be made and encrypted. A reply may take as long as it does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest body that is kept in memory, so that it can be sent once more after a 401.
const REPEATABLE_MAX: u64 = 64 * 1024;

/// Of one connection (RFC 9110 section 7.6.1), with those that name them.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Forwards requests to one upstream with the headers of one token.
#[derive(Debug)]
pub struct Proxy {
    source: TokenSource,
    upstream: Upstream,
    client: Client,
}

/// A body, as far as it can be sent more than once.
enum Sendable {
    Whole(Bytes),
    Once(Option<Incoming>),
}

/// Why a request is not answered by the upstream.
struct Problem {
    status: StatusCode,
    detail: String,
    retry_after: Option<u64>,
    /// Whether whoever runs the proxy should know.
    is_logged: bool,
}

impl Proxy {
    /// A proxy that trusts the certificate authorities of the host, and those of `ca_file`.
    ///
    /// # Errors
    /// The file cannot be read, or TLS cannot be set up.
    pub fn new(
        source: TokenSource,
        upstream: Upstream,
        ca_file: Option<&Path>,
    ) -> Result<Self, Box<dyn Error>> {
        let client = Client::builder()
            .tls_backend_preconfigured(trust(ca_file)?)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .no_gzip()
            .no_deflate()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()?;
        Ok(Self { source, upstream, client })
    }

    /// Answers a request, always.
    pub async fn forward(&self, request: Request<Incoming>) -> Response<Body> {
        let answered = match self.checked(&request) {
            Ok(url) => self.exchange(url, request).await,
            Err(problem) => Err(problem),
        };
        answered.unwrap_or_else(Problem::into_response)
    }

    /// The URL of a request that may be forwarded.
    fn checked(&self, request: &Request<Incoming>) -> Result<Url, Problem> {
        let headers = request.headers();
        if headers.contains_key(UPGRADE) || request.method() == Method::CONNECT {
            let detail = "web sockets, other upgrades and tunnels are not forwarded";
            return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, detail));
        }
        // A page in a browser on this host could otherwise use the token.
        if headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
            return Err(Problem::new(StatusCode::FORBIDDEN, "requests of web pages are refused"));
        }
        let url = request.uri().path_and_query().and_then(|path| self.upstream.url(path));
        url.ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "the path leads out of the upstream's"))
    }

    /// Sends the request, and sends it once more if the upstream refuses the token and there is another one.
    async fn exchange(&self, url: Url, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        let (mut parts, body) = request.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        for name in [HOST, AUTHORIZATION] {
            parts.headers.remove(name);
        }
        let mut body = Sendable::of(body).await?;
        let headers = self.source.headers().await.map_err(|error| Problem::without_token(&error))?;
        let reply = self.send(&url, &parts, &headers, body.next()).await?;
        if reply.status() != StatusCode::UNAUTHORIZED {
            return Ok(passed_on(reply));
        }
        let another = self.source.reject(headers.info.fingerprint).await;
        match (another, body.next()) {
            (Ok(Some(_)), Some(body)) => {
                // It may hold a connection that the repetition needs.
                drop(reply);
                let headers = self.source.headers().await.map_err(|error| Problem::without_token(&error))?;
                Ok(passed_on(self.send(&url, &parts, &headers, Some(body)).await?))
            }
            _ => Ok(passed_on(reply)),
        }
    }

    async fn send(
        &self,
        url: &Url,
        parts: &Parts,
        token: &Arc<SourceHeaders>,
        body: Option<Body>,
    ) -> Result<reqwest::Response, Problem> {
        let mut headers = parts.headers.clone();
        for name in token.map.keys() {
            headers.remove(name);
        }
        headers.extend(token.map.iter().map(|(name, value)| (name.clone(), value.clone())));
        let request = self.client.request(parts.method.clone(), url.clone()).headers(headers);
        let request = match body {
            Some(body) => request.body(body),
            None => request,
        };
        request.send().await.map_err(|error| Problem::of_upstream(&error))
    }
}

/// TLS with the host's certificate authorities and those of a file.
fn trust(ca_file: Option<&Path>) -> Result<ClientConfig, Box<dyn Error>> {
    let mut roots = RootCertStore::empty();
    // Unparsable certificates are skipped, as other programs do.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let unusable = |error: &dyn std::fmt::Display| format!("--ca-file {}: {error}", path.display());
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))?;
        for certificate in certificates {
            roots.add(certificate.map_err(|error| unusable(&error))?).map_err(|error| unusable(&error))?;
        }
    }
    let versions = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?;
    let mut tls = versions.with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

impl Sendable {
    /// Reads a short body, so that it can be sent again.
    async fn of(body: Incoming) -> Result<Self, Problem> {
        if body.size_hint().upper().is_none_or(|size| size > REPEATABLE_MAX) {
            return Ok(Self::Once(Some(body)));
        }
        let most = usize::try_from(REPEATABLE_MAX).unwrap_or(usize::MAX);
        let whole = Limited::new(body, most).collect().await;
        let whole =
            whole.map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the body of the request broke off"))?;
        Ok(Self::Whole(whole.to_bytes()))
    }

    fn next(&mut self) -> Option<Body> {
        match self {
            Self::Whole(bytes) => Some(bytes.clone().into()),
            Self::Once(body) => body.take().map(Body::wrap),
        }
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The reply of the upstream, as it comes.
fn passed_on(reply: reqwest::Response) -> Response<Body> {
    let mut reply: Response<Body> = reply.into();
    remove_hop_by_hop(reply.headers_mut());
    *reply.version_mut() = Version::HTTP_11;
    reply
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after: None, is_logged: false }
    }

    fn without_token(error: &NoToken) -> Self {
        let status = match error {
            NoToken::DeadlineExceeded { .. } => StatusCode::GATEWAY_TIMEOUT,
            NoToken::NotAllowed { .. } | NoToken::UnknownToken { .. } | NoToken::InvalidRequest { .. } => {
                StatusCode::FORBIDDEN
            }
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let until = error.next_attempt().and_then(|at| at.duration_since(SystemTime::now()).ok());
        let wait = until.map(|wait| wait.as_secs() + 1).or(error.is_retryable().then_some(1));
        let problem = Self::new(status, format!("there is no token: {error}"));
        Self { retry_after: wait, is_logged: true, ..problem }
    }

    /// The library's own text would repeat the whole URL.
    fn of_upstream(error: &reqwest::Error) -> Self {
        let (status, detail) = if error.is_timeout() {
            (StatusCode::GATEWAY_TIMEOUT, "the upstream does not answer in time")
        } else if error.is_connect() {
            (StatusCode::BAD_GATEWAY, "no connection to the upstream, or its certificate is not trusted")
        } else if error.is_body() {
            (StatusCode::BAD_REQUEST, "the body of the request broke off")
        } else {
            (StatusCode::BAD_GATEWAY, "the exchange with the upstream failed")
        };
        let mut cause: &dyn Error = error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        Self { is_logged: status.is_server_error(), ..Self::new(status, format!("{detail}: {cause}")) }
    }

    /// A problem document (RFC 9457).
    fn into_response(self) -> Response<Body> {
        let Self { status, detail, retry_after, is_logged } = self;
        if is_logged {
            let _ = writeln!(io::stderr(), "tokend-proxy: {detail}");
        }
        let title = status.canonical_reason().unwrap_or_default();
        let document =
            json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
        let mut response = Response::new(Body::from(format!("{document}\n")));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

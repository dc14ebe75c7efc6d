//! Token requests over HTTP: TLS or loopback only, no redirect, no proxy that is not configured, a deadline
//! on everything, a bound on the body.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue,
    RETRY_AFTER,
};
use reqwest::{Certificate, Client, Proxy, Response, Url, redirect};
use tokend_protocol::ErrorClass;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::config::{ClientAuthentication, CredentialSettings, Endpoint, Grant};
use crate::provider::form::{RequestSecrets, TokenRequest, compose, without_secrets};
use crate::provider::reply::{Context, HttpReply, read};
use crate::provider::{Failure, Outcome, Provider, discovery, fault};
use crate::secret_source::SecretSource;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an exchange may take in all, body included.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest body that is read, after decompression.
const BODY_MAX: usize = 1024 * 1024;

/// Connections to providers that are reached in the same way share one of these, so that kept-alive
/// connections and the parsed trust roots are shared too.
#[derive(Debug)]
pub struct HttpClient {
    ca_file: Option<PathBuf>,
    proxy: Option<Url>,
    built: OnceCell<Client>,
}

impl HttpClient {
    /// A client that is built at its first use, so that a missing `ca_file` keeps one token back and not
    /// the daemon.
    pub fn new(ca_file: Option<PathBuf>, proxy: Option<Url>) -> Self {
        Self { ca_file, proxy, built: OnceCell::new() }
    }

    async fn client(&self) -> Result<&Client, Failure> {
        self.built.get_or_try_init(|| self.build()).await
    }

    async fn build(&self) -> Result<Client, Failure> {
        let ca_file = self.ca_file.clone();
        // Reading some hundred files takes a while, in which others must be served.
        let roots = tokio::task::spawn_blocking(move || trust_roots(ca_file))
            .await
            .map_err(|_| Failure::new(ErrorClass::Internal, "reading the trust roots broke off"))??;
        // reqwest looks for the process's provider of cryptography. An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = Client::builder()
            .user_agent(concat!("tokend/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TOTAL_TIMEOUT)
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .no_proxy()
            .tls_certs_only(roots);
        let builder = match &self.proxy {
            Some(url) => builder.proxy(
                Proxy::all(url.clone())
                    .map_err(|_| Failure::new(ErrorClass::Internal, "the proxy is not usable"))?,
            ),
            None => builder,
        };
        builder.build().map_err(|_| Failure::new(ErrorClass::Internal, "the HTTP client could not be set up"))
    }
}

/// The system's trust roots and those in `ca_file`.
fn trust_roots(ca_file: Option<PathBuf>) -> Result<Vec<Certificate>, Failure> {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "some of the system's trust roots cannot be read");
    }
    let mut store = rustls::RootCertStore::empty();
    // A root that the verifier cannot parse would make it refuse the whole list.
    let usable = system.certs.into_iter().filter(|certificate| store.add(certificate.clone()).is_ok());
    let mut roots: Vec<Certificate> = usable.filter_map(|der| Certificate::from_der(&der).ok()).collect();
    if let Some(path) = ca_file {
        let failed = |reason: String| {
            let detail = format!("{}: {reason}", path.display());
            Failure::new(ErrorClass::Tls, "the ca_file cannot be used").with_detail(detail)
        };
        let pem = std::fs::read(&path).map_err(|error| failed(error.kind().to_string()))?;
        let private =
            Certificate::from_pem_bundle(&pem).map_err(|_| failed("not a PEM bundle".to_owned()))?;
        if private.is_empty() {
            return Err(failed("no certificate in it".to_owned()));
        }
        roots.extend(private);
    }
    Ok(roots)
}

/// Asks one provider for one kind of token.
#[derive(Debug)]
pub struct HttpProvider {
    settings: Arc<CredentialSettings>,
    http: Arc<HttpClient>,
    clock: Clock,
    /// The token endpoint that the issuer's metadata named. Forgotten after a failure, because it may have
    /// moved. Held for a read or a write of one value, never across an await.
    discovered: Mutex<Option<Url>>,
}

impl Provider for HttpProvider {
    async fn request(&self) -> Outcome {
        // reqwest's own deadline covers each exchange; discovery makes up to three of them.
        let outcome = match tokio::time::timeout(3 * TOTAL_TIMEOUT, self.exchange()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(failure)) => Outcome { result: Err(failure), deviations: Vec::new() },
            Err(_) => {
                let failure = Failure::new(ErrorClass::Timeout, "no complete reply in time");
                Outcome { result: Err(failure), deviations: Vec::new() }
            }
        };
        if outcome.result.is_err() {
            *self.discovered() = None;
        }
        outcome
    }
}

impl HttpProvider {
    /// A provider with these settings.
    pub fn new(settings: Arc<CredentialSettings>, http: Arc<HttpClient>, clock: Clock) -> Self {
        Self { settings, http, clock, discovered: Mutex::new(None) }
    }

    async fn exchange(&self) -> Result<Outcome, Failure> {
        let endpoint = self.token_endpoint().await?;
        let secrets = self.secrets().await?;
        let request = compose(&self.settings, &secrets);
        let response = self.send(endpoint, &request).await?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = bounded_body(response).await?;
        let reply = HttpReply {
            status,
            content_type: text(&headers, &CONTENT_TYPE),
            content_encoding: text(&headers, &CONTENT_ENCODING),
            date: text(&headers, &DATE),
            retry_after: text(&headers, &RETRY_AFTER),
            body: &body,
        };
        let context = Context { default_lifetime: self.settings.default_lifetime, wall: self.clock.wall() };
        let mut outcome = read(&reply, context);
        if let Err(failure) = &mut outcome.result {
            failure.message = without_secrets(&failure.message, &request, &secrets);
            failure.detail = failure.detail.as_deref().map(|text| without_secrets(text, &request, &secrets));
        }
        Ok(outcome)
    }

    async fn token_endpoint(&self) -> Result<Url, Failure> {
        let issuer = match &self.settings.endpoint {
            Endpoint::Token(url) => return Ok(url.clone()),
            Endpoint::Issuer(issuer) => issuer,
        };
        let known = self.discovered().clone();
        if let Some(url) = known {
            return Ok(url);
        }
        let url = self.discover(issuer).await?;
        *self.discovered() = Some(url.clone());
        Ok(url)
    }

    fn discovered(&self) -> MutexGuard<'_, Option<Url>> {
        self.discovered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn discover(&self, issuer: &Url) -> Result<Url, Failure> {
        let mut failure = Failure::new(ErrorClass::Malformed, "discovery: nothing found");
        for url in discovery::metadata_urls(issuer) {
            match self.fetch_metadata(issuer, url).await {
                Ok(endpoint) => return Ok(endpoint),
                Err(next) => failure = next,
            }
        }
        Err(failure)
    }

    async fn fetch_metadata(&self, issuer: &Url, url: Url) -> Result<Url, Failure> {
        let request = self.http.client().await?.get(url).header(ACCEPT, "application/json");
        let response = request.send().await.map_err(|error| fault::classify(&error))?;
        let status = response.status();
        if !status.is_success() {
            let class = if status.is_server_error() { ErrorClass::Server } else { ErrorClass::Refused };
            return Err(Failure::new(class, format!("discovery: status {}", status.as_u16())));
        }
        discovery::token_endpoint(issuer, &bounded_body(response).await?)
    }

    async fn secrets(&self) -> Result<RequestSecrets, Failure> {
        let client_secret = match &self.settings.authentication {
            ClientAuthentication::SecretBasic { secret, .. }
            | ClientAuthentication::SecretPost { secret } => Some(secret),
            ClientAuthentication::None => None,
        };
        let password = match &self.settings.grant {
            Grant::ClientCredentials => None,
            Grant::Password { password, .. } => Some(password),
        };
        Ok(RequestSecrets {
            client_secret: read_secret("client_secret", client_secret).await?,
            password: read_secret("password", password).await?,
        })
    }

    async fn send(&self, endpoint: Url, request: &TokenRequest) -> Result<Response, Failure> {
        let mut builder = self
            .http
            .client()
            .await?
            .post(endpoint)
            .header(ACCEPT, &self.settings.accept)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(request.body.as_bytes().to_vec());
        if let Some(credentials) = &request.authorization {
            let mut value = HeaderValue::from_str(credentials)
                .map_err(|_| Failure::new(ErrorClass::Secret, "credentials that no header can carry"))?;
            value.set_sensitive(true);
            builder = builder.header(AUTHORIZATION, value);
        }
        builder.send().await.map_err(|error| fault::classify(&error))
    }
}

async fn read_secret(
    what: &str,
    source: Option<&SecretSource>,
) -> Result<Option<tokend_protocol::Secret>, Failure> {
    let Some(source) = source else { return Ok(None) };
    match source.read().await {
        Ok(secret) => Ok(Some(secret)),
        Err(error) => {
            let message = format!("the {what} cannot be read on this host");
            Err(Failure::new(ErrorClass::Secret, message).with_detail(error.to_string()))
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn bounded_body(mut response: Response) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut body = Zeroizing::new(Vec::with_capacity(4096));
    while let Some(chunk) = response.chunk().await.map_err(|error| fault::classify(&error))? {
        if body.len() + chunk.len() > BODY_MAX {
            return Err(Failure::new(ErrorClass::Malformed, "a reply of more than 1 MiB"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

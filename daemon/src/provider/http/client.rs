//! The HTTP client that the providers share who are reached in the same way: what it trusts, by which way it
//! goes, and what it never does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, Client, Proxy, Url, redirect};
use tokend_egress::Egress;
use tokend_protocol::ErrorClass;

use super::TOTAL_TIMEOUT;
use crate::provider::Failure;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection is kept that nothing is asked on. Its buffers hold what went over it last, which is a
/// secret and a token. This is long enough for what is asked at once (metadata and then a token, or many tokens at the
/// start), and tokens are minutes apart.
const KEPT_ALIVE: Duration = Duration::from_secs(1);

/// What `localhost` means, whatever the name service says (RFC 6761 section 6.3): requests to it may do without TLS.
/// The ports are those of the URLs.
const LOCALHOST: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0),
];

/// Connections to providers that are reached in the same way share one of these, so that kept-alive
/// connections and the parsed trust roots are shared too.
#[derive(Debug)]
pub struct HttpClient {
    ca_file: Option<PathBuf>,
    proxy: Option<Url>,
    egress: Egress,
    /// Locked while it is built, so that those who wait for it build no second one.
    built: tokio::sync::Mutex<Option<Arc<Client>>>,
}

impl HttpClient {
    /// A client that is built at its first use, so that a missing `ca_file` keeps one token back and not
    /// the daemon.
    pub fn new(ca_file: Option<PathBuf>, proxy: Option<Url>, egress: Egress) -> Self {
        Self { ca_file, proxy, egress, built: tokio::sync::Mutex::default() }
    }

    /// The client, built if there is none.
    pub(super) async fn client(&self) -> Result<Arc<Client>, Failure> {
        let mut built = self.built.lock().await;
        if let Some(client) = &*built {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(self.build().await?);
        *built = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Has the trust roots read again for the next request, because a certificate that this client does not
    /// trust may be of an authority that the host has come to trust since. A newer client is kept.
    pub(super) async fn forget(&self, client: &Arc<Client>) {
        let mut built = self.built.lock().await;
        if built.as_ref().is_some_and(|built| Arc::ptr_eq(built, client)) {
            *built = None;
        }
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
            .pool_idle_timeout(KEPT_ALIVE)
            .resolve_to_addrs("localhost", &LOCALHOST)
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

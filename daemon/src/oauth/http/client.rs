//! The HTTP client that the providers share who are reached in the same way: what it trusts, by which way it
//! goes, and what it never does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::USER_AGENT;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::{self, connect::proxy::Tunnel};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokend_egress::{Connection, Egress};
use tokend_protocol::ErrorClass;
use tower::timeout::Timeout;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt, service_fn};
use tower_http::decompression::{Decompression, DecompressionBody};
use url::Url;
use zeroize::Zeroizing;

use super::trust;
use crate::oauth::{Failure, error};

/// How long an exchange may take in all, body included.
pub(super) const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take to be made, by way of a proxy and encrypted.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection is kept that nothing is asked on. Its buffers hold what went over it last, which is a
/// secret and a token. This is long enough for what is asked at once (metadata and then a token, or many tokens at the
/// start), and tokens are minutes apart.
const KEPT_ALIVE: Duration = Duration::from_secs(1);

/// The largest body that is read, after decompression.
const BODY_MAX: usize = 1024 * 1024;

/// What the requests say of who sends them.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("tokend/", env!("CARGO_PKG_VERSION")));

/// The way to a provider: its connection, or a proxy's, which may be encrypted on its own.
type Way = MaybeHttpsStream<TokioIo<Connection>>;

/// Connects to where a URL leads.
type Connector<S> = BoxCloneSyncService<Uri, S, BoxError>;

/// Follows no redirect, knows no environment, and sends a request again only where nothing of it was sent.
pub(super) type Http =
    BoxCloneSyncService<Request<Full<Bytes>>, Response<DecompressionBody<Incoming>>, legacy::Error>;

/// Connections to providers that are reached in the same way share one of these, so that kept-alive
/// connections and the parsed trust roots are shared too.
#[derive(Debug)]
pub struct HttpClient {
    ca_file: Option<PathBuf>,
    proxy: Option<Url>,
    egress: Egress,
    /// Locked while it is built, so that those who wait for it build no second one.
    built: tokio::sync::Mutex<Option<Arc<Http>>>,
}

impl HttpClient {
    /// A client that is built at its first use, so that a missing `ca_file` keeps one token back and not
    /// the daemon.
    pub fn new(ca_file: Option<PathBuf>, proxy: Option<Url>, egress: Egress) -> Self {
        Self { ca_file, proxy, egress, built: tokio::sync::Mutex::default() }
    }

    /// The client, built if there is none.
    pub(super) async fn client(&self) -> Result<Arc<Http>, Failure> {
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
    pub(super) async fn forget(&self, client: &Arc<Http>) {
        let mut built = self.built.lock().await;
        if built.as_ref().is_some_and(|built| Arc::ptr_eq(built, client)) {
            *built = None;
        }
    }

    async fn build(&self) -> Result<Http, Failure> {
        let ca_file = self.ca_file.clone();
        // Reading some hundred files takes a while, in which others must be served.
        let trust = tokio::task::spawn_blocking(move || trust::configuration(ca_file.as_deref()))
            .await
            .map_err(|_| Failure::new(ErrorClass::Internal, "reading the trust roots broke off"))??;
        let trust = Arc::new(trust);
        let connector = HttpsConnector::from((self.way(&trust)?, trust));
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT_ALIVE)
            .build(BoxCloneSyncService::new(Timeout::new(connector, CONNECT_TIMEOUT)));
        Ok(BoxCloneSyncService::new(Decompression::new(client)))
    }

    fn way(&self, trust: &Arc<ClientConfig>) -> Result<Connector<Way>, Failure> {
        let egress = self.egress.clone();
        let connect = service_fn(move |to: Uri| connect(egress.clone(), to));
        let Some(proxy) = &self.proxy else {
            return Ok(BoxCloneSyncService::new(connect.map_response(MaybeHttpsStream::Http)));
        };
        let headers = HeaderMap::from_iter([(USER_AGENT, AGENT)]);
        let to_proxy = HttpsConnector::from((connect, Arc::clone(trust)));
        let tunnel = Tunnel::new(uri(proxy)?, to_proxy).with_headers(headers);
        Ok(BoxCloneSyncService::new(tunnel.map_err(BoxError::from)))
    }
}

async fn connect(egress: Egress, to: Uri) -> Result<TokioIo<Connection>, BoxError> {
    let default_port = if to.scheme_str() == Some("http") { 80 } else { 443 };
    let host = to.host().unwrap_or_default();
    Ok(TokioIo::new(egress.connect(host, to.port_u16().unwrap_or(default_port)).await?))
}

/// A URL as the HTTP library writes it.
pub(super) fn uri(url: &Url) -> Result<Uri, Failure> {
    Uri::try_from(url.as_str())
        .map_err(|_| Failure::new(ErrorClass::Internal, "a URL that no request can be sent to"))
}

/// Sends a request and receives the whole reply.
pub(super) async fn exchange(
    client: &Http,
    mut request: Request<Full<Bytes>>,
) -> Result<Response<Zeroizing<Vec<u8>>>, Failure> {
    request.headers_mut().insert(USER_AGENT, AGENT);
    let ended = tokio::time::timeout(TOTAL_TIMEOUT, async {
        let sent = client.clone().oneshot(request).await;
        let (head, body) = sent.map_err(|error| error::of_request(&error))?.into_parts();
        Ok(Response::from_parts(head, bounded(body).await?))
    });
    ended.await.unwrap_or_else(|_| Err(error::no_reply_in_time()))
}

async fn bounded(mut body: DecompressionBody<Incoming>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut whole = Zeroizing::new(Vec::with_capacity(4096));
    while let Some(frame) = body.frame().await {
        // What is not data are trailers, which say nothing here.
        let Ok(data) = frame.map_err(|error| error::of_body(&*error))?.into_data() else { continue };
        if whole.len() + data.len() > BODY_MAX {
            return Err(Failure::new(ErrorClass::Malformed, "a reply of more than 1 MiB"));
        }
        append(&mut whole, &data);
    }
    Ok(whole)
}

/// Appends to a body. Growing it in place would leave a copy behind that is not wiped.
fn append(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    if body.capacity() - body.len() < chunk.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity(2 * (body.len() + chunk.len())));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(chunk);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_comes_in_pieces_is_whole_however_large_it_grows() {
        let (mut body, mut expected) = (Zeroizing::new(Vec::with_capacity(4)), Vec::new());
        for length in [0, 3, 1, 1, 100, 4000, 0, 7] {
            let piece = vec![u8::try_from(length % 251).unwrap(); length];
            append(&mut body, &piece);
            expected.extend(piece);
        }
        assert_eq!(*body, expected);
    }
}

//! The HTTP client for discovery and token requests: its trust roots, proxy and egress sockets, its limits and its
//! failures.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Proxy, Request, redirect, retry};
use rustls::ClientConfig;
use tokend_protocol::ErrorClass;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use url::Url;

use crate::config::{ClientSettings, TlsSettings};
use crate::oauth::response::HttpReply;
use crate::oauth::tls::{ClientKey, client_key, read_tls, tls_failure, unusable, unusable_key};
use crate::oauth::{Failure, redact};
use crate::secret_source::on_another_thread;

/// How long one exchange may take, from the connection to the last byte of the reply.
pub(super) const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take to be made and encrypted, through a proxy where there is one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the look-up of a host name may take. Shorter than [`CONNECT_TIMEOUT`], so that the failure names the cause.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(2800);

/// How long an idle connection stays open. Its buffers hold a secret and a token. One second is enough for requests that
/// follow each other (metadata and then a token, or many tokens at the start); renewals are minutes apart.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The largest body that is read, after decompression.
const BODY_MAX: usize = 1024 * 1024;

/// The headers that a reply over HTTP/2 may have, in bytes.
const HEADERS_MAX: u32 = 16 * 1024;

/// How much of a reply over HTTP/2 a server may send before it is read: the smallest window of RFC 9113 section 6.9.2.
const HTTP2_WINDOW: u32 = 65_535;

/// The most clients that are held, one per egress socket. Only issuers whose metadata keeps changing reach this.
const CLIENTS_MAX: usize = 256;

/// How a provider is reached. Those with equal ones share connections and trust roots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Connection {
    pub ca_file: Option<PathBuf>,
    pub proxy: Option<Url>,
    pub tls: Option<Arc<TlsSettings>>,
}

/// Sends requests to providers that are reached in the same way.
#[derive(Debug)]
pub struct HttpClient {
    connection: Connection,
    egress_dir: Option<PathBuf>,
    /// Held by the one thread that reads trust roots, or the client's certificate and key.
    reading: Arc<Semaphore>,
    /// One for each egress socket; without an `egress_dir` one for all. Locked while trust roots are read, so that they are
    /// read once. A client with a certificate is made anew for each request, because certificates and keys are replaced.
    clients: Mutex<HashMap<Option<String>, Client>>,
}

/// The name service does not know the host or does not answer; the text is for operators.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unresolved(String);

impl Connection {
    pub fn of(client: &ClientSettings) -> Self {
        Self { ca_file: client.ca_file.clone(), proxy: client.proxy.clone(), tls: client.tls.clone() }
    }
}

impl HttpClient {
    /// A client that reads its trust roots at its first use, so that a missing `ca_file` affects its own tokens only.
    /// With an `egress_dir`, every connection goes through the Unix socket `egress_dir/HOST:PORT`.
    pub fn new(connection: Connection, egress_dir: Option<PathBuf>) -> Self {
        let reading = Arc::new(Semaphore::new(1));
        Self { connection, egress_dir, reading, clients: Mutex::default() }
    }

    /// Sends a request and receives the whole reply, within [`EXCHANGE_TIMEOUT`] after the trust roots are read.
    pub(super) async fn exchange(&self, request: Request) -> Result<HttpReply, Failure> {
        let egress = self.egress_dir.is_some().then(|| egress_instance(request.url()));
        let client = timeout(EXCHANGE_TIMEOUT, self.client(egress.clone())).await;
        let client = client.unwrap_or_else(|_| Err(self.unread_trust()))?;
        let failure = match receive(&client, request).await {
            Ok(Some(reply)) => return Ok(reply),
            Ok(None) => Failure::new(ErrorClass::Malformed, "a reply of more than 1 MiB"),
            Err(error) => self.with_trust(failure(&error, egress.as_deref())),
        };
        // The host may have come to trust another authority since: the trust roots are read again for the next request,
        // unless they are being read already.
        if failure.class == ErrorClass::Tls
            && let Ok(mut clients) = self.clients.try_lock()
        {
            clients.remove(&egress);
        }
        Err(failure)
    }

    /// Adds where the trust came from to a failure of trust.
    fn with_trust(&self, failure: Failure) -> Failure {
        match &self.connection.ca_file {
            _ if !failure.needs_operator => failure,
            Some(path) => failure.with_detail(format!(
                "trusted are the system's authorities and those in the ca_file {}",
                path.display()
            )),
            None => {
                failure.with_detail("trusted are the system's authorities; set ca_file for a private one")
            }
        }
    }

    fn unread_trust(&self) -> Failure {
        if self.connection.tls.is_some() {
            return unusable_key("it cannot be read in time".to_owned());
        }
        match &self.connection.ca_file {
            Some(path) => unusable(path, "it cannot be read in time"),
            None => internal("the trust roots cannot be read in time"),
        }
    }

    async fn client(&self, egress: Option<String>) -> Result<Client, Failure> {
        if let Some(settings) = &self.connection.tls {
            let key = client_key(settings, &self.reading).await?;
            return self.new_client(egress.as_ref(), Some((Arc::clone(settings), key))).await;
        }
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(&egress) {
            return Ok(client.clone());
        }
        let client = self.new_client(egress.as_ref(), None).await?;
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(egress, client.clone());
        Ok(client)
    }

    async fn new_client(&self, egress: Option<&String>, key: Option<ClientKey>) -> Result<Client, Failure> {
        let ca_file = self.connection.ca_file.clone();
        let permit = Arc::clone(&self.reading).acquire_owned().await.ok();
        let read = on_another_thread(permit, move || read_tls(ca_file.as_deref(), key)).await;
        let tls = read.unwrap_or_else(|_| Err(internal("reading the trust roots broke off")))?;
        let socket = self.egress_dir.as_ref().zip(egress).map(|(dir, instance)| dir.join(instance));
        build(tls, self.connection.proxy.as_ref(), socket)
            .map_err(|_| internal("the HTTP client cannot be set up"))
    }
}

/// The name of the egress socket for a URL's origin: `HOST:PORT`. An IPv6 address has no brackets, because a unit
/// name cannot have them.
pub(super) fn egress_instance(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    format!("{host}:{}", url.port_or_known_default().unwrap_or_default())
}

/// Follows no redirect, reads no proxy from the environment, and repeats no request that a provider may have seen.
fn build(tls: ClientConfig, proxy: Option<&Url>, socket: Option<PathBuf>) -> reqwest::Result<Client> {
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls)
        // What a server may send ahead: these two are the least of RFC 9113 and the library's own default.
        .http2_initial_stream_window_size(HTTP2_WINDOW)
        .http2_initial_connection_window_size(HTTP2_WINDOW)
        .http2_max_header_list_size(HEADERS_MAX)
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .no_proxy()
        .dns_resolver(NameService)
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(EXCHANGE_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("tokend/", env!("CARGO_PKG_VERSION")));
    if let Some(proxy) = proxy {
        // Only for https://, which goes through a tunnel: a proxy for http:// would read the secret.
        builder = builder.proxy(Proxy::https(proxy.as_str())?);
    }
    if let Some(socket) = socket {
        builder = builder.unix_socket(socket);
    }
    builder.build()
}

/// The whole reply, or `None` where it is too large.
async fn receive(client: &Client, request: Request) -> reqwest::Result<Option<HttpReply>> {
    let mut response = client.execute(request).await?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > BODY_MAX {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    let headers = std::mem::take(response.headers_mut());
    Ok(Some(HttpReply { status: response.status().as_u16(), headers, body }))
}

/// Resolves names with the system's resolver (getaddrinfo(3)).
struct NameService;

impl Resolve for NameService {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The caller sets the port. `localhost` is this host, whatever the name service says (RFC 6761 section 6.3):
            // requests to it may do without TLS.
            let addresses: Vec<SocketAddr> = if name.as_str().eq_ignore_ascii_case("localhost") {
                vec![(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()]
            } else {
                timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((name.as_str(), 0)))
                    .await
                    .map_err(|_| Unresolved("the name service does not answer in time".to_owned()))?
                    .map_err(|error| Unresolved(error.to_string()))?
                    .collect()
            };
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Returns the failure of an exchange without a reply. `egress` is the instance of the egress units, to which the
/// detail then refers.
///
/// The client's own text is never passed on, because it contains the whole URL. The TLS library's text counts as the
/// provider's words, because a certificate can put anything into it.
fn failure(error: &reqwest::Error, egress: Option<&str>) -> Failure {
    let failure = classify(error);
    // A host with other characters has no unit, and an operator must not be told to paste it into a shell.
    let in_a_unit_name = |byte: u8| byte.is_ascii_alphanumeric() || b".:-_".contains(&byte);
    let Some(instance) = egress.filter(|instance| instance.bytes().all(in_a_unit_name)) else {
        return failure;
    };
    let socket_is_missing = cause::<io::Error>(error).is_some_and(|fault| {
        matches!(fault.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
    });
    match failure.class {
        ErrorClass::Unreachable if error.is_connect() && socket_is_missing => {
            let message = "network: no egress socket for the provider";
            Failure::new(ErrorClass::Unreachable, message).with_detail(format!(
                "nothing listens for {instance}; run `systemctl enable --now tokend-egress@{instance}.socket`"
            ))
        }
        ErrorClass::Unreachable | ErrorClass::Timeout => {
            failure.with_detail(format!("see `journalctl -u 'tokend-egress@{instance}.service'`"))
        }
        _ => failure,
    }
}

fn classify(error: &reqwest::Error) -> Failure {
    let unreachable = |message: String| Failure::new(ErrorClass::Unreachable, message);
    if let Some(fault) = cause::<rustls::Error>(error) {
        return tls_failure(fault);
    }
    if let Some(Unresolved(reason)) = cause::<Unresolved>(error) {
        let failure = unreachable("network: the provider's name cannot be resolved".to_owned());
        return failure.with_detail(redact::printable(reason));
    }
    let fault = cause::<io::Error>(error).map(io::Error::kind);
    if error.is_timeout() || fault == Some(io::ErrorKind::TimedOut) {
        let message = if error.is_connect() { "no connection in time" } else { "no complete reply in time" };
        return Failure::new(ErrorClass::Timeout, message);
    }
    match fault {
        // An error of the decompressor is an I/O error too, but the provider caused it.
        Some(kind) if !matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => {
            unreachable(format!("network: {kind}"))
        }
        _ if error.is_builder() => internal("the request cannot be written"),
        _ if error.is_decode() => {
            Failure::new(ErrorClass::Malformed, "a reply that breaks off or cannot be decoded")
        }
        _ if error.is_connect() => unreachable("no connection to the provider".to_owned()),
        _ if is_not_http(error) => {
            Failure::new(ErrorClass::Malformed, "a reply that is not valid HTTP, or has too many headers")
        }
        _ => unreachable("the exchange with the provider broke off".to_owned()),
    }
}

/// Whether the provider sent something that breaks the rules of HTTP, or more headers than are read. hyper and h2 say so in
/// their texts; their types are no interface of reqwest's.
fn is_not_http(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| {
        let text = cause.to_string();
        ["parsed", "message head is too large", "error detected"].iter().any(|words| text.contains(words))
    })
}

/// The innermost error of a type among an error and its causes.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    causes(error).filter_map(|error| error.downcast_ref::<E>()).last()
}

/// An error and its causes.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An io::Error that wraps another error does not name it as its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|error| error as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

fn internal(message: &str) -> Failure {
    Failure::new(ErrorClass::Internal, message)
}

#[cfg(test)]
mod tests {
    use reqwest::Method;

    use super::*;

    async fn failed(url: &str, egress_dir: Option<PathBuf>) -> Failure {
        let request = Request::new(Method::GET, url.parse().unwrap());
        HttpClient::new(Connection::default(), egress_dir).exchange(request).await.unwrap_err()
    }

    fn with_ca_file(path: PathBuf) -> Connection {
        Connection { ca_file: Some(path), ..Connection::default() }
    }

    #[tokio::test]
    async fn an_unknown_name_and_a_closed_port_are_told_apart() {
        let unknown = failed("https://nobody.invalid/", None).await;
        assert_eq!(unknown.message, "network: the provider's name cannot be resolved");
        assert!(unknown.detail.is_some_and(|detail| !detail.is_empty()));
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for host in ["127.0.0.1", "localhost"] {
            let refused = failed(&format!("http://{host}:{}/", closed.port()), None).await;
            assert_eq!(
                (refused.class, &*refused.message),
                (ErrorClass::Unreachable, "network: connection refused")
            );
        }
    }

    #[tokio::test]
    async fn a_ca_file_that_is_no_regular_file_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [pipe, "/dev/zero".into(), directory.path().to_owned()] {
            let failure = HttpClient::new(with_ca_file(path.clone()), None).client(None).await.unwrap_err();
            let detail = format!("{}: it cannot be read: not a regular file", path.display());
            assert_eq!(failure.detail, Some(detail));
        }
    }

    /// The permit is taken as by a thread that hangs.
    #[tokio::test(start_paused = true)]
    async fn a_ca_file_that_hangs_occupies_one_thread_and_no_other_client_waits_for_it() {
        let hanging = HttpClient::new(with_ca_file("/dev/null".into()), None);
        let _thread = hanging.reading.acquire().await.unwrap();
        let attempt = timeout(Duration::from_secs(60), hanging.client(None)).await;
        assert!(attempt.is_err(), "a second thread reads it: {attempt:?}");
        assert!(HttpClient::new(Connection::default(), None).client(None).await.is_ok());
    }

    #[tokio::test]
    async fn a_missing_egress_socket_names_the_command_that_makes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("127.0.0.1:443");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        for url in ["https://id.example/token", "https://127.0.0.1/token"] {
            let failure = failed(url, Some(directory.path().to_owned())).await;
            let instance = egress_instance(&url.parse().unwrap());
            let command = format!("systemctl enable --now tokend-egress@{instance}.socket");
            assert_eq!(failure.class, ErrorClass::Unreachable);
            assert!(failure.detail.as_ref().is_some_and(|detail| detail.contains(&command)), "{failure:?}");
        }
    }

    #[test]
    fn the_instance_of_an_egress_unit_has_a_host_and_a_port() {
        for (url, instance) in [
            ("https://identity.econnect.eu/connect/token", "identity.econnect.eu:443"),
            ("https://ID-2.example:8443/", "id-2.example:8443"),
            ("http://localhost/", "localhost:80"),
            ("https://[2001:db8::1]/", "2001:db8::1:443"),
        ] {
            assert_eq!(egress_instance(&url.parse().unwrap()), instance);
        }
    }

    #[test]
    fn a_cause_is_found_within_an_io_error() {
        let inner = rustls::Error::DecryptError;
        let outer = io::Error::other(io::Error::other(inner.clone()));
        assert_eq!(cause::<rustls::Error>(&outer), Some(&inner));
    }
}

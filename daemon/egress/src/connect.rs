//! One connection: the name, then its addresses, of both versions of IP beside each other (RFC 8305).

use std::error::Error;
use std::future::ready;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tower::{Service, service_fn};

/// How long a connection may take to be made, with the name looked up. Less than the three seconds in which the daemon
/// wants it encrypted too, so that it is told what took so long.
pub const TIMEOUT: Duration = Duration::from_millis(2800);

/// What `localhost` means, whatever the name service says (RFC 6761 section 6.3): requests to it may do without TLS.
pub(crate) const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name service knows no address, or does not answer. It says why.
    #[error("the name cannot be resolved: {0}")]
    Unresolved(String),
    /// No address answers; what the last one said.
    #[error("no connection: {0}")]
    Failed(#[source] io::Error),
    /// The process that connects for this one does not.
    #[error(
        "{}: {source}; see `systemctl status tokend-egress.socket tokend-egress.service`",
        .path.display()
    )]
    Helper {
        /// Its socket.
        path: PathBuf,
        /// What happened there.
        source: io::Error,
    },
}

/// Connects from this process, for itself.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    connect_within(TIMEOUT, host, port).await
}

/// Connects from this process within a time.
pub async fn connect_within(limit: Duration, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let deadline = Instant::now() + limit;
    let silent = || ConnectError::Unresolved("the name service does not answer in time".to_owned());
    let addresses = timeout_at(deadline, addresses(host, port)).await.map_err(|_| silent())??;
    let connected = timeout_at(deadline, to_any(limit, addresses)).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(ConnectError::Failed)
}

async fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    if is_localhost(host) {
        return Ok(LOCALHOST.map(|address| SocketAddr::new(address, port)).into());
    }
    let host = without_brackets(host);
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    match lookup_host((host, port)).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(ConnectError::Unresolved(error.to_string())),
    }
}

/// Whether this is the name of this host.
pub(crate) fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

/// An IPv6 address stands in brackets in a URL.
pub(crate) fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The first that answers: the second version of IP is tried beside the first where that takes long, and each address
/// has its share of the time.
async fn to_any(limit: Duration, addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    // The connector of HTTP does this well. It is given the addresses in place of a name service.
    let mut connector = HttpConnector::new_with_resolver(service_fn(move |_| {
        ready(io::Result::Ok(addresses.clone().into_iter()))
    }));
    connector.set_connect_timeout(Some(limit));
    connector.set_nodelay(true);
    let stream = connector.call(Uri::from_static("http://resolved")).await;
    stream.map(TokioIo::into_inner).map_err(|error| io_cause(&error))
}

/// What the kernel said, without what the connector adds.
fn io_cause(error: &(dyn Error + 'static)) -> io::Error {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let fault = causes.filter_map(|error| error.downcast_ref::<io::Error>()).last();
    let known = fault
        .map(|fault| fault.raw_os_error().map_or_else(|| fault.kind().into(), io::Error::from_raw_os_error));
    known.unwrap_or_else(|| io::Error::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{closed, listener};

    #[tokio::test]
    async fn names_and_addresses_of_both_versions_lead_there() {
        let (_v4, port) = listener("127.0.0.1").await;
        for host in ["localhost", "LOCALHOST", "127.0.0.1"] {
            let stream = connect(host, port).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), SocketAddr::from(([127, 0, 0, 1], port)), "{host}");
        }
        let (_v6, port) = listener("::1").await;
        for host in ["localhost", "[::1]", "::1"] {
            let stream = connect(host, port).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), SocketAddr::from((Ipv6Addr::LOCALHOST, port)), "{host}");
        }
    }

    #[tokio::test]
    async fn who_does_not_answer_and_who_is_not_known_are_told_apart() {
        let (_closed, port) = closed();
        let Err(ConnectError::Failed(error)) = connect("127.0.0.1", port).await else {
            panic!("a connection")
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(matches!(connect("nobody.invalid", 443).await, Err(ConnectError::Unresolved(_))));
        assert!(matches!(connect("not a name", 443).await, Err(ConnectError::Unresolved(_))));
    }
}

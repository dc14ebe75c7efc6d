//! One connection: the name, then its addresses, of both versions of IP beside each other (RFC 8305).

use std::error::Error;
use std::future::ready;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tower::{Service, service_fn};

/// How long a connection may take to be made, with the name looked up.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// How many names are looked up at once. One whose name service is silent holds a thread for as long as the C library
/// likes, half a minute as a rule, also when nobody waits for it any more.
pub const LOOKUPS_MOST: usize = 32;

static LOOKUPS: Semaphore = Semaphore::const_new(LOOKUPS_MOST);

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
    let ended = tokio::time::timeout(limit, async {
        let addresses = addresses(host, port).await?;
        to_any(limit, addresses).await.map_err(ConnectError::Failed)
    });
    ended.await.unwrap_or_else(|_| Err(ConnectError::Failed(io::ErrorKind::TimedOut.into())))
}

async fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    if is_localhost(host) {
        return Ok(LOCALHOST.map(|address| SocketAddr::new(address, port)).into());
    }
    let host = without_brackets(host);
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    look_up(host, port).await.map_err(|error| ConnectError::Unresolved(error.to_string()))
}

/// Whether this is the name of this host.
pub(crate) fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

/// An IPv6 address stands in brackets in a URL.
pub(crate) fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

async fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let place = LOOKUPS.acquire().await.map_err(io::Error::other)?;
    let name = (host.to_owned(), port);
    let answered = spawn_blocking(move || {
        // Until the C library is done, not until who asks has given up.
        let _place = place;
        name.to_socket_addrs().map(Iterator::collect)
    });
    answered.await.map_err(io::Error::other)?
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

    #[tokio::test(start_paused = true)]
    async fn a_name_service_that_is_silent_holds_up_names_alone_and_no_longer_than_a_host() {
        let all = LOOKUPS.acquire_many(u32::try_from(LOOKUPS_MOST).unwrap()).await.unwrap();
        let late = connect("nobody.invalid", 443).await.unwrap_err();
        assert!(matches!(late, ConnectError::Failed(error) if error.kind() == io::ErrorKind::TimedOut));
        let (_provider, port) = listener("127.0.0.1").await;
        connect("localhost", port).await.unwrap();
        connect("127.0.0.1", port).await.unwrap();
        drop(all);
        assert!(matches!(connect("nobody.invalid", 443).await, Err(ConnectError::Unresolved(_))));
    }
}

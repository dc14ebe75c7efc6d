//! A connection that another process has made: looked at before a byte is written to it.

use std::io;
use std::net::{IpAddr, TcpStream as Unregistered};
use std::os::fd::OwnedFd;

use rustix::net::sockopt::{socket_domain, socket_protocol, socket_type};
use rustix::net::{AddressFamily, SocketType, ipproto};
use tokio::net::TcpStream;

use crate::connect::{LOCALHOST, is_localhost, without_brackets};

/// The connection to this host and port that a descriptor is said to be.
///
/// That it leads to the host of a name is for TLS to prove. To a host that may do without TLS, which is one of
/// loopback, it must lead by its address.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] where it is something else.
pub fn connection(descriptor: OwnedFd, host: &str, port: u16) -> io::Result<TcpStream> {
    if !is_tcp(&descriptor)? {
        return Err(invalid("what it passed is no TCP socket"));
    }
    let stream = Unregistered::from(descriptor);
    let Ok(peer) = stream.peer_addr() else { return Err(invalid("what it passed is not connected")) };
    if peer.port() != port || !may_be(host, peer.ip().to_canonical()) {
        return Err(invalid("what it passed leads elsewhere"));
    }
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

fn is_tcp(descriptor: &OwnedFd) -> io::Result<bool> {
    let Ok(domain) = socket_domain(descriptor) else { return Ok(false) };
    let is_internet = domain == AddressFamily::INET || domain == AddressFamily::INET6;
    Ok(is_internet
        && socket_type(descriptor)? == SocketType::STREAM
        && socket_protocol(descriptor)? == Some(ipproto::TCP))
}

fn may_be(host: &str, peer: IpAddr) -> bool {
    if is_localhost(host) {
        return LOCALHOST.contains(&peer);
    }
    match without_brackets(host).parse::<IpAddr>() {
        Ok(address) if address.is_loopback() => peer == address,
        _ => true,
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_on_loopback_has_its_own_address_alone_and_others_any() {
        let cases = [
            ("localhost", "127.0.0.1", true),
            ("LOCALHOST", "::1", true),
            ("localhost", "127.0.0.2", false),
            ("localhost", "192.0.2.1", false),
            ("localhost", "2001:db8::1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "::1", false),
            ("127.0.0.1", "192.0.2.1", false),
            ("[::1]", "::1", true),
            ("::1", "2001:db8::1", false),
            ("id.example", "192.0.2.1", true),
            ("id.example", "127.0.0.1", true),
            ("192.0.2.1", "198.51.100.1", true),
        ];
        for (host, peer, may) in cases {
            assert_eq!(may_be(host, peer.parse().unwrap()), may, "{host} {peer}");
        }
    }
}

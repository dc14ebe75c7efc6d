//! A relay between the daemon and a provider that records every byte that the daemon sends.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A connection on which nothing happens for so long is given up, so that no thread outlives its test for long.
const LIMIT: Duration = Duration::from_secs(180);

/// A listener on loopback. What it does with a connection is one of the functions that make it.
#[derive(Debug)]
pub struct Capture {
    address: SocketAddr,
    heard: Arc<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    bytes: Mutex<Vec<u8>>,
    connections: AtomicUsize,
}

impl Capture {
    /// Passes everything on to a server.
    pub fn before(server: SocketAddr) -> Self {
        Self::start(move |client, heard| relay(client, &TcpStream::connect(server)?, heard))
    }

    /// An HTTP proxy, which passes on what it is asked to connect to.
    pub fn proxy() -> Self {
        Self::start(|mut client, heard| {
            let host = connect_head(&mut client, heard)?;
            let server = TcpStream::connect(host)?;
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            relay(client, &server, heard)
        })
    }

    /// A server without TLS: it answers whatever comes first with these bytes.
    pub fn answering(answer: &'static [u8]) -> Self {
        Self::start(move |mut client, heard| {
            let mut buffer = [0; 4096];
            let length = client.read(&mut buffer)?;
            heard.note(&buffer[..length]);
            client.write_all(answer)?;
            record(&mut client, &mut io::sink(), heard)
        })
    }

    fn start(serve: impl Fn(TcpStream, &Heard) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port is free");
        let address = listener.local_addr().expect("a socket that listens has an address");
        let (heard, serve) = (Arc::new(Heard::default()), Arc::new(serve));
        let noting = Arc::clone(&heard);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (noting, serve) = (Arc::clone(&noting), Arc::clone(&serve));
                noting.connections.fetch_add(1, Ordering::Relaxed);
                let limited = client.set_read_timeout(Some(LIMIT));
                // How a connection ends is of no interest here, only what came over it.
                thread::spawn(move || limited.and_then(|()| serve(client, &noting)));
            }
        });
        Self { address, heard }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> usize {
        self.heard.connections.load(Ordering::Relaxed)
    }

    /// Every byte that was sent to it so far.
    pub fn heard(&self) -> Vec<u8> {
        self.heard.lock().clone()
    }
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, bytes: &[u8]) {
        self.lock().extend_from_slice(bytes);
    }
}

fn relay(mut client: TcpStream, server: &TcpStream, heard: &Heard) -> io::Result<()> {
    server.set_read_timeout(Some(LIMIT))?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let mut to_server = server.try_clone()?;
    let ended = record(&mut client, &mut to_server, heard);
    let _ = server.shutdown(Shutdown::Write);
    ended
}

fn record(from: &mut TcpStream, to: &mut impl Write, heard: &Heard) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            length => {
                heard.note(&buffer[..length]);
                to.write_all(&buffer[..length])?;
            }
        }
    }
}

/// Reads the head of a `CONNECT` request, byte by byte so that nothing after it is taken: the host and port.
fn connect_head(client: &mut TcpStream, noting: &Heard) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend_from_slice(&byte);
    }
    noting.note(&head);
    let head = String::from_utf8_lossy(&head).into_owned();
    let host = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    host.map(str::to_owned).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

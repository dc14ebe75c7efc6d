//! An egress socket on which a stand-in for `systemd-socket-proxyd` listens.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The socket. It goes with its directory.
#[derive(Debug)]
pub struct EgressSocket {
    connections: Arc<AtomicUsize>,
}

impl EgressSocket {
    /// A socket `directory/instance` whose connections lead to a server.
    ///
    /// # Panics
    /// When the socket cannot be bound.
    pub fn to(directory: &Path, instance: &str, server: SocketAddr) -> Self {
        Self::start(directory, instance, move |client| relay(client, &TcpStream::connect(server)?))
    }

    /// A socket whose connections are closed without a byte, as for a server that cannot be reached.
    ///
    /// # Panics
    /// When the socket cannot be bound.
    pub fn to_nowhere(directory: &Path, instance: &str) -> Self {
        Self::start(directory, instance, |_| Ok(()))
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn start(
        directory: &Path,
        instance: &str,
        serve: impl Fn(UnixStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        std::fs::create_dir_all(directory).expect("the directory can be made");
        let listener = UnixListener::bind(directory.join(instance)).expect("the socket can be bound");
        let (connections, serve) = (Arc::new(AtomicUsize::new(0)), Arc::new(serve));
        let counted = Arc::clone(&connections);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::Relaxed);
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(client));
            }
        });
        Self { connections }
    }
}

fn relay(mut client: UnixStream, server: &TcpStream) -> io::Result<()> {
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let ended = io::copy(&mut client, &mut server.try_clone()?);
    let _ = server.shutdown(Shutdown::Write);
    ended.map(drop)
}

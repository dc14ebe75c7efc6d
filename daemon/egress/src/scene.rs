//! What the tests of several files need: a socket in a directory of its own, and helpers that answer as a test says.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::task::JoinHandle;

use crate::channel::Channel;
use crate::wire::{Request, decode};
use crate::{Helper, server, socket};

/// A directory with a socket in it.
pub(crate) struct Scene {
    directory: TempDir,
}

/// A process that serves the socket. It ends when it is dropped.
pub(crate) struct Serving {
    task: JoinHandle<()>,
    _lock: File,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("egress.sock")
    }

    pub(crate) fn helper(&self) -> Helper {
        Helper::new(self.path())
    }

    pub(crate) fn channel(&self) -> Channel {
        Channel::connect(&self.path()).unwrap()
    }

    pub(crate) fn listen(&self) -> (UnixListener, File) {
        let (listener, lock) = socket::make(&self.path()).unwrap();
        (UnixListener::from_std(listener).unwrap(), lock)
    }

    /// Serves it as the program does.
    pub(crate) fn serve(&self) -> Serving {
        let (listener, lock) = self.listen();
        Serving { task: tokio::spawn(server::serve(listener)), _lock: lock }
    }

    /// Answers each request by a function, and keeps open what that gives back.
    pub(crate) fn answer<F>(&self, mut how: impl FnMut(Channel, Request) -> F + Send + 'static) -> Serving
    where
        F: Future<Output = Option<Channel>> + Send,
    {
        let (listener, lock) = self.listen();
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let channel = Channel::accepted(listener.accept().await.unwrap().0);
                let request = channel.receive().await.unwrap().unwrap();
                open.extend(how(channel, decode(&request.bytes).unwrap()).await);
            }
        });
        Serving { task, _lock: lock }
    }
}

/// A listening socket of TCP, and its port.
pub(crate) async fn listener(address: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port of 127.0.0.1 at which nobody listens. It is kept, so that nobody else comes to.
pub(crate) fn closed() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// A port of 127.0.0.1 that answers nobody: its queue is full.
pub(crate) async fn silent() -> (impl Sized, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let full = socket.listen(0).unwrap();
    let port = full.local_addr().unwrap().port();
    let first = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    ((full, first), port)
}

/// In a network of its own, which a thread may leave its process for, so that the host's is not touched. Only root may.
pub(crate) fn in_own_network<F: Future>(test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let alone = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { drop(test().await) });
    });
    alone.join().unwrap();
}

/// Changes the network that a thread is in.
pub(crate) fn raise_link() {
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

//! The daemon's own listening socket, for when systemd passes none.
//!
//! The socket's file is never more open than it ends up, and a socket that another process serves is never taken away.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, chown};

/// The mode of the socket: its user and group may connect.
const MODE: u32 = 0o660;

/// Connections that the kernel queues until they are accepted, capped by net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves it.
    #[error("{} is served by another process; stop that one first, or choose another socket", .0.display())]
    InUse(PathBuf),
    /// The path holds something that is not a socket.
    #[error("{} exists and is not a socket; remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("the socket {} cannot be made: {what}: {source}", .path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

/// A socket that this process made. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct OwnSocket {
    path: PathBuf,
    inode: u64,
    /// Held while the socket is served, so that only one of two daemons that start together gets it.
    _lock: Flock<File>,
}

impl OwnSocket {
    /// Makes the socket and listens on it.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<(UnixListener, Self), SocketError> {
        let failed = |what| move |source| SocketError::System { path: path.to_owned(), what, source };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let mut lock = OsString::from(path);
        lock.push(".lock");
        let lock = options.open(lock).map_err(failed("opening its lock file"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => SocketError::InUse(path.to_owned()),
            error => failed("locking")(error.into()),
        })?;
        remove_if_dead(path)?;
        let listener = listen_at(path, group).map_err(failed("binding"))?;
        let inode = fs::symlink_metadata(path).map_err(failed("reading its inode number"))?.ino();
        Ok((listener, Self { path: path.to_owned(), inode, _lock: lock }))
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // Another process may have put its own in this place since.
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket that a killed daemon left, and nothing else.
fn remove_if_dead(path: &Path) -> Result<(), SocketError> {
    let failed = |what| move |source| SocketError::System { path: path.to_owned(), what, source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking for another")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => (),
    }
    match try_connect(path) {
        // A full queue, or a socket of another type: a process listens there all the same.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Err(SocketError::InUse(path.to_owned())),
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(failed("removing a dead one")),
        Err(error) => Err(failed("connecting to the one that is there")(error.into())),
    }
}

/// Connects without waiting: the process that listens may hang.
fn try_connect(path: &Path) -> nix::Result<()> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags(), None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)
}

fn listen_at(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags(), None)?;
    // The file takes its mode from the socket, so it is private from its first moment.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    if let Some(gid) = group {
        chown(path, None, Some(Gid::from_raw(gid)))?;
    }
    fs::set_permissions(path, Permissions::from_mode(MODE))?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(fd))
}

fn flags() -> SockFlag {
    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_socket_is_for_its_user_and_group_and_goes_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let (listener, socket) = OwnSocket::bind(&path, Some(nix::unistd::getegid().as_raw())).unwrap();
        assert_eq!(mode(&path), 0o660);
        UnixStream::connect(&path).unwrap();
        drop((listener, socket));
        assert!(!path.exists());
    }

    #[test]
    fn a_served_socket_is_not_taken_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(OwnSocket::bind(&path, None), Err(SocketError::InUse(_))));
        drop(foreign);
        let (_listener, _socket) = OwnSocket::bind(&path, None).unwrap();
        assert!(matches!(OwnSocket::bind(&path, None), Err(SocketError::InUse(_))), "another daemon's own");
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(OwnSocket::bind(&path, None), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn another_socket_in_its_place_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let (_listener, socket) = OwnSocket::bind(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        let _foreign = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn daemons_that_start_together_in_one_directory_get_their_own_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<PathBuf> = (0..8).map(|n| dir.path().join(format!("{n}.sock"))).collect();
        let start = |path: &Path| {
            (0..50).for_each(|_| drop(OwnSocket::bind(path, None).unwrap()));
            OwnSocket::bind(path, None).unwrap()
        };
        let bound: Vec<_> = thread::scope(|scope| {
            let starting: Vec<_> = names.iter().map(|path| scope.spawn(move || start(path))).collect();
            starting.into_iter().map(|started| started.join().unwrap()).collect()
        });
        for ((listener, _), path) in bound.iter().zip(&names) {
            let caller = UnixStream::connect(path).unwrap();
            let (accepted, _) = listener.accept().expect("a caller of this socket reaches this daemon");
            drop((caller, accepted));
        }
    }

    #[test]
    fn a_socket_with_a_full_queue_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let flags = SockFlag::SOCK_CLOEXEC;
        let busy = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(busy.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&busy, Backlog::new(0).unwrap()).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert_eq!(try_connect(&path), Err(Errno::EAGAIN), "there is no room for another");
        assert!(matches!(OwnSocket::bind(&path, None), Err(SocketError::InUse(_))));
    }
}

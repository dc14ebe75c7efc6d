//! The daemon's own socket, for when systemd passes none.
//!
//! There is no moment at which the socket's file is more open than it ends up, none at which a dead socket
//! has been removed and no new one is there, and a socket that somebody serves is never taken away.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, chown};

/// The mode of the socket: its user and group may connect.
const MODE: u32 = 0o660;

/// What makes the name of a draft: the socket's own name and so under the socket's own lock, and only a byte
/// longer, because a socket's path can have no more than 107.
const DRAFT_SUFFIX: &str = "~";

/// Connections that the kernel keeps until they are accepted. It is capped by net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody serves it.
    #[error("{} is served by another process; stop that one first, or choose another socket", .0.display())]
    InUse(PathBuf),
    /// The path holds something that is not a socket.
    #[error("{} exists and is not a socket; remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The operating system does not let it be made.
    #[error("the socket {} cannot be made: {what}: {source}", .path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// A socket that was made here. Its file goes when it is dropped.
#[derive(Debug)]
pub struct OwnSocket {
    path: PathBuf,
    inode: u64,
    /// Held as long as the socket is served, so that of two daemons that start together one fails.
    _lock: Flock<File>,
}

impl OwnSocket {
    /// Makes the socket and listens on it.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<(UnixListener, Self), SocketError> {
        let failed = |what| move |source| SocketError::System { path: path.to_owned(), what, source };
        let lock = lock(path)?;
        refuse_if_taken(path)?;
        // Made under a name of its own and given its mode and group there, the socket appears under its
        // real name complete, in the one step in which it replaces a dead one.
        let draft = with_suffix(path, DRAFT_SUFFIX);
        refuse_if_taken(&draft)?;
        remove_if_there(&draft).map_err(failed("removing a leftover"))?;
        let listener = listen_at(&draft, group).map_err(failed("binding"))?;
        fs::rename(&draft, path).map_err(failed("renaming it into place"))?;
        let inode = fs::symlink_metadata(path).map_err(failed("looking at it"))?.ino();
        Ok((listener, Self { path: path.to_owned(), inode, _lock: lock }))
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // Somebody may have put another one in its place since.
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn lock(path: &Path) -> Result<Flock<File>, SocketError> {
    let failed = |source| SocketError::System { path: path.to_owned(), what: "locking", source };
    let lock_path = with_suffix(path, ".lock");
    let mut options = OpenOptions::new();
    let file =
        options.write(true).create(true).truncate(false).mode(0o600).open(lock_path).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => SocketError::InUse(path.to_owned()),
        error => failed(error.into()),
    })
}

fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(SocketError::System { path: path.to_owned(), what: "looking at it", source });
        }
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => (),
    }
    match knock(path) {
        // Also where it is full of those who wait to be accepted, or is of another kind: somebody has it.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Err(SocketError::InUse(path.to_owned())),
        // Nobody listens: a daemon that was killed left it.
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        Err(error) => Err(SocketError::System {
            path: path.to_owned(),
            what: "finding out whether the one that is there is served",
            source: error.into(),
        }),
    }
}

/// Connects without waiting for whoever listens, who may hang.
fn knock(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn listen_at(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
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
    fn a_socket_that_somebody_put_in_its_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let (_listener, socket) = OwnSocket::bind(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        let _foreign = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn sockets_of_one_directory_have_nothing_in_common() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<PathBuf> = (0..8).map(|n| dir.path().join(format!("{n}.sock"))).collect();
        // As many daemons, all in the moment in which they make their sockets.
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
            let (accepted, _) = listener.accept().expect("whoever calls this socket reaches this daemon");
            drop((caller, accepted));
        }
    }

    #[test]
    fn a_served_socket_under_the_name_of_the_draft_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (path, neighbour) = (dir.path().join("s.sock"), dir.path().join("s.sock~"));
        let _foreign = UnixListener::bind(&neighbour).unwrap();
        let taken = OwnSocket::bind(&path, None).unwrap_err();
        assert!(matches!(taken, SocketError::InUse(found) if found == neighbour));
        UnixStream::connect(&neighbour).unwrap();
    }

    #[test]
    fn a_socket_whose_daemon_accepts_nobody_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let flags = SockFlag::SOCK_CLOEXEC;
        let busy = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(busy.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&busy, Backlog::new(0).unwrap()).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert_eq!(knock(&path), Err(Errno::EAGAIN), "there is no room for another");
        assert!(matches!(OwnSocket::bind(&path, None), Err(SocketError::InUse(_))));
    }
}

//! The daemon's own listening socket, for when systemd passes none.
//!
//! The mode of the socket's file is never wider than 0660, from its first moment on. A socket that another process serves is
//! never taken away. A dead socket is removed before the new one is made, so for an instant there is no socket.

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

const NO_FOLDER: &str = "its folder does not exist; create the folder, or choose another path";
const IN_USE: &str = "it is served by another process; stop that one first, or choose another socket";

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// A socket that this process made. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct OwnSocket {
    path: PathBuf,
    inode: u64,
    /// Held while the socket is served, so that only one of two daemons that start together gets it.
    _lock: Flock<File>,
}

impl OwnSocket {
    pub fn bind(path: &Path, group: Option<u32>) -> io::Result<(UnixListener, Self)> {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(lock);
        let lock = lock.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(NO_FOLDER),
            _ => error,
        })?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => io::Error::other(IN_USE),
            error => error.into(),
        })?;
        remove_if_dead(path)?;
        let listener = listen_at(path, group)?;
        let inode = fs::symlink_metadata(path)?.ino();
        Ok((listener, Self { path: path.to_owned(), inode, _lock: lock }))
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // Another process may have replaced the file with its own socket.
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket that a killed daemon left, and nothing else.
fn remove_if_dead(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.file_type().is_socket()) {
        return Err(io::Error::other(
            "a file is there that is not a socket; remove it, or choose another path",
        ));
    }
    let fd = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
    // Does not wait, because a process that listens may hang.
    match connect(fd.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ECONNREFUSED) => fs::remove_file(path),
        // A full queue, or a socket of another type: a process listens there all the same.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Err(io::Error::other(IN_USE)),
        Err(error) => Err(error.into()),
    }
}

fn listen_at(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
    // The file takes its mode from the socket, so it is private from its first moment.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    chown(path, None, group.map(Gid::from_raw)).map_err(|error| {
        io::Error::other(format!("giving it to socket_group: {error} (the daemon must be in the group)"))
    })?;
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    // The kernel queues as many connections as net.core.somaxconn allows.
    listen(&fd, Backlog::MAXALLOWABLE)?;
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

    fn refusal(path: &Path) -> String {
        OwnSocket::bind(path, None).unwrap_err().to_string()
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
        assert!(refusal(&path).contains("served by another process"));
        drop(foreign);
        let (_listener, _socket) = OwnSocket::bind(&path, None).unwrap();
        assert!(refusal(&path).contains("served by another process"), "another daemon's own");
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(refusal(&path).contains("not a socket"));
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
    fn a_folder_that_does_not_exist_is_named_as_the_fault() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refusal(&dir.path().join("missing/s.sock")).contains("folder does not exist"));
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
        assert!(refusal(&path).contains("served by another process"));
    }
}

//! The socket on which requests come in: the one that the service manager passes, or one of its own.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Connections that the kernel keeps until they are accepted. It is capped by net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// What makes the name under which a socket is made before it is put in its place: a byte longer, because a socket's
/// path can have no more than 107.
const DRAFT_SUFFIX: &str = "~";

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The environment that describes what is passed makes no sense.
    #[error("what the service manager says about the sockets that it passes cannot be understood: {0}")]
    Environment(#[source] io::Error),
    /// There are several.
    #[error("the service manager passes {0} sockets; one is expected")]
    Several(usize),
    /// It is of another kind.
    #[error(
        "the service manager passes no listening Unix socket of type SOCK_SEQPACKET (ListenSequentialPacket=)"
    )]
    WrongKind,
    /// There is none.
    #[error("the service manager passes no socket, and --socket names none")]
    None,
    /// Somebody serves it.
    #[error("{} is served by another process; stop that one first, or choose another socket", .0.display())]
    InUse(PathBuf),
    /// The path holds something that is not a socket.
    #[error("{} exists and is not a socket; remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The operating system does not let it be made.
    #[error("the socket {} cannot be made: {source}", .path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The one that the service manager passes, if it passes one. To be called once.
pub fn passed() -> Result<Option<UnixListener>, SocketError> {
    let mut passed = sd_notify::listen_fds().map_err(SocketError::Environment)?;
    match (passed.len(), passed.next()) {
        (1, Some(descriptor)) => adopt(descriptor).map(Some),
        (0, _) => Ok(None),
        (several, _) => Err(SocketError::Several(several)),
    }
}

fn adopt(descriptor: RawFd) -> Result<UnixListener, SocketError> {
    // SAFETY: the service manager passes this descriptor to this process (LISTEN_PID was checked, and that it is
    // open), and nothing else in the process knows its number.
    #[expect(unsafe_code, reason = "taking over an inherited descriptor")]
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let is_right = socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && socket_type(&socket) == Ok(SocketType::SEQPACKET)
        && socket_acceptconn(&socket) == Ok(true);
    if is_right { Ok(socket.into()) } else { Err(SocketError::WrongKind) }
}

/// One for this user alone. It replaces one that nobody serves, without a moment in which it is more open or no
/// socket is there.
///
/// The file that is returned is the lock that makes one of two that start together fail: it is to be kept as long as
/// the socket is served. The socket stays when its process ends, and is replaced by the next.
pub fn make(path: &Path) -> Result<(UnixListener, File), SocketError> {
    let failed = |source: io::Error| SocketError::System { path: path.to_owned(), source };
    let lock = lock(path)?;
    let draft = with_suffix(path, DRAFT_SUFFIX);
    refuse_if_taken(path)?;
    refuse_if_taken(&draft)?;
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => (),
    }
    let listener = listen_at(&draft).map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)?;
    Ok((listener, lock))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn lock(path: &Path) -> Result<File, SocketError> {
    let failed = |source: io::Error| SocketError::System { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(with_suffix(path, ".lock")).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(SocketError::InUse(path.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    let failed = |source: io::Error| SocketError::System { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => (),
    }
    let knocked = seqpacket().and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    match knocked {
        // Nobody listens: one that has ended left it.
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        // Also where it is full of those who wait to be accepted, or is of another kind: somebody has it.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(SocketError::InUse(path.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let socket = seqpacket()?;
    // The file takes its mode from the socket, so it is private from its first moment.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(socket.as_fd(), BACKLOG)?;
    Ok(socket.into())
}

fn seqpacket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn knock(path: &Path) -> rustix::io::Result<()> {
        connect(&seqpacket()?, &SocketAddrUnix::new(path)?)
    }

    #[test]
    fn it_is_for_its_user_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let _serving = make(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        knock(&path).unwrap();
    }

    #[test]
    fn one_that_is_served_is_not_taken_and_one_that_is_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        for name in ["s.sock", "s.sock~"] {
            let foreign = directory.path().join(name);
            // Also one of another kind is in use.
            let is_draft = name.ends_with(DRAFT_SUFFIX);
            let serving =
                if is_draft { listen_at(&foreign).unwrap() } else { UnixListener::bind(&foreign).unwrap() };
            assert!(matches!(make(&path), Err(SocketError::InUse(taken)) if taken == foreign));
            drop(serving);
            let own = make(&path).unwrap();
            assert!(matches!(make(&path), Err(SocketError::InUse(taken)) if taken == path));
            let (listener, lock) = own;
            drop(listener);
            assert!(matches!(make(&path), Err(SocketError::InUse(_))), "another is about to serve it");
            drop(lock);
            assert_eq!(knock(&path), Err(Errno::CONNREFUSED), "it is there still, and served by nobody");
        }
    }

    #[test]
    fn one_whose_process_accepts_nobody_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let busy = seqpacket().unwrap();
        bind(&busy, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&busy, 0).unwrap();
        let waiting = seqpacket().unwrap();
        connect(&waiting, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert_eq!(knock(&path), Err(Errno::AGAIN), "there is no room for another");
        assert!(matches!(make(&path), Err(SocketError::InUse(_))));
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(make(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }
}

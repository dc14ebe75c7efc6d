//! A service manager as far as a restart goes: it holds the listening socket and, in its descriptor store, what the
//! daemon asks it to keep, and hands both to every next start (`sd_listen_fds(3)`, `sd_pid_notify_with_fds(3)`).
//!
//! The store is open to the test: it can look at what a daemon that was killed has left.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::daemon::Launch;
use crate::{TestDir, Tokenctl, wait};

/// How long the thread waits before it looks whether it is to end.
const PAUSE: Duration = Duration::from_millis(50);

/// Hands the listening socket over as descriptor 3, and what is stored as descriptor 4.
const HAND_OVER: &str = "exec 3<&0 0</dev/null; \
    if [ -n \"$STORED\" ]; then exec 4<>\"$STORED\"; LISTEN_FDS=2 LISTEN_FDNAMES=tokend.socket:tokend-store; \
    else LISTEN_FDS=1 LISTEN_FDNAMES=tokend.socket; fi; \
    export LISTEN_FDS LISTEN_FDNAMES; unset STORED; LISTEN_PID=$$ exec \"$@\"";

/// The manager of one service.
#[derive(Debug)]
pub struct ServiceManager {
    listener: UnixListener,
    socket: PathBuf,
    notify: PathBuf,
    stored: Arc<Mutex<Option<File>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ServiceManager {
    /// One with an empty store, for the daemon of a [`TestDir`].
    ///
    /// # Panics
    /// When its sockets cannot be made.
    pub fn new(home: &TestDir) -> Self {
        let (socket, notify) = (home.path().join("managed.sock"), home.path().join("manager"));
        let listener = UnixListener::bind(&socket).expect("the socket can be bound");
        let heard = UnixDatagram::bind(&notify).expect("the socket can be bound");
        heard.set_read_timeout(Some(PAUSE)).unwrap();
        let (stored, ends) = (Arc::<Mutex<Option<File>>>::default(), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (stored, ends) = (Arc::clone(&stored), Arc::clone(&ends));
            move || {
                while !ends.load(Ordering::Relaxed) {
                    if let Ok((message, fd)) = receive(&heard) {
                        obey(&message, fd, &mut lock(&stored));
                    }
                }
            }
        });
        Self { listener, socket, notify, stored, ends, thread: Some(thread) }
    }

    /// The daemon of a [`TestDir`], as this manager starts it.
    pub fn launch(&self, home: &TestDir) -> Launch {
        self.launch_logging(home, "trace")
    }

    /// [`ServiceManager::launch`] with a daemon that logs from this level on.
    pub fn launch_logging(&self, home: &TestDir, level: &str) -> Launch {
        let launch = Launch::logging(home, level).env("NOTIFY_SOCKET", &self.notify);
        let stored = lock(&self.stored)
            .as_ref()
            .map_or(String::new(), |file| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        launch.env("STORED", stored).handed_over_by(HAND_OVER, &self.socket, &self.listener)
    }

    /// The socket that callers connect to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `tokenctl` for its socket.
    pub fn tokenctl(&self) -> Tokenctl {
        Tokenctl::new(&self.socket)
    }

    /// The bytes of what is stored.
    ///
    /// # Panics
    /// When nothing is.
    pub fn stored(&self) -> Vec<u8> {
        let file = wait::until("something in the store", || {
            lock(&self.stored).as_ref().map(|file| file.try_clone().expect("a file can be cloned"))
        });
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).expect("memory can be read");
        bytes
    }

    /// Whether something is stored.
    pub fn stores(&self) -> bool {
        lock(&self.stored).is_some()
    }

    /// Changes what is stored, behind the daemon's back.
    ///
    /// # Panics
    /// When nothing is.
    pub fn write_stored(&self, bytes: &[u8], at: u64) {
        lock(&self.stored).as_ref().expect("something is stored").write_all_at(bytes, at).unwrap();
    }

    /// Puts something else into the store.
    pub fn store(&self, file: File) {
        *lock(&self.stored) = Some(file);
    }

    /// Forgets what is stored, as a reboot does.
    pub fn forget(&self) {
        *lock(&self.stored) = None;
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn obey(message: &str, fd: Option<OwnedFd>, stored: &mut Option<File>) {
    let says = |assignment| message.lines().any(|line| line == assignment);
    if says("FDSTOREREMOVE=1") {
        assert!(says("FDNAME=tokend-store"), "{message}");
        *stored = None;
    }
    if says("FDSTORE=1") {
        assert!(says("FDNAME=tokend-store"), "{message}");
        *stored = fd.map(File::from);
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<(String, Option<OwnedFd>)> {
    let mut datagram = [0; 4096];
    let mut buffers = [IoSliceMut::new(&mut datagram)];
    let mut control = cmsg_space!([RawFd; 1]);
    let received =
        recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let fds = received.cmsgs()?.filter_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = fds.last();
    let length = received.bytes;
    // SAFETY: the kernel has just made this descriptor for this process, and nothing else knows its number.
    #[expect(unsafe_code, reason = "taking over a received descriptor")]
    let fd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((String::from_utf8_lossy(&datagram[..length]).into_owned(), fd))
}

fn lock(stored: &Mutex<Option<File>>) -> MutexGuard<'_, Option<File>> {
    stored.lock().unwrap_or_else(PoisonError::into_inner)
}

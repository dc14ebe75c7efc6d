//! The socket of a caller, which brings bytes and no descriptors.
//!
//! A caller can attach descriptors to its bytes (`SCM_RIGHTS`, unix(7)), and closing one can take as long as the caller
//! likes: a TCP connection with `SO_LINGER`, or a file of the caller's own file system. The thread that serves all
//! callers must never do that. Since Linux 6.16 the kernel refuses descriptors. Before, another thread closes them.

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, cmsg_space, recv, recvmsg, send, setsockopt, shutdown, sockopt};
use nix::{setsockopt_impl, sockopt_impl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most descriptors in one message (`SCM_MAX_FD`). The kernel closes those for which there is no room, on this thread.
const DESCRIPTORS_MAX: usize = 253;

const CONTROL_BYTES: usize = cmsg_space::<[RawFd; DESCRIPTORS_MAX]>();

/// The number of the socket option in `asm-generic/socket.h`, since Linux 6.16.
const SO_PASSRIGHTS: libc::c_int = 83;

sockopt_impl!(
    /// Whether a peer may send descriptors. Connections inherit it from their listener.
    PassRights,
    SetOnly,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool
);

/// Whether callers can send descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    Refused,
    MayCome,
}

/// Makes the kernel refuse descriptors, if it can. [`Stream`] copes with those that come anyway.
pub fn refuse_descriptors(listener: &impl AsFd) -> Descriptors {
    let refused = setsockopt(listener, PassRights, &false);
    if refused.is_ok() { Descriptors::Refused } else { Descriptors::MayCome }
}

impl Descriptors {
    /// Takes unread descriptors out of a socket before it is closed, which would close them here.
    pub fn discard(self, socket: &impl AsRawFd) {
        // After the shutdown nothing more comes, so there is an end.
        if self == Self::MayCome && shutdown(socket.as_raw_fd(), Shutdown::Both).is_ok() {
            let mut room = [0; 1024];
            loop {
                match receive(socket, &mut room) {
                    Ok(1..) => (),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => (),
                    Ok(0) | Err(_) => return,
                }
            }
        }
    }
}

/// A connection with a caller.
#[derive(Debug)]
pub struct Stream {
    /// Registered with the runtime while a task waits for it, and for reading only. A caller that takes an answer makes room for
    /// the next one, and would wake a task that is registered for writing too. Dropped before the socket.
    readable: Option<AsyncFd<RawFd>>,
    socket: OwnedFd,
    descriptors: Descriptors,
    /// Whether the last read filled its room, so that more may be there.
    pub has_more: bool,
    /// The caller has closed its side: nothing unread can be left.
    has_ended: bool,
}

/// Room for the control message of [`DESCRIPTORS_MAX`] descriptors, aligned as its header.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Stream {
    /// A connection over a socket that does not block.
    pub fn new(socket: OwnedFd, descriptors: Descriptors) -> Self {
        Self { readable: None, socket, descriptors, has_more: false, has_ended: false }
    }

    /// Lets the stream be closed as it is, unless that could take long: the caller expects nothing more, or is refused.
    pub fn abandon(&mut self) {
        self.has_ended = self.descriptors == Descriptors::Refused;
    }

    /// Waits until there is something to read.
    pub async fn readable(&mut self) -> io::Result<()> {
        let readable = match self.readable.take() {
            Some(readable) => readable,
            None => registered(self.socket.as_raw_fd(), Interest::READABLE)?,
        };
        let readable = self.readable.insert(readable);
        // Cheaper than a future of the readiness, which joins a list of waiters.
        poll_fn(|context| readable.poll_read_ready(context)).await.map(drop)
    }

    /// Ends what [`Stream::readable`] began, so that somebody else can wait.
    pub fn forget_readiness(&mut self) {
        self.readable = None;
    }

    /// Reads what has arrived, and 0 bytes at the end.
    pub fn try_read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let room_size = room.len();
        let mut read = || match self.descriptors {
            Descriptors::Refused => Ok(recv(self.socket.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT)?),
            Descriptors::MayCome => receive(&self.socket, room),
        };
        let read = match &self.readable {
            None => read(),
            Some(readable) => {
                let mut received = None;
                let emptied = readable.try_io(Interest::READABLE, |_| {
                    let bytes = read()?;
                    received = Some(bytes);
                    // A short read empties the socket. Saying so here saves the read that would find nothing.
                    if bytes < room_size { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
                });
                received.map_or_else(|| emptied.map(|()| 0), Ok)
            }
        };
        self.has_more = read.as_ref().is_ok_and(|bytes| *bytes == room_size);
        self.has_ended |= read.as_ref().is_ok_and(|bytes| *bytes == 0);
        read
    }

    /// Writes as much as there is room for now.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        send_now(self, bytes)
    }

    /// Writes all, as fast as the caller reads.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        // A second descriptor, because the first is registered for reading.
        let socket = registered(self.socket.try_clone()?, Interest::WRITABLE)?;
        while !bytes.is_empty() {
            let mut ready = socket.writable().await?;
            if let Ok(written) = ready.try_io(|socket| send_now(socket, bytes)) {
                bytes = bytes.get(written?..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// Registers a descriptor with the runtime. Its owner must keep it until the result is dropped: the result itself, or a stream
/// that drops the result first.
pub fn registered<T: AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor stays open and the same until the result is dropped, as each caller sees to.
    #[expect(unsafe_code, reason = "tokio cannot know that the descriptor stays the same")]
    let registered = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(registered?)
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Stream {
    /// Unread bytes would turn the end of the answers into an error for the caller, so they are read in any case.
    fn drop(&mut self) {
        if !self.has_ended {
            Descriptors::MayCome.discard(&self.socket);
        }
    }
}

/// Writes as much as there is room for now, to any socket.
pub fn send_now(socket: &impl AsRawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Ok(send(socket.as_raw_fd(), bytes, flags)?)
}

/// Receives bytes. Fails if descriptors came with them, after it has sent those to another thread to be closed.
#[cold]
fn receive(socket: &impl AsRawFd, room: &mut [u8]) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_BYTES]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let pieces = &mut [IoSliceMut::new(room)];
    let bytes = recvmsg::<()>(socket.as_raw_fd(), pieces, Some(&mut control.0), flags)?.bytes;
    // One message at most, of descriptors. It is truncated if this process runs out of them, and nix reads only whole
    // messages.
    let length = control.0.first_chunk().map_or(0, |length| usize::from_ne_bytes(*length));
    let numbers = control.0.get(size_of::<libc::cmsghdr>()..length).unwrap_or_default();
    if numbers.is_empty() {
        return Ok(bytes);
    }
    let numbers = numbers.as_chunks().0.iter().map(|number| RawFd::from_ne_bytes(*number));
    // SAFETY: the kernel has just made these descriptors for this call alone.
    #[expect(unsafe_code, reason = "taking over new descriptors")]
    let descriptors: Vec<OwnedFd> = numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect();
    // Without a runtime the process is about to end.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || {
            for descriptor in descriptors {
                // Fails for what is no socket.
                let _ = setsockopt(&descriptor, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 });
            }
        });
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a caller sent descriptors"))
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{ControlMessage, sendmsg};
    use std::io::{IoSlice, Read, Write, pipe};
    use tokio::io::AsyncReadExt;
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    /// A connection of a kernel that takes descriptors, and its caller's end.
    fn connection() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = ours.into_std().unwrap().into();
        (Stream::new(ours, Descriptors::MayCome), theirs)
    }

    fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let attached = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &attached, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// A TCP connection whose close takes an hour, since it has to say what nobody reads, and its other end.
    fn lingering() -> (std::net::TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        while (&near).write(&[0; 4_096]).is_ok() {}
        setsockopt(&near, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 3_600 }).unwrap();
        (near, far)
    }

    async fn read(stream: &mut Stream) -> io::Result<Vec<u8>> {
        let mut room = [0; 100];
        loop {
            stream.readable().await?;
            match stream.try_read(&mut room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                read => return Ok(room[..read?].to_vec()),
            }
        }
    }

    #[tokio::test]
    async fn bytes_are_read_as_they_come() {
        let (mut ours, theirs) = connection();
        theirs.try_write(b"some bytes").unwrap();
        assert_eq!(read(&mut ours).await.unwrap(), b"some bytes");
        drop(theirs);
        assert_eq!(read(&mut ours).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_descriptor_whose_close_would_take_an_hour_holds_up_nobody() {
        let (mut ours, theirs) = connection();
        let (near, _far) = lingering();
        send(&theirs, b"x", &[near.as_fd()]).unwrap();
        drop(near);
        let fault = read(&mut ours).await.unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::InvalidData);
        // Unread ones at the end of a connection, as many as there may be.
        let mut unheard = Vec::new();
        for _ in 0..3 {
            let (near, far) = lingering();
            unheard.push(far);
            let copies = [near.as_fd(); DESCRIPTORS_MAX];
            send(&theirs, b"x", &copies).unwrap();
        }
        drop(ours);
    }

    #[tokio::test]
    async fn every_descriptor_is_closed() {
        let (ours, theirs) = connection();
        let (mut from, to) = pipe().unwrap();
        send(&theirs, b"x", &[to.as_fd(), to.as_fd()]).unwrap();
        send(&theirs, b"x", &[to.as_fd()]).unwrap();
        drop((to, ours));
        let end = tokio::task::spawn_blocking(move || from.read(&mut [0]).unwrap());
        assert_eq!(end.await.unwrap(), 0);
    }

    #[tokio::test]
    async fn an_answer_is_delivered_although_bytes_of_the_caller_were_not_read() {
        let (ours, theirs) = connection();
        theirs.try_write(b"more than is read").unwrap();
        ours.try_write(b"the answer").unwrap();
        drop(ours);
        let mut read = Vec::new();
        let mut theirs = theirs;
        theirs.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"the answer");
    }

    #[tokio::test]
    async fn a_kernel_that_can_refuses_descriptors() {
        let (_from, to) = pipe().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let listener = UnixListener::bind(&path).unwrap();
        refuse_descriptors(&listener);
        let theirs = UnixStream::connect(&path).await.unwrap();
        match send(&theirs, b"x", &[to.as_fd()]) {
            // Linux 6.16 and later.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
            Ok(()) => assert!(setsockopt(&theirs, PassRights, &false).is_err()),
        }
    }
}

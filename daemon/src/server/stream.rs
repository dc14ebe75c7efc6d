//! A caller's connection, which brings bytes and nothing else.
//!
//! A descriptor can be attached to what is sent over a Unix socket (`SCM_RIGHTS`, unix(7)). Whoever reads over it closes
//! it, and a close may take as long as its sender likes: that of a TCP connection with `SO_LINGER`, or of a file whose
//! file system is the sender's own program. No caller may hold up the one thread that serves all of them, so from Linux
//! 6.16 on the kernel refuses to take any (`SO_PASSRIGHTS`), and what comes all the same is closed elsewhere.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};
use rustix::cmsg_space;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, recvmsg, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::runtime::Handle;

/// Descriptors that one message can bring, at most (`SCM_MAX_FD`). With room for all of them the kernel closes none here.
const DESCRIPTORS_MOST: usize = 253;

/// Of `asm-generic/socket.h`, since Linux 6.16.
const SO_PASSRIGHTS: libc::c_int = 83;

sockopt_impl!(
    /// Whether a peer may send descriptors. What a listening socket says holds for its connections.
    PassRights,
    SetOnly,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool
);

/// A connection with a caller.
#[derive(Debug)]
pub struct Stream(UnixStream);

/// Has the kernel refuse descriptors, where it can.
pub fn refuse_descriptors(socket: impl AsFd) {
    // An older kernel does not know the option, and then they are closed when they have come.
    let _ = setsockopt(&socket, PassRights, &false);
}

impl Stream {
    /// One that has been accepted.
    pub fn accepted(stream: UnixStream) -> Self {
        // Whoever connected before the listener said so has still to be told.
        refuse_descriptors(&stream);
        Self(stream)
    }

    /// Writes as much as there is room for.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MOST))];
        let mut attached = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = recvmsg(&self.0, &mut [IoSliceMut::new(room)], &mut attached, flags)?;
        let descriptors: Vec<OwnedFd> = attached.drain().flat_map(descriptors_of).collect();
        if descriptors.is_empty() {
            return Ok(message.bytes);
        }
        close_elsewhere(descriptors);
        Err(io::Error::new(io::ErrorKind::InvalidData, "a caller sent descriptors"))
    }
}

impl Drop for Stream {
    /// What is unread would be closed with the socket.
    fn drop(&mut self) {
        if shutdown(&self.0, Shutdown::Both).is_err() {
            return;
        }
        // From here on nothing more comes, so there is an end.
        let mut room = [0; 1024];
        loop {
            match self.receive(&mut room) {
                Ok(0) => return,
                Ok(_) => (),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => (),
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            match self.0.try_io(Interest::READABLE, || self.receive(room)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Poll::Ready(Err(error)),
                Ok(received) => {
                    buffer.advance(received);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn descriptors_of(message: RecvAncillaryMessage<'_>) -> Vec<OwnedFd> {
    match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    }
}

fn close_elsewhere(descriptors: Vec<OwnedFd>) {
    // Without a runtime the process is about to end.
    let Ok(runtime) = Handle::try_current() else { return };
    runtime.spawn_blocking(move || {
        for descriptor in descriptors {
            // Fails for what is no socket.
            let _ = set_socket_linger(&descriptor, None);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read, Write, pipe};
    use std::time::Duration;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A connection of a kernel that takes descriptors, and its caller's end.
    fn connection() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream(ours), theirs)
    }

    fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MOST))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        assert!(attached.push(SendAncillaryMessage::ScmRights(descriptors)));
        sendmsg(socket, &[IoSlice::new(bytes)], &mut attached, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// A TCP connection whose close takes an hour, since it has to say what nobody reads, and its other end.
    fn lingering() -> (std::net::TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        while (&near).write(&[0; 4_096]).is_ok() {}
        set_socket_linger(&near, Some(Duration::from_secs(3_600))).unwrap();
        (near, far)
    }

    #[tokio::test]
    async fn bytes_are_read_as_they_come() {
        let (mut ours, theirs) = connection();
        theirs.try_write(b"some bytes").unwrap();
        let mut read = [0; 10];
        ours.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"some bytes");
        drop(theirs);
        assert_eq!(ours.read(&mut read).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_descriptor_whose_close_would_take_an_hour_holds_up_nobody() {
        let (mut ours, theirs) = connection();
        let (near, _far) = lingering();
        send(&theirs, b"x", &[near.as_fd()]).unwrap();
        drop(near);
        let fault = ours.read_u8().await.unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::InvalidData);
        // Unread ones at the end of a connection, as many as there may be.
        let mut unheard = Vec::new();
        for _ in 0..3 {
            let (near, far) = lingering();
            unheard.push(far);
            let copies = [near.as_fd(); DESCRIPTORS_MOST];
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
    async fn a_caller_that_left_with_an_answer_unread_has_it_all_the_same() {
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
    async fn where_the_kernel_can_it_refuses_them() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (_from, to) = pipe().unwrap();
        let _ours = Stream::accepted(ours);
        match send(&theirs, b"x", &[to.as_fd()]) {
            // Linux 6.16 and later.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
            Ok(()) => assert!(setsockopt(&theirs, PassRights, &false).is_err()),
        }
    }
}

//! One connection of the protocol: messages that keep their boundaries, and descriptors that come with them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::cmsg_space;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, shutdown, socket_with,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::wire::MESSAGE_MOST;

/// Descriptors that one message can bring, at most (`SCM_MAX_FD`).
const DESCRIPTORS_MOST: usize = 253;

/// A connection of type `SOCK_SEQPACKET`.
#[derive(Debug)]
pub struct Channel(UnixStream);

/// A message, and what came with it. What nobody takes out of it is closed.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub bytes: Vec<u8>,
    /// The descriptor.
    pub descriptor: Option<OwnedFd>,
}

impl Channel {
    /// Connects, and waits for nothing: where more wait than the listener lets wait, it fails with
    /// [`io::ErrorKind::WouldBlock`].
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        // The runtime calls it a stream and cares for nothing but whether it is readable or writable.
        Ok(Self(UnixStream::from_std(socket.into())?))
    }

    /// A connection of a listener of this type.
    pub fn accepted(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Sends a message, with a descriptor if there is one, of which the other side gets a copy.
    pub async fn send(&self, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, || self.try_send(message, descriptor)).await
    }

    /// Ends the connection with a message, whether or not the other side has said something. Waits for nothing.
    pub fn end_with(self, message: &[u8]) -> io::Result<()> {
        // What is unread at the end would make the kernel forget what was sent: so nothing more may come, and what has
        // come is read.
        shutdown(&self.0, Shutdown::Read)?;
        while self.try_receive().is_ok_and(|received| received.is_some()) {}
        self.try_send(message, None)
    }

    fn try_send(&self, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        if !attached.push(SendAncillaryMessage::ScmRights(descriptor.as_slice())) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        sendmsg(&self.0, &[IoSlice::new(message)], &mut attached, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message, or nothing where the other side has hung up.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] where the message is longer than any may be, or has more descriptors than one.
    pub async fn receive(&self) -> io::Result<Option<Received>> {
        self.0.async_io(Interest::READABLE, || self.try_receive()).await
    }

    fn try_receive(&self) -> io::Result<Option<Received>> {
        let mut bytes = vec![0; MESSAGE_MOST];
        // What there is no room for is closed by the kernel, however long that takes. The buffer owns what comes.
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MOST))];
        let mut attached = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut attached, flags)?;
        let mut descriptors: Vec<OwnedFd> = attached.drain().flat_map(descriptors_of).collect();
        for descriptor in &descriptors {
            // Whoever passes a connection can have its close wait until all is said. Fails for what is no socket.
            let _ = set_socket_linger(descriptor, None);
        }
        if message.flags.contains(ReturnFlags::TRUNC) {
            return Err(invalid("a message that is too long"));
        }
        if message.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > 1 {
            return Err(invalid("more descriptors than one, or one for which there is no room"));
        }
        if message.bytes == 0 {
            return Ok(None);
        }
        bytes.truncate(message.bytes);
        Ok(Some(Received { bytes, descriptor: descriptors.pop() }))
    }
}

fn descriptors_of(message: RecvAncillaryMessage<'_>) -> Vec<OwnedFd> {
    match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (Channel, Channel) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let channel = |end: OwnedFd| Channel(UnixStream::from_std(end.into()).unwrap());
        (channel(one), channel(other))
    }

    /// Sends a message with so many descriptors, which are then open nowhere but on their way: the other end of all.
    fn send_pipes(channel: &Channel, count: usize) -> PipeReader {
        let (end, passed) = pipe().unwrap();
        let descriptors = vec![passed.as_fd(); count];
        let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(count))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        assert!(attached.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&channel.0, &[IoSlice::new(b"take these")], &mut attached, SendFlags::NOSIGNAL).unwrap();
        end
    }

    #[tokio::test]
    async fn messages_keep_their_boundaries() {
        let (one, other) = pair();
        let longest = vec![b'a'; MESSAGE_MOST];
        for message in [b"first".as_slice(), b"second", &longest] {
            one.send(message, None).await.unwrap();
        }
        for message in [b"first".as_slice(), b"second", &longest] {
            let received = other.receive().await.unwrap().unwrap();
            assert_eq!(received.bytes, message);
            assert!(received.descriptor.is_none());
        }
        drop(one);
        assert!(other.receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_an_error_and_its_descriptor_is_closed() {
        let (one, other) = pair();
        let (mut end, passed) = pipe().unwrap();
        one.send(&[b'a'; MESSAGE_MOST + 1], Some(passed.as_fd())).await.unwrap();
        drop(passed);
        assert_eq!(other.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(end.read(&mut [0]).unwrap(), 0, "nobody has its other end any more");
    }

    #[tokio::test]
    async fn one_descriptor_is_passed_and_not_to_programs_that_are_started() {
        let (one, other) = pair();
        let mut end = send_pipes(&one, 1);
        let received = other.receive().await.unwrap().unwrap();
        let passed = received.descriptor.unwrap();
        assert!(rustix::io::fcntl_getfd(&passed).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        drop(passed);
        assert_eq!(end.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn more_descriptors_than_one_are_closed() {
        let (one, other) = pair();
        // 253 are all that the kernel passes.
        for count in [2, 3, 4, 253] {
            let mut end = send_pipes(&one, count);
            assert_eq!(other.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData, "{count}");
            assert_eq!(end.read(&mut [0]).unwrap(), 0, "{count}");
        }
        one.send(b"as before", None).await.unwrap();
        assert_eq!(other.receive().await.unwrap().unwrap().bytes, b"as before");
    }

    #[tokio::test]
    async fn what_is_passed_and_not_wanted_is_closed_at_once_however_long_it_would_take() {
        let (one, other) = pair();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _far = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        while io::Write::write(&mut &near, &[0; 4_096]).is_ok() {}
        set_socket_linger(&near, Some(std::time::Duration::from_secs(3_600))).unwrap();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MOST))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        let copies = [near.as_fd(); DESCRIPTORS_MOST];
        assert!(attached.push(SendAncillaryMessage::ScmRights(&copies)));
        sendmsg(&one.0, &[IoSlice::new(b"x")], &mut attached, SendFlags::NOSIGNAL).unwrap();
        drop(near);
        assert_eq!(other.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn last_words_are_heard_whoever_speaks_first() {
        let (one, other) = pair();
        other.send(b"unread", None).await.unwrap();
        one.end_with(b"goodbye").unwrap();
        assert_eq!(other.receive().await.unwrap().unwrap().bytes, b"goodbye");
        assert!(other.receive().await.unwrap().is_none());

        let (one, other) = pair();
        one.end_with(b"goodbye").unwrap();
        assert_eq!(other.send(b"late", None).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(other.receive().await.unwrap().unwrap().bytes, b"goodbye");
    }
}

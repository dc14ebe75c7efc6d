//! A connection that another process may have too, and that holds up nobody for that.
//!
//! Whether a call waits is a property of the socket and not of the descriptor (`O_NONBLOCK`, fcntl(2)), and so is how long
//! its end takes (`SO_LINGER`, socket(7)). Who passed it can change both at any time. So each call says for itself that it
//! does not wait, and the end is set right before it comes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper_util::client::legacy::connect::{Connected, Connection as HttpConnection};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A TCP connection.
#[derive(Debug)]
pub struct Connection(TcpStream);

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    fn poll_send(&self, context: &mut Context<'_>, what: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            ready!(self.0.poll_write_ready(context))?;
            let sent = self.0.try_io(Interest::WRITABLE, || {
                Ok(sendmsg(&self.0, what, &mut SendAncillaryBuffer::default(), flags)?)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Fails for no connection.
        let _ = set_socket_linger(&self.0, None);
    }
}

impl AsRef<TcpStream> for Connection {
    fn as_ref(&self) -> &TcpStream {
        &self.0
    }
}

impl HttpConnection for Connection {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            let received = self
                .0
                .try_io(Interest::READABLE, || Ok(recv(&self.0, room, RecvFlags::DONTWAIT)?))
                .map(|(received, _)| received);
            match received {
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

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, what: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(context, &[IoSlice::new(what)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        what: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, what)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Shutdown;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use rustix::net::sockopt::socket_linger;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::scene::listener;

    /// A connection, its other end, and the same socket in other hands, which have made it one that waits.
    async fn in_other_hands() -> (Connection, std::net::TcpStream, std::net::TcpStream) {
        let (provider, port) = listener("127.0.0.1").await;
        let near = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (far, _) = provider.accept().await.unwrap();
        let other_hands = near.try_clone().unwrap();
        near.set_nonblocking(true).unwrap();
        let connection = Connection::new(TcpStream::from_std(near).unwrap());
        other_hands.set_nonblocking(false).unwrap();
        (connection, far.into_std().unwrap(), other_hands)
    }

    /// Breaks the connection off where a test waits for it, which then fails. One that is in time drops the guard.
    fn break_off_late(socket: &std::net::TcpStream) -> mpsc::Sender<()> {
        let socket = socket.try_clone().unwrap();
        let (guard, in_time) = mpsc::channel();
        thread::spawn(move || {
            if in_time.recv_timeout(Duration::from_secs(20)) == Err(mpsc::RecvTimeoutError::Timeout) {
                socket.shutdown(Shutdown::Both).unwrap();
            }
        });
        guard
    }

    #[tokio::test]
    async fn who_else_has_it_cannot_make_a_read_wait() {
        let (mut connection, mut far, other_hands) = in_other_hands().await;
        let _guard = break_off_late(&other_hands);
        io::Write::write_all(&mut far, b"all of it").unwrap();
        let mut bytes = [0; 9];
        connection.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"all of it");
        let mut more = ReadBuf::new(&mut bytes);
        let read = poll_fn(|context| Poll::Ready(Pin::new(&mut connection).poll_read(context, &mut more)));
        assert!(read.await.is_pending());
        io::Write::write_all(&mut far, b"again").unwrap();
        let mut bytes = [0; 5];
        connection.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"again");
    }

    #[tokio::test]
    async fn who_else_has_it_cannot_make_a_write_wait() {
        let (mut connection, _far, other_hands) = in_other_hands().await;
        let _guard = break_off_late(&other_hands);
        connection.as_ref().writable().await.unwrap();
        let bytes = vec![0; 1 << 20];
        loop {
            let mut write =
                poll_fn(|context| Poll::Ready(Pin::new(&mut connection).poll_write(context, &bytes)));
            match Pin::new(&mut write).await {
                Poll::Pending => break,
                Poll::Ready(written) => assert!(written.unwrap() > 0),
            }
        }
    }

    #[tokio::test]
    async fn who_else_has_it_cannot_make_its_end_wait() {
        let (connection, _far, other_hands) = in_other_hands().await;
        set_socket_linger(&other_hands, Some(Duration::from_secs(3600))).unwrap();
        drop(connection);
        assert_eq!(socket_linger(&other_hands).unwrap(), None);
    }

    #[tokio::test]
    async fn pieces_are_written_in_their_order_and_the_end_is_told() {
        let (mut connection, mut far, _other_hands) = in_other_hands().await;
        let pieces = [IoSlice::new(b"one, "), IoSlice::new(b"two")];
        assert_eq!(connection.write_vectored(&pieces).await.unwrap(), 8);
        connection.shutdown().await.unwrap();
        far.set_nonblocking(false).unwrap();
        let mut read = String::new();
        io::Read::read_to_string(&mut far, &mut read).unwrap();
        assert_eq!(read, "one, two");
    }
}

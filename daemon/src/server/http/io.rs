//! A caller's connection as hyper reads and writes it, with deadlines for both.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::server::stream::{Stream, registered};

/// How long a caller may take to send the head of a request: from the connection for the first one, and else from the first bytes
/// that come after the request before it was read.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a caller may take to read a reply.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes of one read: as many as the head of a request may have.
const READ_MAX: usize = 8 * 1024;

/// Bytes of a reply that are joined to be written together.
const JOINED_MAX: usize = 64 * 1024;

/// A connection with a caller.
pub(super) struct CallerIo {
    stream: AsyncFd<Stream>,
    head: HeadClock,
    /// Runs while a reply waits for the caller to read it.
    unread: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// Limits the time for the head of a request, and not the time between requests.
#[derive(Clone)]
pub(super) struct HeadClock {
    /// Whether the next head is due: a part of it has come.
    is_due: Arc<AtomicBool>,
}

/// hyper waits for this while a head is incomplete.
struct HeadTimeout {
    clock: HeadClock,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl CallerIo {
    pub(super) fn new(stream: Stream, head: HeadClock) -> io::Result<Self> {
        let stream = registered(stream, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, head, unread: None })
    }
}

impl Default for HeadClock {
    /// The first head is due at once.
    fn default() -> Self {
        Self { is_due: Arc::new(AtomicBool::new(true)) }
    }
}

impl HeadClock {
    /// The head has come.
    pub(super) fn stop(&self) {
        self.is_due.store(false, Ordering::Relaxed);
    }
}

impl Read for CallerIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut room = [0; READ_MAX];
        let size = buffer.remaining().min(READ_MAX);
        loop {
            let mut ready = ready!(self.stream.poll_read_ready_mut(context))?;
            let read =
                ready.try_io(|stream| stream.get_mut().try_read(room.get_mut(..size).unwrap_or_default()));
            let Ok(read) = read else { continue };
            let read = read?;
            // A short read empties the socket.
            if read < size && read > 0 {
                ready.clear_ready();
            }
            if read > 0 {
                self.head.is_due.store(true, Ordering::Relaxed);
            }
            buffer.put_slice(room.get(..read).unwrap_or_default());
            return Poll::Ready(Ok(()));
        }
    }
}

impl Write for CallerIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let Poll::Ready(ready) = self.stream.poll_write_ready(context) else {
                let sleep = || Box::pin(tokio::time::sleep(WRITE_TIMEOUT));
                ready!(self.unread.get_or_insert_with(sleep).as_mut().poll(context));
                return Poll::Ready(Err(io::Error::new(
                    ErrorKind::TimedOut,
                    "the peer does not read its answers",
                )));
            };
            if let Ok(written) = ready?.try_io(|stream| stream.get_ref().try_write(bytes)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unread = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The stream is closed when it is dropped, which is next.
        Poll::Ready(Ok(()))
    }

    /// The parts of a reply are kept as they are until they are written. Only so is the quota for unread bytes held as long.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // One system call for the head and the body of a reply, unless it is a long list.
        if parts.iter().map(|part| part.len()).sum::<usize>() <= JOINED_MAX {
            return self.poll_write(
                context,
                &parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<_>>(),
            );
        }
        let first = parts.iter().find(|part| !part.is_empty());
        self.poll_write(context, first.map(|part| &**part).unwrap_or_default())
    }
}

impl Timer for HeadClock {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadTimeout { clock: self.clone(), sleep: None })
    }

    #[expect(clippy::disallowed_types, reason = "the trait has it, and it is not used")]
    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(HEAD_TIMEOUT)
    }
}

impl Sleep for HeadTimeout {}

impl Future for HeadTimeout {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.sleep.is_none() && self.clock.is_due.load(Ordering::Relaxed) {
            self.sleep = Some(Box::pin(tokio::time::sleep(HEAD_TIMEOUT)));
        }
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

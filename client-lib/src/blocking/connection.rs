//! One connection: frames out and in, each read and write bounded by the deadline.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use tokend_protocol::{Frame, Reply, Request, read_frame, write_frame};

use crate::deadline::Deadline;
use crate::failure::{Failure, unless_stopping};

/// A connection that only one call uses at a time.
pub(super) struct Connection {
    stream: UnixStream,
    socket: Arc<Path>,
    /// The id of the last request. Ids begin at 1, and 0 is the daemon's own.
    id: u32,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, socket: Arc<Path>) -> Self {
        Self { stream, socket, id: 0 }
    }

    /// Sends a request. A closed connection is not an error here: the daemon may have sent the reason before it closed,
    /// and [`Self::receive`] reads the reason or fails.
    pub(super) fn send(&mut self, request: Request, deadline: Deadline) -> Result<(), Failure> {
        self.id = self.id.wrapping_add(1).max(1);
        let frame = Frame { id: self.id, message: request };
        match write_frame(&mut Timed { stream: &self.stream, deadline }, &frame) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::of_connection(&self.socket, error))
            }
            _ => Ok(()),
        }
    }

    /// The reply to the last request, before the deadline.
    pub(super) fn receive(&mut self, deadline: Deadline) -> Result<Reply, Failure> {
        self.receive_from(&mut Timed { stream: &self.stream, deadline })
    }

    /// The next reply to the last request, however long it takes.
    pub(super) fn receive_any_time(&mut self) -> Result<Reply, Failure> {
        let cleared = self.stream.set_read_timeout(None);
        cleared.map_err(|error| Failure::of_connection(&self.socket, error))?;
        self.receive_from(&mut &self.stream)
    }

    /// Skips replies to earlier requests.
    fn receive_from(&self, reader: &mut impl Read) -> Result<Reply, Failure> {
        loop {
            match read_frame(reader) {
                Ok(Some(Ok(Frame { id, message }))) if id == self.id => return unless_stopping(message),
                Ok(Some(Ok(Frame { id: 0, message: Reply::Error(error) }))) => {
                    return Err(Failure::of_all(error));
                }
                Ok(Some(Ok(_))) => (),
                Ok(Some(Err(bad))) => return Err(bad.into()),
                Ok(None) => return Err(Failure::hung_up(&self.socket)),
                Err(error) => return Err(Failure::of_connection(&self.socket, error)),
            }
        }
    }
}

/// A stream on which each read and write ends at the deadline.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Deadline,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.left().ok_or(io::ErrorKind::TimedOut)?;
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.deadline.left().ok_or(io::ErrorKind::TimedOut)?;
        self.stream.set_write_timeout(Some(left))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

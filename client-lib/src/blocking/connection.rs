//! One connection: frames out and in, each read and write bounded by the deadline.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use nix::sys::socket::{MsgFlags, send};
use tokend_protocol::{Frame, Reply, Request, read_frame, write_frame};
use zeroize::{Zeroize, Zeroizing};

use crate::deadline::Deadline;
use crate::failure::{Failure, unless_stopping};

/// Room for a whole reply with a token of usual size, so that one read is enough.
const ROOM: usize = 4096;

/// A connection that only one call uses at a time.
pub(super) struct Connection {
    stream: UnixStream,
    socket: Arc<Path>,
    ahead: Ahead,
    /// The id of the last request. Ids begin at 1, and 0 is the daemon's own.
    id: u32,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, socket: Arc<Path>) -> Self {
        Self { stream, socket, ahead: Ahead::new(), id: 0 }
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
        let Self { stream, socket, ahead, id } = self;
        receive(&mut ahead.before(Timed { stream, deadline }), socket, *id)
    }

    /// The next reply to the last request, however long it takes.
    pub(super) fn receive_any_time(&mut self) -> Result<Reply, Failure> {
        let cleared = self.stream.set_read_timeout(None);
        cleared.map_err(|error| Failure::of_connection(&self.socket, error))?;
        let Self { stream, socket, ahead, id } = self;
        receive(&mut ahead.before(&*stream), socket, *id)
    }
}

/// The next reply to this request. Skips replies to earlier requests.
fn receive(reader: &mut impl Read, socket: &Path, request: u32) -> Result<Reply, Failure> {
    loop {
        match read_frame(reader) {
            Ok(Some(Ok(Frame { id, message }))) if id == request => return unless_stopping(message),
            Ok(Some(Ok(Frame { id: 0, message: Reply::Error(error) }))) => {
                return Err(Failure::of_all(error));
            }
            Ok(Some(Ok(_))) => (),
            Ok(Some(Err(bad))) => return Err(bad.into()),
            Ok(None) => return Err(Failure::hung_up(socket)),
            Err(error) => return Err(Failure::of_connection(socket, error)),
        }
    }
}

/// Bytes that were read, but not used yet. They may be a token, so they are wiped as soon as all are used.
struct Ahead {
    bytes: Zeroizing<Vec<u8>>,
    used: usize,
}

/// A reader that first returns the bytes that were read ahead.
struct Buffered<'a, R> {
    ahead: &'a mut Ahead,
    reader: R,
}

impl Ahead {
    fn new() -> Self {
        Self { bytes: Zeroizing::new(Vec::with_capacity(ROOM)), used: 0 }
    }

    fn before<R: Read>(&mut self, reader: R) -> Buffered<'_, R> {
        Buffered { ahead: self, reader }
    }
}

impl<R: Read> Read for Buffered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Ahead { bytes, used } = &mut *self.ahead;
        if *used == bytes.len() {
            if buffer.len() >= ROOM {
                return self.reader.read(buffer);
            }
            *used = 0;
            bytes.clear();
            bytes.resize(ROOM, 0);
            let read = self.reader.read(bytes);
            bytes.truncate(*read.as_ref().unwrap_or(&0));
            read?;
        }
        let mut rest = bytes.get(*used..).unwrap_or_default();
        let taken = rest.read(buffer)?;
        *used += taken;
        if *used == bytes.len() {
            bytes.as_mut_slice().zeroize();
        }
        Ok(taken)
    }
}

/// Writes to a stream without SIGPIPE, which would end a program in C when the daemon restarts. Older standard libraries do not
/// prevent that signal.
pub(super) struct Outgoing<'a>(pub(super) &'a UnixStream);

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
        Outgoing(self.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that gives its pieces one by one, and nothing after them.
    struct Pieces(Vec<Vec<u8>>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let size = self.0[0].as_slice().read(buffer)?;
            self.0[0].drain(..size);
            self.0.retain(|piece| !piece.is_empty());
            Ok(size)
        }
    }

    fn read_all(pieces: &[&[u8]], sizes: &[usize]) -> Vec<u8> {
        let mut reader = Pieces(pieces.iter().map(|piece| piece.to_vec()).collect());
        let (mut ahead, mut all) = (Ahead::new(), Vec::new());
        for &size in sizes {
            let mut part = vec![0; size];
            ahead.before(&mut reader).read_exact(&mut part).unwrap();
            all.extend(part);
        }
        assert_eq!(ahead.before(&mut reader).read(&mut [0; 8]).unwrap(), 0);
        all
    }

    #[test]
    fn what_is_read_ahead_is_used_once_and_in_order() {
        let long: Vec<u8> = (0..=255).cycle().take(3 * ROOM + 5).collect();
        for sizes in [vec![long.len()], vec![4, long.len() - 4], vec![4, ROOM, 1, 2 * ROOM]] {
            assert_eq!(read_all(&[&long], &sizes), long);
            assert_eq!(read_all(&long.chunks(7).collect::<Vec<_>>(), &sizes), long);
        }
    }

    #[test]
    fn one_read_is_enough_for_a_short_reply() {
        let mut reader = Pieces(vec![vec![1; 1200]]);
        let mut ahead = Ahead::new();
        ahead.before(&mut reader).read_exact(&mut [0; 4]).unwrap();
        assert!(reader.0.is_empty());
    }

    #[test]
    fn bytes_that_were_used_are_wiped() {
        let mut reader = Pieces(vec![vec![1; 1200]]);
        let mut ahead = Ahead::new();
        ahead.before(&mut reader).read_exact(&mut [0; 1199]).unwrap();
        assert!(ahead.bytes.ends_with(&[1]), "one is to be read yet");
        ahead.before(&mut reader).read_exact(&mut [0; 1]).unwrap();
        assert!(ahead.bytes.iter().all(|byte| *byte == 0));
    }
}

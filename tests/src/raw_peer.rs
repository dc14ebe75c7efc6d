//! A peer on the daemon's socket that writes any bytes it likes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokend_protocol::{
    BadFrame, CallOptions, ErrorCode, Frame, GetRequest, Reply, Request, TokenName, VERSION, Variant,
    VersionReply, pack, read_frame,
};

const LIMIT: Duration = Duration::from_secs(180);

/// A connection without manners.
#[derive(Debug)]
pub struct RawPeer {
    stream: UnixStream,
}

/// A request for a token, waiting as long as a person might.
pub fn get(name: &str) -> Request {
    let name: TokenName = name.parse().expect("a test asks by a name that can exist");
    Request::Get(GetRequest {
        name,
        options: CallOptions { deadline_ms: 15_000, min_ttl_ms: 0 },
        variant: Variant::default(),
    })
}

/// A frame as it goes over the wire, whatever the limits of a request are.
#[expect(clippy::needless_pass_by_value, reason = "a request is written once")]
pub fn wire(id: u32, request: Request) -> Vec<u8> {
    let message = pack(&request).expect("every request can be encoded");
    let body = [&[VERSION], &id.to_be_bytes()[..], &message, &[0]].concat();
    let length = u32::try_from(body.len()).expect("a test's request is not that large");
    [&length.to_be_bytes()[..], &body].concat()
}

impl RawPeer {
    /// Connects, or says why not.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(socket)?)
    }

    /// Over a connection that somebody else made.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { stream })
    }

    /// The connection itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Writes bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Writes one frame.
    pub fn send(&mut self, id: u32, request: Request) -> io::Result<()> {
        self.stream.write_all(&wire(id, request))
    }

    /// Reads one frame, or `None` at the end of the connection.
    pub fn receive(&mut self) -> io::Result<Option<Result<Frame<Reply>, BadFrame>>> {
        read_frame(&mut self.stream)
    }

    /// Asks and waits for the answer.
    ///
    /// # Panics
    /// When there is none.
    pub fn ask(&mut self, id: u32, request: Request) -> Reply {
        self.send(id, request).expect("the daemon takes a request");
        self.expect_reply(id)
    }

    /// The next frame, which must answer the request of this id.
    ///
    /// # Panics
    /// When it does not.
    pub fn expect_reply(&mut self, id: u32) -> Reply {
        let frame = self.receive().expect("the daemon answers").expect("the daemon answers before it closes");
        let frame = frame.expect("the daemon writes frames that can be read");
        assert_eq!(frame.id, id, "an answer to another request: {:?}", frame.message);
        frame.message
    }

    /// The next frame, which must be a refusal: its id and its code.
    ///
    /// # Panics
    /// When it is something else.
    pub fn expect_error(&mut self) -> (u32, ErrorCode) {
        let frame = self.receive().expect("the daemon answers").expect("the daemon answers before it closes");
        let frame = frame.expect("the daemon writes frames that can be read");
        match frame.message {
            Reply::Error(error) => (frame.id, error.code),
            other => panic!("a refusal was expected, not {other:?}"),
        }
    }

    /// Asks for the version, which every daemon answers at once: shows that the connection still works.
    ///
    /// # Panics
    /// When it does not.
    pub fn assert_alive(&mut self) -> VersionReply {
        match self.ask(4_000_000_000, Request::Version) {
            Reply::Version(version) => version,
            other => panic!("a version was expected, not {other:?}"),
        }
    }

    /// Waits for the daemon to close the connection without a word.
    ///
    /// # Panics
    /// When it says something, or keeps the connection open for longer than `limit`.
    pub fn expect_close_with_nothing(&mut self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        match self.receive() {
            Ok(None) => (),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (),
            other => panic!("the connection should have been closed without a word: {other:?}"),
        }
    }

    /// Waits for the daemon to close the connection; whatever it says before is dropped.
    ///
    /// # Panics
    /// When the daemon keeps it open for longer than `limit`.
    pub fn expect_close_within(&mut self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        let mut scrap = [0; 4096];
        loop {
            match self.stream.read(&mut scrap) {
                Ok(0) => return,
                Ok(_) => (),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => panic!("the connection should have been closed: {error}"),
            }
        }
    }
}

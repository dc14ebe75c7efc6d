//! Bodies of frames to and from messages: the one core below the blocking and the tokio codec, and the
//! only file that knows bincode.

use std::io;

use bincode::error::DecodeError;
use bincode::serde::decode_from_slice;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Reply, Request};

/// The protocol version that this crate speaks: the first byte of every body.
pub const VERSION: u8 = 1;

/// The largest body of a request, in bytes. A request is a name and a few headers.
pub const REQUEST_MAX: usize = 16 * 1024;

/// The largest body of a reply, in bytes. A token of 64 KiB and a page of a status fit.
pub const REPLY_MAX: usize = 256 * 1024;

/// Bytes of the length that precedes a body.
pub const LENGTH_BYTES: usize = 4;

/// Bytes of version and request id, which begin every body of every version.
pub const HEADER_BYTES: usize = 5;

/// A message in its envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<M> {
    /// Chosen by the caller and repeated in every answer. 0 is used by the daemon alone, where it cannot
    /// know the id.
    pub id: u32,
    /// The message.
    pub message: M,
}

/// A kind of message that travels in frames: [`Request`] or [`Reply`].
pub trait Message: Serialize + DeserializeOwned {
    /// The largest body that is sent or accepted, in bytes.
    const BODY_MAX: usize;
}

impl Message for Request {
    const BODY_MAX: usize = REQUEST_MAX;
}

impl Message for Reply {
    const BODY_MAX: usize = REPLY_MAX;
}

/// How much bincode may count against its limit for each byte of a body: it counts a number at its full
/// width of up to eight bytes, however few it takes on the wire.
const COUNTED_PER_BYTE: usize = 8;

/// A body that is not a message. The bytes after it are unaffected, so a connection can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct BadFrame {
    /// The request id, as far as the body had one; otherwise 0.
    pub id: u32,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It ends before its header does.
    #[error("a body of {0} bytes has no room for version and request id")]
    Cut(usize),
    /// It is of a version that is not spoken here.
    #[error("protocol version {0} is not spoken here, only {VERSION}")]
    Version(u8),
    /// It is no message: an unknown variant, a cut field, a length that lies, an invalid token name.
    #[error("the body is not a message of protocol version {VERSION}")]
    Malformed,
    /// Bytes follow the message.
    #[error("{0} bytes follow the message")]
    TrailingBytes(usize),
}

/// A message whose body would exceed [`Message::BODY_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {size} bytes exceeds the limit of {max}")]
pub struct TooLarge {
    /// The size that it has.
    pub size: usize,
    /// The size that it may have.
    pub max: usize,
}

impl From<TooLarge> for io::Error {
    fn from(error: TooLarge) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// Where frames are written: a growable buffer whose written part can be changed and cut.
pub(crate) trait Buffer: AsMut<[u8]> {
    fn size(&self) -> usize;
    fn append(&mut self, bytes: &[u8]);
    fn cut(&mut self, size: usize);
}

impl Buffer for Vec<u8> {
    fn size(&self) -> usize {
        self.len()
    }

    fn append(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn cut(&mut self, size: usize) {
        self.truncate(size);
    }
}

/// Appends one frame, length included. On an error the buffer is as it was.
///
/// ```
/// use tokend_protocol::{Frame, Request, decode, encode};
///
/// let mut wire = Vec::new();
/// encode(&Frame { id: 7, message: Request::Version }, &mut wire)?;
/// assert_eq!(wire, [0, 0, 0, 6, 1, 0, 0, 0, 7, 7]);
/// assert_eq!(decode::<Request>(&wire[4..]), Ok(Frame { id: 7, message: Request::Version }));
/// # Ok::<(), tokend_protocol::TooLarge>(())
/// ```
pub fn encode<M: Message>(frame: &Frame<M>, wire: &mut Vec<u8>) -> Result<(), TooLarge> {
    encode_into(frame, wire)
}

pub(crate) fn encode_into<M: Message>(frame: &Frame<M>, wire: &mut impl Buffer) -> Result<(), TooLarge> {
    let start = wire.size();
    wire.append(&[0; LENGTH_BYTES]);
    wire.append(&[VERSION]);
    wire.append(&frame.id.to_be_bytes());
    let mut writer = Writer(wire);
    let written =
        bincode::serde::encode_into_std_write(&frame.message, &mut writer, bincode::config::standard());
    let size = wire.size() - start - LENGTH_BYTES;
    let length = u32::try_from(size).ok().filter(|_| written.is_ok() && size <= M::BODY_MAX);
    let Some(length) = length else {
        wire.cut(start);
        return Err(TooLarge { size, max: M::BODY_MAX });
    };
    if let Some(place) = wire.as_mut().get_mut(start..start + LENGTH_BYTES) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

struct Writer<'a, B>(&'a mut B);

impl<B: Buffer> io::Write for Writer<'_, B> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the message from a body, which is a frame without its length.
pub fn decode<M: Message>(body: &[u8]) -> Result<Frame<M>, BadFrame> {
    let Some((&[version, a, b, c, d], encoded)) = body.split_first_chunk::<HEADER_BYTES>() else {
        return Err(BadFrame { id: 0, fault: Fault::Cut(body.len()) });
    };
    let id = u32::from_be_bytes([a, b, c, d]);
    if version != VERSION {
        return Err(BadFrame { id, fault: Fault::Version(version) });
    }
    match decode_message(encoded) {
        Ok((message, used)) if used == encoded.len() => Ok(Frame { id, message }),
        Ok((_, used)) => Err(BadFrame { id, fault: Fault::TrailingBytes(encoded.len() - used) }),
        Err(_) => Err(BadFrame { id, fault: Fault::Malformed }),
    }
}

/// A length that lies costs little memory. The limit makes bincode refuse a string that promises more than a
/// body can hold before it allocates for it. The length of a list it hands on as a mere hint, upon which serde
/// reserves 1 MiB at most, whatever is promised; and the first element that is missing ends the decoding.
fn decode_message<M: Message>(encoded: &[u8]) -> Result<(M, usize), DecodeError> {
    const REQUEST_LIMIT: usize = COUNTED_PER_BYTE * REQUEST_MAX;
    const REPLY_LIMIT: usize = COUNTED_PER_BYTE * REPLY_MAX;
    let config = bincode::config::standard();
    if M::BODY_MAX <= REQUEST_MAX {
        return decode_from_slice(encoded, config.with_limit::<REQUEST_LIMIT>());
    }
    decode_from_slice(encoded, config.with_limit::<REPLY_LIMIT>())
}

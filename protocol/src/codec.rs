//! Encodes and decodes the bodies of frames, below the blocking and the tokio codec. The only file that uses bincode.

use std::io;

use bincode::config::standard;
use bincode::error::DecodeError;
use bincode::serde::{borrow_decode_from_slice, decode_from_slice, encode_into_std_write, encode_to_vec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::limits::{BadList, REPLY_MAX, REQUEST_MAX};
use crate::{CallOptions, Reply, Request};

/// The protocol version that this crate speaks: the first byte of every body.
pub const VERSION: u8 = 1;

/// The empty list of extensions, which ends every message that this crate writes.
const NO_EXTENSIONS: u8 = 0;

/// Bytes of the length that precedes a body.
pub const LENGTH_BYTES: usize = 4;

/// Bytes of the version and the request id, which begin every body of every version.
pub const HEADER_BYTES: usize = 5;

/// A message in its envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<M> {
    /// The id that the caller chose and every answer repeats. Only the daemon uses 0, where it does not know the id.
    pub id: u32,
    /// The message.
    pub message: M,
}

/// A kind of message that travels in frames: [`Request`] or [`Reply`].
pub trait Message: Serialize + DeserializeOwned {
    /// The largest body that is sent or accepted, in bytes.
    const BODY_MAX: usize;
    /// The highest number of a message that this crate knows.
    const HIGHEST: u32;

    /// Checks the limits of the message's lists.
    ///
    /// # Errors
    /// A list is too long, or repeats an element.
    fn check(&self) -> Result<(), BadList> {
        Ok(())
    }
}

impl Message for Request {
    const BODY_MAX: usize = REQUEST_MAX;
    const HIGHEST: u32 = 8;

    fn check(&self) -> Result<(), BadList> {
        self.check_lists()
    }
}

impl Message for Reply {
    const BODY_MAX: usize = REPLY_MAX;
    const HIGHEST: u32 = 9;
}

/// The largest number of bytes that bincode counts for one byte of a body: it counts a number at its full width, up to
/// eight bytes, even if its encoding is shorter.
const COUNTED_PER_BYTE: usize = 8;

/// A body that cannot be decoded. The bytes after it are unaffected, so the connection can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct BadFrame {
    /// The request id; 0 if the body is too short to have one.
    pub id: u32,
    /// The reason.
    pub fault: Fault,
}

/// Why a body cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The body is shorter than its header.
    #[error("a body of {0} bytes is too short for version and request id")]
    Cut(usize),
    /// The body has another protocol version.
    #[error("protocol version {0} is not supported, only {VERSION}")]
    Version(u8),
    /// The number of the message is higher than [`Message::HIGHEST`].
    #[error("message number {0} is unknown to this release")]
    UnknownMessage(u32),
    /// The message is malformed: an unknown enum value, a cut field, a wrong length, an invalid token name.
    #[error("the body is not a valid message of protocol version {VERSION}")]
    Malformed,
    /// Bytes follow the message.
    #[error("{0} bytes follow the message")]
    TrailingBytes(usize),
    /// A list of a request is too long, or repeats an element.
    #[error(transparent)]
    List(#[from] BadList),
}

/// A message that exceeds a limit, so that it cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The body would exceed [`Message::BODY_MAX`].
    #[error("a message of {size} bytes exceeds the limit of {max}")]
    TooLarge {
        /// The size of the body.
        size: usize,
        /// The largest allowed size.
        max: usize,
    },
    /// A list of a request is too long, or repeats an element.
    #[error(transparent)]
    List(#[from] BadList),
}

impl From<EncodeError> for io::Error {
    fn from(error: EncodeError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// A growable buffer for frames, whose written part can be changed and cut.
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
/// assert_eq!(wire, [0, 0, 0, 7, 1, 0, 0, 0, 7, 7, 0]);
/// assert_eq!(decode::<Request>(&wire[4..]), Ok(Frame { id: 7, message: Request::Version }));
/// # Ok::<(), tokend_protocol::EncodeError>(())
/// ```
pub fn encode<M: Message>(frame: &Frame<M>, wire: &mut Vec<u8>) -> Result<(), EncodeError> {
    encode_into(frame, wire)
}

pub(crate) fn encode_into<M: Message>(frame: &Frame<M>, wire: &mut impl Buffer) -> Result<(), EncodeError> {
    frame.message.check()?;
    let start = wire.size();
    wire.append(&[0; LENGTH_BYTES]);
    wire.append(&[VERSION]);
    wire.append(&frame.id.to_be_bytes());
    let mut writer = Writer(wire);
    let written = encode_into_std_write(&frame.message, &mut writer, standard());
    wire.append(&[NO_EXTENSIONS]);
    let size = wire.size() - start - LENGTH_BYTES;
    let length = u32::try_from(size).ok().filter(|_| written.is_ok() && size <= M::BODY_MAX);
    let Some(length) = length else {
        wire.cut(start);
        return Err(EncodeError::TooLarge { size, max: M::BODY_MAX });
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
    decode_message(encoded).map(|message| Frame { id, message }).map_err(|fault| BadFrame { id, fault })
}

fn decode_message<M: Message>(encoded: &[u8]) -> Result<M, Fault> {
    const REQUEST_LIMIT: usize = COUNTED_PER_BYTE * REQUEST_MAX;
    const REPLY_LIMIT: usize = COUNTED_PER_BYTE * REPLY_MAX;
    let (number, _) = take::<u32>(encoded)?;
    if number > M::HIGHEST {
        return Err(Fault::UnknownMessage(number));
    }
    // The limit makes bincode refuse a string that claims more than a body can hold before it allocates. The lists of
    // requests have limits of their own. A list of a reply reserves at most 1 MiB, whatever length it claims, and its
    // first missing element ends the decoding.
    let decoded = if M::BODY_MAX <= REQUEST_MAX {
        decode_from_slice(encoded, standard().with_limit::<REQUEST_LIMIT>())
    } else {
        decode_from_slice(encoded, standard().with_limit::<REPLY_LIMIT>())
    };
    let (message, used): (M, usize) = decoded.map_err(fault)?;
    message.check()?;
    match after_extensions(encoded.get(used..).unwrap_or_default())? {
        [] => Ok(message),
        rest => Err(Fault::TrailingBytes(rest.len())),
    }
}

fn fault(error: DecodeError) -> Fault {
    match error {
        DecodeError::OtherString(text) => BadList::of_text(&text).map_or(Fault::Malformed, Fault::List),
        _ => Fault::Malformed,
    }
}

/// Encodes a part of a message, to hold it in little memory: decoded, each element of a list takes far more than its bytes.
/// `None` for a value that has no encoding; every part of a message has one.
pub fn pack(part: &impl Serialize) -> Option<Box<[u8]>> {
    encode_to_vec(part, standard()).ok().map(Vec::into_boxed_slice)
}

/// Decodes a part of a message that [`pack`] has encoded.
pub fn unpack<T: DeserializeOwned>(packed: &[u8]) -> Option<T> {
    decode_from_slice(packed, standard()).ok().map(|(part, _)| part)
}

/// The token and the options of a body that is a [`GetRequest`](crate::GetRequest) for a token without a variant.
/// `None` for every other body, also for a bad one: [`decode`] says what it is. Allocates nothing.
///
/// ```
/// use tokend_protocol::{CallOptions, Frame, GetRequest, Request, Variant, decode_get, encode};
///
/// let options = CallOptions { deadline_ms: 100, min_ttl_ms: 0 };
/// let get = |variant| Request::Get(GetRequest { name: "bank".parse().unwrap(), options, variant });
/// let mut wire = Vec::new();
/// encode(&Frame { id: 7, message: get(Variant::default()) }, &mut wire)?;
/// assert_eq!(decode_get(&wire[4..]), Some(("bank", options)));
/// # Ok::<(), tokend_protocol::EncodeError>(())
/// ```
pub fn decode_get(body: &[u8]) -> Option<(&str, CallOptions)> {
    /// The number of [`Request::Get`].
    const GET: u32 = 0;
    /// Three empty lists of a variant, and no extension.
    const NO_MORE: &[u8] = &[0, 0, 0, NO_EXTENSIONS];
    let (&[VERSION, ..], encoded) = body.split_first_chunk::<HEADER_BYTES>()? else { return None };
    let ((GET, name, options), NO_MORE) = take::<(u32, &str, CallOptions)>(encoded).ok()? else {
        return None;
    };
    Some((name, options))
}

/// Skips the list of extensions and returns the bytes after it. This release knows no extension.
fn after_extensions(encoded: &[u8]) -> Result<&[u8], Fault> {
    let (count, mut rest) = take::<u64>(encoded)?;
    for _ in 0..count {
        (_, rest) = take::<(u32, &[u8])>(rest)?;
    }
    Ok(rest)
}

/// Decodes a value from the beginning of `encoded`, without allocating, and returns the rest.
fn take<'a, T: Deserialize<'a>>(encoded: &'a [u8]) -> Result<(T, &'a [u8]), Fault> {
    let (value, used) = borrow_decode_from_slice(encoded, standard()).map_err(|_| Fault::Malformed)?;
    Ok((value, encoded.get(used..).unwrap_or_default()))
}

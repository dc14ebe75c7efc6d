//! Reads and writes frames on [`std::io`], for programs without an async runtime.

use std::io::{self, Read, Write};

use crate::codec::{BadFrame, Frame, LENGTH_BYTES, Message, decode, encode};

/// Writes one frame with one call of `write_all`, and flushes.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a message that is too large; nothing is written then. Otherwise the error of
/// the writer.
pub fn write_frame<M: Message>(writer: &mut impl Write, frame: &Frame<M>) -> io::Result<()> {
    let mut wire = zeroize::Zeroizing::new(Vec::with_capacity(256));
    encode(frame, &mut wire)?;
    writer.write_all(&wire)?;
    writer.flush()
}

/// Reads one frame, or `None` where the stream ends between two frames.
///
/// The inner error concerns only this frame. The next frame can be read.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a length above the limit, before anything is allocated for it;
/// [`io::ErrorKind::UnexpectedEof`] if the stream ends within a frame; otherwise the error of the reader.
/// After such an error the stream cannot be used.
pub fn read_frame<M: Message>(reader: &mut impl Read) -> io::Result<Option<Result<Frame<M>, BadFrame>>> {
    let Some(length) = read_length(reader)? else { return Ok(None) };
    if length > M::BODY_MAX {
        let text = format!("a frame of {length} bytes exceeds the limit of {}", M::BODY_MAX);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = zeroize::Zeroizing::new(vec![0; length]);
    reader.read_exact(&mut body)?;
    Ok(Some(decode(&body)))
}

fn read_length(reader: &mut impl Read) -> io::Result<Option<usize>> {
    let mut length = [0; LENGTH_BYTES];
    let mut filled = 0;
    while let Some(rest) = length.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(u32::from_be_bytes(length) as usize))
}

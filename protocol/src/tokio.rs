//! Frames for tokio: a codec for `tokio_util::codec::Framed`.

use std::io;
use std::marker::PhantomData;

use bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};
use zeroize::Zeroize;

use crate::codec::{BadFrame, Buffer, Frame, LENGTH_BYTES, Message, decode, encode_into};

/// Reads frames of `In` and writes frames of `Out`: a daemon uses `Codec<Request, Reply>`, a client
/// `Codec<Reply, Request>`.
///
/// An invalid body is an item, not an error, because the next frame can be read. A length above
/// the limit is an error ([`io::ErrorKind::InvalidData`]), after which the stream cannot be used.
#[derive(Debug)]
pub struct Codec<In, Out> {
    lengths: LengthDelimitedCodec,
    messages: PhantomData<fn(In) -> Out>,
}

impl<In: Message, Out: Message> Codec<In, Out> {
    /// A codec with the limits of its messages.
    pub fn new() -> Self {
        let lengths = LengthDelimitedCodec::builder()
            .length_field_length(LENGTH_BYTES)
            .max_frame_length(In::BODY_MAX)
            .new_codec();
        Self { lengths, messages: PhantomData }
    }
}

impl<In: Message, Out: Message> Default for Codec<In, Out> {
    fn default() -> Self {
        Self::new()
    }
}

impl<In: Message, Out: Message> Decoder for Codec<In, Out> {
    type Item = Result<Frame<In>, BadFrame>;
    type Error = io::Error;

    fn decode(&mut self, wire: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        let Some(mut body) = self.lengths.decode(wire)? else { return Ok(None) };
        let message = decode(&body);
        body.zeroize();
        Ok(Some(message))
    }
}

impl<In: Message, Out: Message> Encoder<Frame<Out>> for Codec<In, Out> {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame<Out>, wire: &mut BytesMut) -> io::Result<()> {
        Ok(encode_into(&frame, wire)?)
    }
}

impl Buffer for BytesMut {
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

//! Replies as they arrive on one connection.

use std::path::Path;

use bytes::BytesMut;
use tokend_protocol::{Codec, Frame, Reply, Request};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio_util::codec::Decoder;
use zeroize::Zeroize;

use crate::failure::Failure;

/// Room for the usual reply. Longer ones make it grow.
const BUFFER: usize = 4 * 1024;

/// The reading half of a connection.
pub(super) struct Incoming {
    half: OwnedReadHalf,
    buffer: BytesMut,
    codec: Codec<Reply, Request>,
}

impl Incoming {
    pub(super) fn new(half: OwnedReadHalf) -> Self {
        Self { half, buffer: BytesMut::with_capacity(BUFFER), codec: Codec::new() }
    }

    /// The next reply. A call that is dropped before its end loses nothing: the next one goes on.
    pub(super) async fn next(&mut self, socket: &Path) -> Result<Frame<Reply>, Failure> {
        let io = |error| Failure::of_connection(socket, error);
        loop {
            if let Some(frame) = self.codec.decode(&mut self.buffer).map_err(io)? {
                return Ok(frame?);
            }
            if self.half.read_buf(&mut self.buffer).await.map_err(io)? == 0 {
                return Err(Failure::hung_up(socket));
            }
        }
    }
}

/// Wipes the bytes that were read and not decoded, which may contain a token.
impl Drop for Incoming {
    fn drop(&mut self) {
        self.buffer.as_mut().zeroize();
    }
}

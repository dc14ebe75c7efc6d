//! The reply to a `get` that goes with a snapshot.

use std::sync::{Arc, Mutex, PoisonError};

use tokend_protocol::TokenFrame;

use crate::clock::Instant;

/// The reply to a `get` under a snapshot, encoded when it is first needed, without the token. A changed copy of the snapshot
/// has none.
#[derive(Debug, Default)]
pub struct EncodedReply(Mutex<Option<(Instant, Arc<TokenFrame>)>>);

impl Clone for EncodedReply {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl EncodedReply {
    /// The reply, or a new one with the time until which it can be used, if there is none for now.
    pub fn get(
        &self,
        now: Instant,
        encode: impl FnOnce() -> Option<(Instant, TokenFrame)>,
    ) -> Option<Arc<TokenFrame>> {
        let mut encoded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if encoded.as_ref().is_none_or(|(until, _)| *until <= now) {
            let (until, frame) = encode()?;
            *encoded = Some((until, Arc::new(frame)));
        }
        encoded.as_ref().map(|(_, frame)| Arc::clone(frame))
    }
}

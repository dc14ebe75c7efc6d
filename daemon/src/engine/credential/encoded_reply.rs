//! The encoded reply to a `get`, which each snapshot has.

use std::sync::{Arc, Mutex, PoisonError};

use tokend_protocol::TokenFrame;

use crate::clock::Instant;

/// The reply to a `get` without the token, encoded when a caller first needs it. A copy of the snapshot has none, because it is
/// made to be changed.
#[derive(Debug, Default)]
pub struct EncodedReply(Mutex<Option<(Instant, Arc<TokenFrame>)>>);

impl Clone for EncodedReply {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl EncodedReply {
    /// Returns the reply. If there is none that is valid now, `encode` makes one, and says until when it is valid.
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

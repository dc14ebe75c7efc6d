//! The reply to a `get`, encoded once for many requests.

use zeroize::Zeroizing;

use crate::codec::{EncodeError, Frame, HEADER_BYTES, LENGTH_BYTES, VERSION, encode, pack};
use crate::{Reply, Secret, TokenReply};

/// The frame of a [`Reply::Token`] without the request id and without the token.
///
/// ```
/// use tokend_protocol::{Frame, Reply, TokenFrame, TokenReply, encode};
///
/// # use tokend_protocol::{BootInstant, Fingerprint, Secret, State, Timestamp, TokenInfo};
/// fn answer(reply: TokenReply) {
///     let frame = TokenFrame::new(&reply).unwrap();
///     let (mut quick, mut slow) = (Vec::new(), Vec::new());
///     for id in 1..=3 {
///         frame.append(id, &reply.token, &mut quick);
///         encode(&Frame { id, message: Reply::Token(reply.clone()) }, &mut slow).unwrap();
///     }
///     assert_eq!(quick, slow);
/// }
/// # let info = TokenInfo { issued_at: BootInstant(1), expires_at: BootInstant(2), expires_at_wall: Timestamp(3),
/// #     state: State::Fresh, last_error: None, next_attempt: None, fingerprint: Fingerprint([0; 8]) };
/// # for (length, scope) in [(0, None), (250, Some("a b")), (251, None), (1_200, None), (65_536, Some(""))] {
/// #     let (token, scope) = (Secret::from("t".repeat(length)), scope.map(str::to_owned));
/// #     answer(TokenReply { info, token, token_type: "Bearer".to_owned(), scope });
/// # }
/// ```
#[derive(Debug)]
pub struct TokenFrame {
    /// The part before the request id, the part between the id and the token, and the part after the token.
    parts: [Box<[u8]>; 3],
}

impl TokenFrame {
    /// Encodes a reply.
    ///
    /// # Errors
    /// It is larger than a reply may be.
    pub fn new(reply: &TokenReply) -> Result<Self, EncodeError> {
        let mut wire = Zeroizing::new(Vec::new());
        encode(&Frame { id: 0, message: Reply::Token(reply.clone()) }, &mut wire)?;
        // The token is followed by its type, its scope, and the number of extensions, which is one byte.
        let after = pack(&(&reply.token_type, &reply.scope)).unwrap_or_default().len() + 1;
        let end = wire.len() - after;
        let start = end - reply.token.expose().len();
        let parts =
            [0..LENGTH_BYTES + size_of_val(&VERSION), LENGTH_BYTES + HEADER_BYTES..start, end..wire.len()];
        Ok(Self { parts: parts.map(|part| wire.get(part).unwrap_or_default().into()) })
    }

    /// Appends the answer to a request. `token` is that of the reply.
    pub fn append(&self, id: u32, token: &Secret, wire: &mut Vec<u8>) {
        let [start, before, after] = &self.parts;
        for part in [&**start, &id.to_be_bytes(), before, token.expose().as_bytes(), after] {
            wire.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BootInstant, Fingerprint, State, Timestamp, TokenInfo};

    #[test]
    fn the_token_is_not_in_the_frame_that_is_kept() {
        let info = TokenInfo {
            issued_at: BootInstant(1),
            expires_at: BootInstant(2),
            expires_at_wall: Timestamp(3),
            state: State::Fresh,
            last_error: None,
            next_attempt: None,
            fingerprint: Fingerprint([1; 8]),
        };
        let token = Secret::from("s3cr3t".to_owned());
        let reply = TokenReply { info, token, token_type: "Bearer".to_owned(), scope: None };
        let frame = TokenFrame::new(&reply).unwrap();
        let kept = frame.parts.concat();
        assert!(!kept.windows(3).any(|part| part == b"3cr"), "{kept:?}");
        let mut wire = Vec::new();
        frame.append(1, &reply.token, &mut wire);
        assert_eq!(wire.len(), kept.len() + size_of::<u32>() + "s3cr3t".len());
    }
}

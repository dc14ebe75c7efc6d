//! The wire protocol of tokend. (Specification to follow here.)

mod blocking;
mod codec;
mod message;
mod name;
mod secret;
#[cfg(feature = "tokio")]
mod tokio;

#[cfg(feature = "tokio")]
pub use crate::tokio::Codec;
pub use blocking::{read_frame, write_frame};
pub use codec::{
    BadFrame, Fault, Frame, HEADER_BYTES, LENGTH_BYTES, Message, REPLY_MAX, REQUEST_MAX, TooLarge, VERSION, decode,
    encode,
};
pub use message::{
    CallerHeader, DaemonStatus, Deviation, ErrorClass, ErrorCode, ErrorReply, EventReply, Fingerprint,
    FingerprintError, GetRequest, Header, HeadersReply, HeadersRequest, HeldToken, LastError, ListEntry, ListReply,
    PageRequest, RefreshRequest, RefreshedReply, RejectOutcome, RejectRequest, RejectedReply, Reply, Request, State,
    StatusReply, Terms, Timestamp, TokenInfo, TokenReply, TokenStatus, VersionReply, WatchRequest,
};
pub use name::{TOKEN_NAME_MAX, TokenName, TokenNameError};
pub use secret::Secret;

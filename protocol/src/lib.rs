#![doc = include_str!("../PROTOCOL.md")]

mod blocking;
mod codec;
#[cfg(feature = "documents")]
pub mod documents;
mod explain;
mod limits;
mod name;
mod reply;
mod request;
mod secret;
mod status;
mod token_frame;
#[cfg(feature = "tokio")]
mod tokio;
mod types;

#[cfg(feature = "tokio")]
pub use crate::tokio::Codec;
pub use blocking::{read_frame, write_frame};
pub use codec::{
    BadFrame, EncodeError, Fault, Frame, HEADER_BYTES, LENGTH_BYTES, Message, VERSION, decode, decode_get,
    encode, pack, unpack,
};
pub use explain::{ExplainedCondition, ExplainedList, ExplainedReply, ExplainedRule, SubjectFacts};
pub use limits::{
    BadList, HEADERS_MAX, List, REPLY_MAX, REQUEST_MAX, TERMS_MAX, TOKEN_NAME_MAX, WATCHED_TOKENS_MAX,
};
pub use name::{TokenName, TokenNameError};
pub use reply::{
    ErrorCode, ErrorReply, EventReply, Header, HeadersReply, ListEntry, ListReply, RefreshedReply,
    RejectOutcome, RejectedReply, Reply, TokenInfo, TokenReply, VersionReply,
};
pub use request::{
    CallerHeader, ExplainRequest, GetRequest, HeadersRequest, PageRequest, RefreshRequest, RejectRequest,
    Request, StatusRequest, Subject, WatchRequest, WatchedToken,
};
pub use secret::Secret;
pub use status::{
    Attribute, Count, DaemonStatus, Deviation, HeldToken, LastError, StatusReply, TokenStatus, VariantStatus,
};
pub use token_frame::TokenFrame;
pub use types::{
    BootInstant, CallOptions, ErrorClass, Fingerprint, FingerprintError, State, Timestamp, Variant,
};

//! The reply to a status request.
//!
//! These types are the wire format, under the rules of the requests.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{BootInstant, ErrorClass, Fingerprint, State, Timestamp, TokenName, Variant};

/// A page of the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReply {
    /// The status of the daemon.
    pub daemon: DaemonStatus,
    /// The status of the tokens, sorted by name.
    pub tokens: Vec<TokenStatus>,
    /// Whether another page follows.
    pub more: bool,
}

/// The status of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// The release, as in `1.2.3`.
    pub version: String,
    /// The process id. 0 to anyone but an operator.
    pub pid: u32,
    /// When the daemon started.
    pub started_at: Timestamp,
    /// The number of open connections, including this one. 0 to anyone but an operator.
    pub connections: u32,
    /// When the last reload failed; `None` if it succeeded, and to anyone but an operator.
    pub reload_failed_at: Option<Timestamp>,
    /// Further facts about the daemon.
    pub attributes: Vec<Attribute>,
    /// Numbers about the daemon, sorted by name. Those that are absent are 0.
    pub counts: Vec<Count>,
}

/// The status of one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// The name of the token.
    pub name: TokenName,
    /// The name of its `[provider.NAME]`.
    pub provider: String,
    /// The condition of the token.
    pub state: State,
    /// The held token, while it is valid.
    pub held: Option<HeldToken>,
    /// The last failure since the last success.
    pub last_error: Option<LastError>,
    /// The number of failures since the last success.
    pub failures: u32,
    /// When the daemon will ask the provider next.
    pub next_attempt: Option<Timestamp>,
    /// The number of requests to the provider since the daemon started, those for metadata too.
    pub requests: u64,
    /// The number of times the token was handed out since the daemon started.
    pub hand_outs: u64,
    /// The deviations from the RFCs in the provider's replies.
    pub deviations: Vec<Deviation>,
    /// Further facts about the token.
    pub attributes: Vec<Attribute>,
    /// Numbers about the token, sorted by name. Those that are absent are 0.
    pub counts: Vec<Count>,
    /// The number of variants that hold a valid token.
    pub variants_held: u32,
    /// The variants, if the request named the token; as many as fit into the reply.
    pub variants: Vec<VariantStatus>,
}

/// The status of one variant of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariantStatus {
    /// The scopes, resources and audiences that callers asked for.
    pub variant: Variant,
    /// The condition of the variant.
    pub state: State,
    /// The held token, while it is valid.
    pub held: Option<HeldToken>,
    /// Why the last attempt failed, if it did.
    pub last_error: Option<ErrorClass>,
    /// When the daemon will ask the provider next.
    pub next_attempt: Option<Timestamp>,
}

/// The lifetime of a token that the daemon holds, without the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldToken {
    /// When the daemon sent the request that brought the token.
    pub issued_at: BootInstant,
    /// When the token expires.
    pub expires_at: BootInstant,
    /// When the token expires, in wall time.
    pub expires_at_wall: Timestamp,
    /// The fingerprint of the token.
    pub fingerprint: Fingerprint,
}

impl HeldToken {
    /// The remaining lifetime at `now`; zero once the token has expired.
    pub fn remaining(&self, now: BootInstant) -> Duration {
        self.expires_at.since(now)
    }

    /// The age of the token at `now`.
    pub fn age(&self, now: BootInstant) -> Duration {
        now.since(self.issued_at)
    }
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// The class of the failure.
    pub class: ErrorClass,
    /// The reason, for a person. It never contains the body of a reply.
    pub message: String,
    /// When the attempt failed.
    pub at: Timestamp,
}

/// A deviation from the RFCs that the daemon tolerated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deviation {
    /// The kind of deviation, as in `expires_in-string`.
    pub kind: String,
    /// The number of times since the daemon started.
    pub count: u64,
}

/// A number under a stable name: `failed-CLASS` (failed requests with this class of failure since the daemon started), `refused`
/// (callers that were refused the token since then), `waiting` (callers that wait for the token now).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The name. A reader ignores a name that it does not know.
    pub name: String,
    /// How many there are.
    pub value: u64,
}

/// A further fact for people. A list of facts is sorted by name, and each name occurs once.
///
/// Facts are for display. A program must not rely on a name or a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// The topic: a word in lower case, with hyphens, such as `clock-skew` or `client-secret`.
    pub name: String,
    /// The fact.
    pub value: String,
}

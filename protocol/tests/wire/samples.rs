//! One frame of every kind, with fixed values: what the golden frames on disk must hold.

use std::path::PathBuf;

use tokend_protocol::{
    Attribute, BootInstant, CallOptions, CallerHeader, Count, DaemonStatus, Deviation, ErrorClass, ErrorCode,
    ErrorReply, EventReply, ExplainRequest, ExplainedCondition, ExplainedList, ExplainedReply, ExplainedRule,
    Fingerprint, Frame, GetRequest, Header, HeadersReply, HeadersRequest, HeldToken, LastError, ListEntry,
    ListReply, PageRequest, RefreshRequest, RefreshedReply, RejectOutcome, RejectRequest, RejectedReply,
    Reply, Request, Secret, State, StatusReply, StatusRequest, Subject, SubjectFacts, Timestamp, TokenInfo,
    TokenName, TokenReply, TokenStatus, Variant, VariantStatus, VersionReply, WatchRequest, WatchedToken,
};

/// A frame of either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sample {
    Request(Frame<Request>),
    Reply(Frame<Reply>),
}

pub(crate) const STATES: [State; 6] = [
    State::Fresh,
    State::Refreshing,
    State::Degraded,
    State::Pending,
    State::Unavailable,
    State::NeedsOperator,
];

pub(crate) const CLASSES: [ErrorClass; 9] = [
    ErrorClass::Unreachable,
    ErrorClass::Timeout,
    ErrorClass::Tls,
    ErrorClass::Throttled,
    ErrorClass::Server,
    ErrorClass::Malformed,
    ErrorClass::Refused,
    ErrorClass::Secret,
    ErrorClass::Internal,
];

pub(crate) const OUTCOMES: [RejectOutcome; 4] =
    [RejectOutcome::Replaced, RejectOutcome::Superseded, RejectOutcome::Unchanged, RejectOutcome::TooSoon];

pub(crate) const CODES: [ErrorCode; 11] = [
    ErrorCode::NotAllowed,
    ErrorCode::UnknownToken,
    ErrorCode::Unavailable,
    ErrorCode::NeedsOperator,
    ErrorCode::DeadlineExceeded,
    ErrorCode::InvalidRequest,
    ErrorCode::UnsupportedVersion,
    ErrorCode::Overloaded,
    ErrorCode::MinTtlUnreachable,
    ErrorCode::ShuttingDown,
    ErrorCode::UnknownRequest,
];

impl Sample {
    /// The frame as it goes over the socket.
    pub(crate) fn to_wire(&self) -> Vec<u8> {
        let mut wire = Vec::new();
        match self {
            Self::Request(frame) => tokend_protocol::encode(frame, &mut wire).unwrap(),
            Self::Reply(frame) => tokend_protocol::encode(frame, &mut wire).unwrap(),
        }
        wire
    }

    /// Reads a frame of the same direction.
    pub(crate) fn read_same_direction(&self, wire: &[u8]) -> Sample {
        match self {
            Self::Request(_) => Self::Request(tokend_protocol::decode(&wire[4..]).unwrap()),
            Self::Reply(_) => Self::Reply(tokend_protocol::decode(&wire[4..]).unwrap()),
        }
    }
}

/// Every sample with the name of its file.
pub(crate) fn all() -> Vec<(String, Sample)> {
    let requests = requests()
        .into_iter()
        .map(|(name, message)| (format!("request-{name}.bin"), Sample::Request(Frame { id: 1, message })));
    let replies = replies()
        .into_iter()
        .map(|(name, message)| (format!("reply-{name}.bin"), Sample::Reply(Frame { id: 1, message })));
    requests.chain(replies).collect()
}

/// Where the golden frame of that name lies.
pub(crate) fn golden_path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

pub(crate) fn name(text: &str) -> TokenName {
    text.parse().unwrap()
}

fn requests() -> Vec<(String, Request)> {
    let options = CallOptions { deadline_ms: 5000, min_ttl_ms: 30_000 };
    let supplied = vec![CallerHeader { name: "Requestor-ID".to_owned(), value: "np-42".to_owned() }];
    let variant = Variant {
        scope: vec!["aisp".to_owned()],
        resource: vec!["connectapi".to_owned()],
        audience: Vec::new(),
    };
    let as_configured = Variant::default;
    let omitted = vec!["X-Trace".to_owned()];
    let headers =
        HeadersRequest { name: name("wealth"), options, supplied, omitted, variant: as_configured() };
    let fingerprint = Fingerprint([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
    let reject = RejectRequest { name: name("psb"), fingerprint, deadline_ms: 250, variant: as_configured() };
    let refresh = RefreshRequest {
        name: name("psb"),
        deadline_ms: 100_000,
        variant: Variant { scope: vec!["aisp".to_owned()], ..Variant::default() },
    };
    let narrow = Variant { scope: vec!["aisp".to_owned()], ..Variant::default() };
    let watched = [as_configured(), narrow].map(|variant| WatchedToken { name: name("psb"), variant });
    let watch = WatchRequest { tokens: watched.to_vec(), with_tokens: true };
    let samples = [
        ("0-get", Request::Get(GetRequest { name: name("psb"), options, variant })),
        ("1-headers", Request::Headers(headers)),
        ("2-list", Request::List(PageRequest { after: None })),
        ("3-status", Request::Status(StatusRequest { name: None, after: Some(name("psb")) })),
        ("3-status-of-one", Request::Status(StatusRequest { name: Some(name("psb")), after: None })),
        ("4-refresh", Request::Refresh(refresh)),
        ("5-reject", Request::Reject(reject)),
        ("6-watch", Request::Watch(watch)),
        ("7-version", Request::Version),
        ("8-explain-caller", Request::Explain(explain(Subject::Caller))),
        ("8-explain-user", Request::Explain(explain(Subject::User("billing".to_owned())))),
        ("8-explain-process", Request::Explain(explain(Subject::Process(4711)))),
        ("8-explain-unit", Request::Explain(explain(Subject::Unit("billing.service".to_owned())))),
    ];
    samples.into_iter().map(|(name, request)| (name.to_owned(), request)).collect()
}

fn explain(subject: Subject) -> ExplainRequest {
    ExplainRequest { name: name("psb"), variant: Variant::default(), subject }
}

fn explained() -> ExplainedReply {
    let condition = |condition: &str, holds, fact: &str| ExplainedCondition {
        condition: condition.to_owned(),
        holds,
        fact: fact.to_owned(),
    };
    let rule = |rule: &str, matches, conditions| ExplainedRule { rule: rule.to_owned(), matches, conditions };
    ExplainedReply {
        allowed: true,
        reason: "any".to_owned(),
        facts: SubjectFacts {
            uid: Some(1001),
            gid: Some(1001),
            groups: vec![27],
            pid: Some(4711),
            unit: Some("pay@eu.service".to_owned()),
            user_unit: None,
            invocation_id: None,
            exe: Some("/usr/bin/pay".to_owned()),
        },
        operator: None,
        lists: vec![ExplainedList {
            of: "token".to_owned(),
            rules: vec![
                rule("user:0", false, vec![condition("user:0", false, "the user is 1001")]),
                rule("any", true, Vec::new()),
            ],
        }],
        omitted: 0,
    }
}

fn replies() -> Vec<(String, Reply)> {
    let headers = vec![
        Header { name: "Authorization".to_owned(), value: secret("Bearer 2YotnFZFEjr1zCsicMWpAA") },
        Header { name: "Accept".to_owned(), value: secret("application/json") },
    ];
    let version = VersionReply { daemon: "0.1.0".to_owned(), oldest: 1, newest: 1, highest_request: 8 };
    let mut samples = vec![
        ("0-token".to_owned(), Reply::Token(token())),
        ("1-headers".to_owned(), Reply::Headers(HeadersReply { info: degraded(), headers })),
        ("2-list".to_owned(), Reply::List(every_state())),
        ("3-status".to_owned(), Reply::Status(status(vec![token_status()]))),
        ("3-status-every-class".to_owned(), Reply::Status(status(every_class()))),
        ("4-refreshed".to_owned(), Reply::Refreshed(RefreshedReply { info: fresh(), changed: true })),
        ("6-event".to_owned(), Reply::Event(event())),
        ("6-event-token".to_owned(), Reply::Event(EventReply { index: 1, token: Some(token()), ..event() })),
        ("7-version".to_owned(), Reply::Version(version)),
        ("8-error".to_owned(), Reply::Error(error())),
        ("9-explained".to_owned(), Reply::Explained(explained())),
    ];
    samples.extend(OUTCOMES.map(|outcome| {
        let reply = RejectedReply { outcome, info: fresh() };
        (format!("5-rejected-{}", kebab(&format!("{outcome:?}"))), Reply::Rejected(reply))
    }));
    samples.extend(CODES.map(|code| {
        let reply =
            ErrorReply { code, message: String::new(), class: None, next_attempt: None, best_ttl_ms: None };
        (format!("8-error-{}", kebab(&format!("{code:?}"))), Reply::Error(reply))
    }));
    samples
}

/// 2025-11-24T16:00:00Z and so many seconds.
fn at(seconds: u64) -> Timestamp {
    Timestamp((1_764_000_000 + seconds) * 1000)
}

fn secret(text: &str) -> Secret {
    Secret::from(text.to_owned())
}

fn token() -> TokenReply {
    TokenReply {
        info: fresh(),
        token: secret("2YotnFZFEjr1zCsicMWpAA"),
        token_type: "Bearer".to_owned(),
        scope: Some("aisp pisp".to_owned()),
    }
}

fn fresh() -> TokenInfo {
    TokenInfo {
        issued_at: BootInstant(86_400_000),
        expires_at: BootInstant(90_000_000),
        expires_at_wall: at(3600),
        state: State::Fresh,
        last_error: None,
        next_attempt: Some(at(2880)),
        fingerprint: Fingerprint([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]),
    }
}

fn degraded() -> TokenInfo {
    TokenInfo { state: State::Degraded, last_error: Some(ErrorClass::Server), ..fresh() }
}

fn every_state() -> ListReply {
    let entry = |state: State| ListEntry { name: name(state.as_str()), state };
    ListReply { tokens: STATES.map(entry).to_vec(), more: true }
}

fn status(tokens: Vec<TokenStatus>) -> StatusReply {
    let daemon = DaemonStatus {
        version: "0.1.0".to_owned(),
        pid: 4711,
        started_at: at(0),
        connections: 2,
        reload_failed_at: None,
        attributes: vec![attribute("clock-set", "2 times")],
        counts: vec![Count { name: "resident-bytes".to_owned(), value: 4_194_304 }],
    };
    StatusReply { daemon, tokens, more: false }
}

fn token_status() -> TokenStatus {
    let message = "the provider answered 503".to_owned();
    TokenStatus {
        name: name("bnp-aisp"),
        provider: "bnp".to_owned(),
        state: State::Degraded,
        held: Some(held()),
        last_error: Some(LastError { class: ErrorClass::Server, message, at: at(2880) }),
        failures: 1,
        next_attempt: Some(at(2890)),
        requests: 2,
        hand_outs: 70_000,
        deviations: vec![Deviation { kind: "expires_in-string".to_owned(), count: 1 }],
        attributes: vec![attribute("client-secret", "expires in 6 days"), attribute("clock-skew", "-3s")],
        counts: vec![
            Count { name: "failed-server".to_owned(), value: 3 },
            Count { name: "waiting".to_owned(), value: 1 },
        ],
        variants_held: 1,
        variants: vec![VariantStatus {
            variant: Variant { scope: vec!["aisp".to_owned()], ..Variant::default() },
            state: State::Fresh,
            held: Some(held()),
            last_error: None,
            next_attempt: Some(at(2880)),
        }],
    }
}

fn attribute(name: &str, value: &str) -> Attribute {
    Attribute { name: name.to_owned(), value: value.to_owned() }
}

/// One token per class, each else as bare as can be.
fn every_class() -> Vec<TokenStatus> {
    let bare = |class: ErrorClass| TokenStatus {
        name: name(class.as_str()),
        provider: "p".to_owned(),
        state: State::Unavailable,
        held: None,
        last_error: Some(LastError { class, message: String::new(), at: at(0) }),
        failures: 1,
        next_attempt: None,
        requests: 1,
        hand_outs: 0,
        deviations: Vec::new(),
        attributes: Vec::new(),
        counts: Vec::new(),
        variants_held: 0,
        variants: Vec::new(),
    };
    CLASSES.map(bare).to_vec()
}

fn held() -> HeldToken {
    let TokenInfo { issued_at, expires_at, expires_at_wall, fingerprint, .. } = fresh();
    HeldToken { issued_at, expires_at, expires_at_wall, fingerprint }
}

fn event() -> EventReply {
    EventReply {
        index: 0,
        name: name("psb"),
        state: State::Fresh,
        held: Some(held()),
        last_error: None,
        next_attempt: Some(at(2880)),
        token: None,
    }
}

fn error() -> ErrorReply {
    ErrorReply {
        code: ErrorCode::MinTtlUnreachable,
        message: "no token lasts that long".to_owned(),
        class: Some(ErrorClass::Throttled),
        next_attempt: Some(at(30)),
        best_ttl_ms: Some(60_000),
    }
}

/// `TooSoon` as `too-soon`.
fn kebab(camel: &str) -> String {
    let mut text = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

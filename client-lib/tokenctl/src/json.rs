//! The shapes of `--json`, as `JSON.md` documents them. They are separate from the types of the wire, so that
//! a change of one does not change the other. Fields are only added.

#![expect(clippy::struct_field_names, reason = "the names are those of the documented shapes")]

mod explanation;

use serde::Serialize;
use tokend_client::{
    ErrorClass, EventReply, HeadersReply, HeldToken, ListEntry, PROTOCOL_VERSION, RefreshedReply,
    RejectOutcome, RejectedReply, State, Timestamp, TokenInfo, TokenName, TokenReply, VersionReply,
};

use tokend_protocol::documents::{self, Held};

pub(crate) use self::explanation::explanation;
use crate::human::{clean, rfc3339};

#[derive(Serialize)]
pub(crate) struct Token<'a> {
    name: &'a str,
    token: &'a str,
    token_type: &'a str,
    scope: Option<&'a str>,
    #[serde(flatten)]
    info: Info,
}

#[derive(Serialize)]
pub(crate) struct Headers<'a> {
    name: &'a str,
    headers: Vec<Header<'a>>,
    #[serde(flatten)]
    info: Info,
}

#[derive(Serialize)]
struct Header<'a> {
    name: &'a str,
    value: &'a str,
}

#[derive(Serialize)]
struct Info {
    #[serde(flatten)]
    held: Held,
    state: &'static str,
    last_error: Option<&'static str>,
    next_attempt: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct List<'a> {
    tokens: Vec<Listed<'a>>,
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    state: &'static str,
}

#[derive(Serialize)]
pub(crate) struct Refreshed<'a> {
    name: &'a str,
    changed: bool,
    #[serde(flatten)]
    info: Info,
}

#[derive(Serialize)]
pub(crate) struct Rejected<'a> {
    name: &'a str,
    outcome: &'static str,
    #[serde(flatten)]
    info: Info,
}

#[derive(Serialize)]
pub(crate) struct Event<'a> {
    name: &'a str,
    state: &'static str,
    held: Option<Held>,
    last_error: Option<&'static str>,
    next_attempt: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct Versions {
    tokenctl: &'static str,
    daemon: Option<String>,
    protocol: Protocol,
}

#[derive(Serialize)]
struct Protocol {
    tokenctl: u8,
    daemon_oldest: Option<u8>,
    daemon_newest: Option<u8>,
    daemon_highest_request: Option<u32>,
}

#[derive(Serialize)]
pub(crate) struct Failures<'a> {
    pub(crate) error: Failure<'a>,
}

#[derive(Serialize)]
pub(crate) struct Failure<'a> {
    pub(crate) code: &'static str,
    pub(crate) message: &'a str,
    pub(crate) exit_status: u8,
    pub(crate) class: Option<&'static str>,
    pub(crate) next_attempt: Option<String>,
    pub(crate) best_ttl: Option<u64>,
}

/// The text of an object, on one line.
pub(crate) fn line(shape: &impl Serialize) -> String {
    // Strings, numbers and structs of them can always be written as JSON.
    let mut text = serde_json::to_string(shape).unwrap_or_default();
    text.push('\n');
    text
}

pub(crate) fn token<'a>(name: &'a TokenName, reply: &'a TokenReply) -> Token<'a> {
    Token {
        name: name.as_str(),
        token: reply.token.expose(),
        token_type: &reply.token_type,
        scope: reply.scope.as_deref(),
        info: info(&reply.info),
    }
}

pub(crate) fn headers<'a>(name: &'a TokenName, reply: &'a HeadersReply) -> Headers<'a> {
    let header =
        |header: &'a tokend_client::Header| Header { name: &header.name, value: header.value.expose() };
    Headers {
        name: name.as_str(),
        headers: reply.headers.iter().map(header).collect(),
        info: info(&reply.info),
    }
}

pub(crate) fn list(entries: &[ListEntry]) -> List<'_> {
    let listed = |entry: &ListEntry| entry.state.as_str();
    List {
        tokens: entries
            .iter()
            .map(|entry| Listed { name: entry.name.as_str(), state: listed(entry) })
            .collect(),
    }
}

pub(crate) fn refreshed<'a>(name: &'a TokenName, reply: &RefreshedReply) -> Refreshed<'a> {
    Refreshed { name: name.as_str(), changed: reply.changed, info: info(&reply.info) }
}

pub(crate) fn rejected<'a>(name: &'a TokenName, reply: &RejectedReply) -> Rejected<'a> {
    let outcome = match reply.outcome {
        RejectOutcome::Replaced => "replaced",
        RejectOutcome::Superseded => "superseded",
        RejectOutcome::Unchanged => "unchanged",
        RejectOutcome::TooSoon => "too-soon",
    };
    Rejected { name: name.as_str(), outcome, info: info(&reply.info) }
}

pub(crate) fn event(event: &EventReply) -> Event<'_> {
    Event {
        name: event.name.as_str(),
        state: event.state.as_str(),
        held: event.held.map(held),
        last_error: event.last_error.map(ErrorClass::as_str),
        next_attempt: event.next_attempt.map(time),
    }
}

/// The versions, without the daemon's where there is none.
pub(crate) fn versions(reply: Option<&VersionReply>) -> Versions {
    Versions {
        tokenctl: env!("CARGO_PKG_VERSION"),
        daemon: reply.map(|reply| clean(&reply.daemon)),
        protocol: Protocol {
            tokenctl: PROTOCOL_VERSION,
            daemon_oldest: reply.map(|reply| reply.oldest),
            daemon_newest: reply.map(|reply| reply.newest),
            daemon_highest_request: reply.map(|reply| reply.highest_request),
        },
    }
}

fn info(info: &TokenInfo) -> Info {
    let TokenInfo { issued_at, expires_at, expires_at_wall, state, last_error, next_attempt, fingerprint } =
        *info;
    Info {
        held: held(HeldToken { issued_at, expires_at, expires_at_wall, fingerprint }),
        state: State::as_str(state),
        last_error: last_error.map(ErrorClass::as_str),
        next_attempt: next_attempt.map(time),
    }
}

fn held(token: HeldToken) -> Held {
    documents::held(token, tokend_client::now())
}

fn time(timestamp: Timestamp) -> String {
    rfc3339(timestamp.to_system_time())
}

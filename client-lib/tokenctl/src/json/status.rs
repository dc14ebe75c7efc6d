//! The condition of daemon and tokens.

use std::collections::BTreeMap;

use serde::Serialize;
use tokend_client::{Attribute, DaemonStatus, Deviation, LastError, Status, TokenStatus};

use super::{Held, held, time};
use crate::human::clean;

#[derive(Serialize)]
pub(crate) struct Conditions<'a> {
    daemon: Daemon,
    tokens: Vec<Condition<'a>>,
}

#[derive(Serialize)]
struct Daemon {
    version: String,
    pid: u32,
    started_at: String,
    connections: u32,
    reload_failed_at: Option<String>,
    attributes: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Condition<'a> {
    name: &'a str,
    provider: String,
    state: &'static str,
    held: Option<Held>,
    last_error: Option<Failed>,
    failures: u32,
    next_attempt: Option<String>,
    requests: u64,
    hand_outs: u64,
    deviations: Vec<Departure>,
    attributes: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Failed {
    class: &'static str,
    message: String,
    at: String,
}

#[derive(Serialize)]
struct Departure {
    kind: String,
    count: u64,
}

pub(crate) fn status(status: &Status) -> Conditions<'_> {
    Conditions { daemon: daemon(&status.daemon), tokens: status.tokens.iter().map(condition).collect() }
}

fn daemon(status: &DaemonStatus) -> Daemon {
    Daemon {
        version: clean(&status.version),
        pid: status.pid,
        started_at: time(status.started_at),
        connections: status.connections,
        reload_failed_at: status.reload_failed_at.map(time),
        attributes: attributes(&status.attributes),
    }
}

fn condition(token: &TokenStatus) -> Condition<'_> {
    Condition {
        name: token.name.as_str(),
        provider: clean(&token.provider),
        state: token.state.as_str(),
        held: token.held.map(held),
        last_error: token.last_error.as_ref().map(failed),
        failures: token.failures,
        next_attempt: token.next_attempt.map(time),
        requests: token.requests,
        hand_outs: token.hand_outs,
        deviations: token.deviations.iter().map(departure).collect(),
        attributes: attributes(&token.attributes),
    }
}

fn failed(error: &LastError) -> Failed {
    Failed { class: error.class.as_str(), message: clean(&error.message), at: time(error.at) }
}

fn departure(deviation: &Deviation) -> Departure {
    Departure { kind: clean(&deviation.kind), count: deviation.count }
}

fn attributes(attributes: &[Attribute]) -> BTreeMap<String, String> {
    attributes.iter().map(|attribute| (clean(&attribute.name), clean(&attribute.value))).collect()
}

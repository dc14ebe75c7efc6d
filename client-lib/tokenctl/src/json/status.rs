//! The shape of `status`.

use std::collections::BTreeMap;

use serde::Serialize;
use tokend_client::{
    Attribute, DaemonStatus, Deviation, ErrorClass, LastError, Status, TokenStatus, VariantStatus,
};

use super::{Held, held, time};
use crate::human::clean;

#[derive(Serialize)]
pub(crate) struct Everything<'a> {
    daemon: Daemon,
    tokens: Vec<OneToken<'a>>,
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
pub(crate) struct OneToken<'a> {
    name: &'a str,
    provider: String,
    state: &'static str,
    held: Option<Held>,
    last_error: Option<Failed>,
    failures: u32,
    next_attempt: Option<String>,
    requests: u64,
    hand_outs: u64,
    deviations: Vec<DeviationCount>,
    attributes: BTreeMap<String, String>,
    variants_held: u32,
    variants: Vec<OneVariant<'a>>,
}

#[derive(Serialize)]
struct OneVariant<'a> {
    scope: &'a [String],
    resource: &'a [String],
    audience: &'a [String],
    state: &'static str,
    held: Option<Held>,
    last_error: Option<&'static str>,
    next_attempt: Option<String>,
}

#[derive(Serialize)]
struct Failed {
    class: &'static str,
    message: String,
    at: String,
}

#[derive(Serialize)]
struct DeviationCount {
    kind: String,
    count: u64,
}

pub(crate) fn status(status: &Status) -> Everything<'_> {
    Everything { daemon: daemon(&status.daemon), tokens: status.tokens.iter().map(token_status).collect() }
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

pub(crate) fn token_status(token: &TokenStatus) -> OneToken<'_> {
    OneToken {
        name: token.name.as_str(),
        provider: clean(&token.provider),
        state: token.state.as_str(),
        held: token.held.map(held),
        last_error: token.last_error.as_ref().map(failed),
        failures: token.failures,
        next_attempt: token.next_attempt.map(time),
        requests: token.requests,
        hand_outs: token.hand_outs,
        deviations: token.deviations.iter().map(deviation_count).collect(),
        attributes: attributes(&token.attributes),
        variants_held: token.variants_held,
        variants: token.variants.iter().map(one_variant).collect(),
    }
}

fn one_variant(status: &VariantStatus) -> OneVariant<'_> {
    OneVariant {
        scope: &status.variant.scope,
        resource: &status.variant.resource,
        audience: &status.variant.audience,
        state: status.state.as_str(),
        held: status.held.map(held),
        last_error: status.last_error.map(ErrorClass::as_str),
        next_attempt: status.next_attempt.map(time),
    }
}

fn failed(error: &LastError) -> Failed {
    Failed { class: error.class.as_str(), message: clean(&error.message), at: time(error.at) }
}

fn deviation_count(deviation: &Deviation) -> DeviationCount {
    DeviationCount { kind: clean(&deviation.kind), count: deviation.count }
}

fn attributes(attributes: &[Attribute]) -> BTreeMap<String, String> {
    attributes.iter().map(|attribute| (clean(&attribute.name), clean(&attribute.value))).collect()
}

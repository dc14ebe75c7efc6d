//! The status as JSON, as `JSON.md` documents it. These shapes are separate from the types of the wire, so that a change of one
//! does not change the other. Fields are only added.

use std::collections::BTreeMap;

use super::{clean, rfc3339};
use crate::{
    Attribute, BootInstant, Count, DaemonStatus, Deviation, ErrorClass, HeldToken, LastError, Timestamp,
    TokenStatus, VariantStatus,
};
use serde::Serialize;

/// The daemon and some tokens.
#[derive(Debug, Serialize)]
pub struct Page<'a> {
    daemon: Daemon,
    tokens: Vec<TokenDocument<'a>>,
    /// Whether further tokens follow. Absent if the document always has all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Daemon {
    version: String,
    pid: u32,
    started_at: String,
    connections: u32,
    reload_failed_at: Option<String>,
    attributes: BTreeMap<String, String>,
    counts: BTreeMap<String, u64>,
}

/// One token.
#[derive(Debug, Serialize)]
pub struct TokenDocument<'a> {
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
    counts: BTreeMap<String, u64>,
    variants_held: u32,
    variants: Vec<OneVariant<'a>>,
}

/// A held token.
#[derive(Debug, Serialize)]
pub struct Held {
    expires_at: String,
    expires_in_seconds: u64,
    age_seconds: u64,
    issued_at_boot_ms: u64,
    expires_at_boot_ms: u64,
    fingerprint: String,
}

#[derive(Debug, Serialize)]
struct OneVariant<'a> {
    scope: &'a [String],
    resource: &'a [String],
    audience: &'a [String],
    state: &'static str,
    held: Option<Held>,
    last_error: Option<&'static str>,
    next_attempt: Option<String>,
}

#[derive(Debug, Serialize)]
struct Failed {
    class: &'static str,
    message: String,
    at: String,
}

#[derive(Debug, Serialize)]
struct DeviationCount {
    kind: String,
    count: u64,
}

/// The daemon and these tokens. `more`: whether further tokens follow; `None` for a document that always has all of them.
pub fn page<'a>(
    status: &DaemonStatus,
    tokens: &'a [TokenStatus],
    more: Option<bool>,
    now: BootInstant,
) -> Page<'a> {
    Page { daemon: daemon(status), tokens: tokens.iter().map(|status| token(status, now)).collect(), more }
}

fn daemon(status: &DaemonStatus) -> Daemon {
    Daemon {
        version: clean(&status.version),
        pid: status.pid,
        started_at: time(status.started_at),
        connections: status.connections,
        reload_failed_at: status.reload_failed_at.map(time),
        attributes: attributes(&status.attributes),
        counts: counts(&status.counts),
    }
}

/// One token.
pub fn token(token: &TokenStatus, now: BootInstant) -> TokenDocument<'_> {
    TokenDocument {
        name: token.name.as_str(),
        provider: clean(&token.provider),
        state: token.state.as_str(),
        held: token.held.map(|token| held(token, now)),
        last_error: token.last_error.as_ref().map(failed),
        failures: token.failures,
        next_attempt: token.next_attempt.map(time),
        requests: token.requests,
        hand_outs: token.hand_outs,
        deviations: token.deviations.iter().map(deviation_count).collect(),
        attributes: attributes(&token.attributes),
        counts: counts(&token.counts),
        variants_held: token.variants_held,
        variants: token.variants.iter().map(|variant| one_variant(variant, now)).collect(),
    }
}

fn one_variant(status: &VariantStatus, now: BootInstant) -> OneVariant<'_> {
    OneVariant {
        scope: &status.variant.scope,
        resource: &status.variant.resource,
        audience: &status.variant.audience,
        state: status.state.as_str(),
        held: status.held.map(|token| held(token, now)),
        last_error: status.last_error.map(ErrorClass::as_str),
        next_attempt: status.next_attempt.map(time),
    }
}

/// A held token, as it is now.
pub fn held(token: HeldToken, now: BootInstant) -> Held {
    Held {
        expires_at: time(token.expires_at_wall),
        expires_in_seconds: token.remaining(now).as_secs(),
        age_seconds: token.age(now).as_secs(),
        issued_at_boot_ms: token.issued_at.0,
        expires_at_boot_ms: token.expires_at.0,
        fingerprint: token.fingerprint.to_string(),
    }
}

fn time(timestamp: Timestamp) -> String {
    rfc3339(timestamp.to_system_time())
}

fn failed(error: &LastError) -> Failed {
    Failed { class: error.class.as_str(), message: clean(&error.message), at: time(error.at) }
}

fn deviation_count(deviation: &Deviation) -> DeviationCount {
    DeviationCount { kind: clean(&deviation.kind), count: deviation.count }
}

fn counts(counts: &[Count]) -> BTreeMap<String, u64> {
    counts.iter().map(|count| (clean(&count.name), count.value)).collect()
}

fn attributes(attributes: &[Attribute]) -> BTreeMap<String, String> {
    attributes.iter().map(|attribute| (clean(&attribute.name), clean(&attribute.value))).collect()
}

//! Turns conditions of tokens and of the daemon into the types of the protocol.
//!
//! Only operators may know a provider's description, the paths of files, and the process. `is_operator` says for whom a
//! reply is.

use std::fs;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};
use tokend_protocol::{
    Attribute, Count, DaemonStatus, Deviation, ErrorClass, EventReply, HeldToken, LastError, State,
    Timestamp, TokenInfo, TokenName, TokenReply, TokenStatus, VariantStatus,
};

use crate::clock::Clock;
use crate::engine::credential::{Failed, Snapshot, Token};
use crate::engine::registry::Entry;
use crate::server::ServerState;

/// The text of a failure. Only operators get the details. If a secret cannot be read, other callers are told that an
/// operator must act.
pub(super) fn message(failed: &Failed, is_operator: bool) -> String {
    match (&failed.detail, failed.class) {
        (Some(detail), _) if is_operator => format!("{}: {detail}", failed.message),
        (_, ErrorClass::Secret) if !is_operator => {
            format!("{}; an operator of this host has to make it readable", failed.message)
        }
        _ => failed.message.to_string(),
    }
}

/// The part of a snapshot that every caller may see: the state, the token while it is valid, the last error, and the next attempt.
fn condition(
    snapshot: &Snapshot,
    clock: &Clock,
) -> (State, Option<HeldToken>, Option<ErrorClass>, Option<Timestamp>) {
    let now = clock.now();
    let held = snapshot.usable(now, Duration::ZERO).map(|token| held_token(&token, clock));
    let last_error = snapshot.last_error.as_ref().map(|failed| failed.class);
    (snapshot.state(now), held, last_error, snapshot.next_attempt.map(|at| clock.timestamp(at)))
}

fn held_token(token: &Token, clock: &Clock) -> HeldToken {
    let expires_at = token.validity.expires_at();
    HeldToken {
        issued_at: token.validity.sent_at.to_wire(),
        expires_at: expires_at.to_wire(),
        expires_at_wall: clock.timestamp(expires_at),
        fingerprint: token.fingerprint,
    }
}

/// A token for a caller that may have it.
pub(super) fn token_reply(token: &Token, info: TokenInfo) -> TokenReply {
    TokenReply {
        info,
        token: token.secret.clone(),
        token_type: "Bearer".to_owned(),
        scope: token.scope.as_deref().map(str::to_owned),
    }
}

pub(super) fn token_info(token: &Token, snapshot: &Snapshot, clock: &Clock) -> TokenInfo {
    let HeldToken { issued_at, expires_at, expires_at_wall, fingerprint } = held_token(token, clock);
    let (state, _, last_error, next_attempt) = condition(snapshot, clock);
    TokenInfo { issued_at, expires_at, expires_at_wall, state, last_error, next_attempt, fingerprint }
}

/// The condition of the token at this place in a watch, without the token.
pub(super) fn event(index: usize, name: TokenName, snapshot: &Snapshot, clock: &Clock) -> EventReply {
    let (state, held, last_error, next_attempt) = condition(snapshot, clock);
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    EventReply { index, name, state, held, last_error, next_attempt, token: None }
}

pub(super) fn token_status(
    name: TokenName,
    entry: &Entry,
    clock: &Clock,
    is_operator: bool,
    is_only_token: bool,
) -> TokenStatus {
    let snapshot = entry.credential.snapshot();
    let (state, held, ..) = condition(&snapshot, clock);
    let mut variants = Vec::new();
    if let Some(held) = entry.variants.as_ref().filter(|_| is_operator) {
        variants.extend(held.snapshots().into_iter().map(|(variant, snapshot)| {
            let (state, held, last_error, next_attempt) = condition(&snapshot, clock);
            VariantStatus { variant, state, held, last_error, next_attempt }
        }));
    }
    let variants_held = variants.iter().filter(|variant| variant.held.is_some()).count();
    TokenStatus {
        name,
        provider: entry.settings.provider.to_string(),
        state,
        held,
        last_error: snapshot.last_error.as_ref().map(|failed| LastError {
            class: failed.class,
            message: message(failed, is_operator),
            at: clock.timestamp(failed.at),
        }),
        failures: snapshot.failures,
        next_attempt: entry.credential.next_attempt().map(|at| clock.timestamp(at)),
        requests: snapshot.requests.into(),
        hand_outs: entry.hand_outs(),
        deviations: snapshot
            .deviations
            .iter()
            .map(|(deviation, count)| Deviation { kind: (*deviation).to_owned(), count: *count })
            .collect(),
        attributes: if is_operator { attributes(&snapshot, is_only_token) } else { Vec::new() },
        counts: if is_operator { counts(&snapshot, entry) } else { Vec::new() },
        variants_held: u32::try_from(variants_held).unwrap_or(u32::MAX),
        variants: if is_only_token { variants } else { Vec::new() },
    }
}

/// Further facts that an operator may act on, sorted by name. Those about the last request only with `status NAME`, because
/// they are long.
fn attributes(snapshot: &Snapshot, is_only_token: bool) -> Vec<Attribute> {
    let later_secret = snapshot.client_secret.filter(|secret| secret.index > 0);
    let later_secret = later_secret.map(|secret| attribute("client-secret", secret.to_string()));
    let skew = snapshot.clock_skew.and_then(clock_skew).map(|skew| attribute("clock-skew", skew));
    let facts = snapshot.facts.iter().filter(|_| is_only_token);
    let facts = facts.map(|(name, value)| attribute(name, value.to_string()));
    let mut attributes: Vec<_> = facts.chain(later_secret).chain(skew).collect();
    attributes.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    attributes
}

/// Numbers about the token, sorted by name, without those that are 0.
fn counts(snapshot: &Snapshot, entry: &Entry) -> Vec<Count> {
    let failed = snapshot.failed.iter().map(|(class, times)| (format!("failed-{}", class.as_str()), *times));
    let others = [("refused", entry.refusals()), ("waiting", entry.credential.waiting())];
    let others = others.map(|(name, value)| (name.to_owned(), value));
    let counts = failed.chain(others).filter(|(_, value)| *value > 0);
    let mut counts: Vec<Count> = counts.map(|(name, value)| Count { name, value }).collect();
    counts.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    counts
}

/// The sentence about a provider's clock, unless the rounding of `Date` and network latency can explain the difference.
fn clock_skew(seconds_ahead: i64) -> Option<String> {
    let direction = if seconds_ahead < 0 { "behind" } else { "ahead of" };
    let seconds = seconds_ahead.unsigned_abs();
    (seconds > 5).then(|| format!("the provider's clock is {seconds} s {direction} this host's"))
}

fn attribute(name: &str, value: String) -> Attribute {
    Attribute { name: name.to_owned(), value }
}

pub(super) fn daemon_status(shared: &ServerState, is_operator: bool) -> DaemonStatus {
    let mut status = DaemonStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: 0,
        started_at: shared.started_at,
        connections: 0,
        reload_failed_at: None,
        attributes: Vec::new(),
        counts: Vec::new(),
    };
    if is_operator {
        status.pid = std::process::id();
        status.connections = u32::try_from(shared.connections.len()).unwrap_or(u32::MAX);
        status.reload_failed_at = *shared.reload_failed_at.borrow();
        let mut facts = shared.store.facts();
        facts.push(("memory", shared.memory.clone()));
        facts.sort_unstable();
        status.attributes = facts.into_iter().map(|(name, value)| attribute(name, value)).collect();
        let resident = resident_bytes().map(|value| Count { name: "resident-bytes".to_owned(), value });
        status.counts = resident.into_iter().collect();
    }
    status
}

/// The resident memory of this process, by the second number in `/proc/self/statm` (`proc_pid_statm(5)`).
fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::clock_skew;

    #[test]
    fn a_clock_skew_is_shown_with_its_direction_once_the_way_does_not_explain_it() {
        assert_eq!([clock_skew(-5), clock_skew(5)], [None, None]);
        assert!(clock_skew(-6).is_some());
        assert_eq!(clock_skew(-90).unwrap(), "the provider's clock is 90 s behind this host's");
        assert_eq!(clock_skew(3600).unwrap(), "the provider's clock is 3600 s ahead of this host's");
    }
}

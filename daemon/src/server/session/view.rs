//! Turns conditions of tokens and of the daemon into the types of the protocol.

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{
    Attribute, DaemonStatus, Deviation, ErrorClass, EventReply, HeldToken, LastError, TokenInfo, TokenName,
    TokenStatus, Variant, VariantStatus,
};

use crate::clock::Clock;
use crate::engine::credential::{Failed, Snapshot, Token};
use crate::engine::registry::Entry;
use crate::server::server_state::ServerState;

/// How much a reply says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// What a caller can act on.
    ForCallers,
    /// Also what only operators may know: a provider's description, the paths of files, the process.
    Full,
}

/// The text of a failure. Only operators get `more`. Others read that an operator has to act, if only that helps.
pub(super) fn with_detail(message: &str, more: Option<&str>, class: ErrorClass, detail: Detail) -> String {
    match (more, detail, class) {
        (Some(more), Detail::Full, _) => format!("{message}: {more}"),
        (_, Detail::ForCallers, ErrorClass::Secret) => {
            format!("{message}; an operator of this host has to make it readable")
        }
        _ => message.to_owned(),
    }
}

pub(super) fn token_info(token: &Token, snapshot: &Snapshot, clock: &Clock) -> TokenInfo {
    let held = held_token(token, clock);
    TokenInfo {
        issued_at: held.issued_at,
        expires_at: held.expires_at,
        expires_at_wall: held.expires_at_wall,
        state: snapshot.state(clock.now()),
        last_error: error_class(snapshot),
        next_attempt: snapshot.next_attempt.map(|at| clock.timestamp(at)),
        fingerprint: held.fingerprint,
    }
}

pub(super) fn token_status(
    name: TokenName,
    entry: &Entry,
    clock: &Clock,
    detail: Detail,
    is_only_token: bool,
) -> TokenStatus {
    let snapshot = entry.credential.snapshot();
    let variants: Vec<_> = match detail {
        Detail::ForCallers => Vec::new(),
        Detail::Full => {
            let told =
                |(variant, snapshot): (Variant, Arc<Snapshot>)| variant_status(variant, &snapshot, clock);
            entry.variants.snapshots().into_iter().map(told).collect()
        }
    };
    let variants_held = variants.iter().filter(|variant| variant.held.is_some()).count();
    TokenStatus {
        name,
        provider: entry.settings.provider.to_string(),
        state: snapshot.state(clock.now()),
        held: held(&snapshot, clock),
        last_error: snapshot.last_error.as_ref().map(|failed| last_error(failed, clock, detail)),
        failures: snapshot.failures,
        next_attempt: snapshot.next_attempt.map(|at| clock.timestamp(at)),
        requests: snapshot.requests,
        hand_outs: entry.hand_outs(),
        deviations: snapshot
            .deviations
            .iter()
            .map(|(deviation, count)| Deviation { kind: (*deviation).to_owned(), count: *count })
            .collect(),
        attributes: match detail {
            Detail::ForCallers => Vec::new(),
            Detail::Full => attributes(&snapshot),
        },
        variants_held: u32::try_from(variants_held).unwrap_or(u32::MAX),
        variants: if is_only_token { variants } else { Vec::new() },
    }
}

fn variant_status(variant: Variant, snapshot: &Snapshot, clock: &Clock) -> VariantStatus {
    VariantStatus {
        variant,
        state: snapshot.state(clock.now()),
        held: held(snapshot, clock),
        last_error: error_class(snapshot),
        next_attempt: snapshot.next_attempt.map(|at| clock.timestamp(at)),
    }
}

/// Further facts that an operator may act on, sorted by name.
fn attributes(snapshot: &Snapshot) -> Vec<Attribute> {
    let later_secret = snapshot.client_secret.filter(|secret| secret.index > 0);
    let told = [
        ("client-secret", later_secret.map(|secret| secret.to_string())),
        ("clock-skew", snapshot.clock_skew.and_then(clock_skew)),
    ];
    let attribute =
        |(name, value): (&str, Option<String>)| Some(Attribute { name: name.to_owned(), value: value? });
    told.into_iter().filter_map(attribute).collect()
}

/// The sentence about a provider's clock, unless the rounding of `Date` and network latency can explain the difference.
fn clock_skew(seconds_ahead: i64) -> Option<String> {
    let direction = if seconds_ahead < 0 { "behind" } else { "ahead of" };
    let seconds = seconds_ahead.unsigned_abs();
    (seconds > 5).then(|| format!("the provider's clock is {seconds} s {direction} this host's"))
}

pub(super) fn event(name: TokenName, snapshot: &Snapshot, clock: &Clock) -> EventReply {
    EventReply {
        name,
        state: snapshot.state(clock.now()),
        held: held(snapshot, clock),
        last_error: error_class(snapshot),
        next_attempt: snapshot.next_attempt.map(|at| clock.timestamp(at)),
    }
}

/// The status of the daemon. Its process, its connections and a failed reload are for operators only.
pub(super) fn daemon_status(shared: &ServerState, detail: Detail) -> DaemonStatus {
    let (pid, connections, reload_failed_at) = match detail {
        Detail::ForCallers => (0, 0, None),
        Detail::Full => {
            let connections = u32::try_from(shared.connections.len()).unwrap_or(u32::MAX);
            (std::process::id(), connections, *shared.reload_failed_at.borrow())
        }
    };
    DaemonStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid,
        started_at: shared.started_at,
        connections,
        reload_failed_at,
        attributes: match detail {
            Detail::ForCallers => Vec::new(),
            Detail::Full => {
                let memory = ("memory", shared.memory.clone());
                let mut facts: Vec<_> = shared.store.facts().into_iter().chain([memory]).collect();
                facts.sort_unstable();
                facts.into_iter().map(attribute).collect()
            }
        },
    }
}

fn attribute((name, value): (&'static str, String)) -> Attribute {
    Attribute { name: name.to_owned(), value }
}

fn held(snapshot: &Snapshot, clock: &Clock) -> Option<HeldToken> {
    snapshot.usable(clock.now(), Duration::ZERO).map(|token| held_token(&token, clock))
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

fn error_class(snapshot: &Snapshot) -> Option<ErrorClass> {
    snapshot.last_error.as_ref().map(|failed| failed.class)
}

fn last_error(failed: &Failed, clock: &Clock, detail: Detail) -> LastError {
    let message = with_detail(&failed.message, failed.detail.as_deref(), failed.class, detail);
    LastError { class: failed.class, message, at: clock.timestamp(failed.at) }
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

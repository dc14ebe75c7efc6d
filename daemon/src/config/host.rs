//! `[daemon]` and `[admin]`.

use std::path::PathBuf;

use super::section::Section;
use super::{AdminSettings, DaemonSettings, rules, values};
use crate::access::{RootAccess, Rule};
use crate::quota::Quota;

/// More connections need more file descriptors than a service usually has.
const CONNECTIONS_MAX: usize = 100_000;

/// A higher limit would limit nothing.
const QUOTA_MAX: usize = 1_000_000_000;

/// A higher rate would limit nothing.
const RATE_MAX: u32 = 1_000_000;

impl Default for DaemonSettings {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/tokend/tokend.sock"),
            socket_group: None,
            state_dir: PathBuf::from("/var/lib/tokend"),
            state_key: None,
            egress_dir: None,
            max_connections: 4096,
            max_connections_per_uid: 1024,
            quota: Quota::default(),
        }
    }
}

/// Reads `[daemon]`.
pub(super) fn daemon(section: &Section<'_>) -> DaemonSettings {
    let default = DaemonSettings::default();
    let count = |key, max| section.read(key, |field| values::count(field, 1..=max));
    let quota = |key, default| count(key, QUOTA_MAX).unwrap_or(default);
    let rate =
        |key, default| section.read(key, |field| values::count(field, 1..=RATE_MAX)).unwrap_or(default);
    let connections = count("max_connections", CONNECTIONS_MAX);
    let max_connections = connections.unwrap_or(default.max_connections);
    let per_uid = count("max_connections_per_uid", CONNECTIONS_MAX);
    let is_faulty = connections.is_none() && section.has("max_connections");
    if per_uid.is_some_and(|per_uid| per_uid > max_connections) && !is_faulty {
        let message =
            format!("is more than max_connections ({max_connections}), so it would never apply; lower it");
        section.conflict::<()>("max_connections_per_uid", message);
    }
    DaemonSettings {
        socket: section.read("socket", values::socket_path).unwrap_or(default.socket),
        socket_group: section.read("socket_group", rules::group),
        state_dir: section.read("state_dir", values::path).unwrap_or(default.state_dir),
        state_key: section.read("state_key", values::secret_source),
        egress_dir: section.read("egress_dir", values::path),
        max_connections,
        max_connections_per_uid: per_uid.unwrap_or(default.max_connections_per_uid.min(max_connections)),
        quota: Quota {
            in_flight: quota("max_in_flight_per_uid", default.quota.in_flight),
            waiting: quota("max_waiting_per_uid", default.quota.waiting),
            watches: quota("max_watches_per_uid", default.quota.watches),
            watched_tokens: quota("max_watched_tokens_per_uid", default.quota.watched_tokens),
            unread_bytes: quota("max_unread_bytes_per_uid", default.quota.unread_bytes),
            variants: quota("max_variants_per_uid", default.quota.variants),
            provider_calls_per_minute: rate(
                "max_provider_calls_per_minute_per_uid",
                default.quota.provider_calls_per_minute,
            ),
            refusals_per_minute: rate("max_refusals_per_minute_per_uid", default.quota.refusals_per_minute),
        },
    }
}

/// Reads `[admin]`.
pub(super) fn admin(section: &Section<'_>) -> AdminSettings {
    let words = [("allow", RootAccess::Allow), ("deny", RootAccess::Deny)];
    let allow = section.read("allow", rules::list).unwrap_or_default();
    if allow.contains(&Rule::Any) {
        section.warn("allow", "\"any\" makes every process that reaches the socket an operator");
    }
    AdminSettings {
        allow,
        root: section.read("root", |field| values::word(field, &words)).unwrap_or_default(),
    }
}

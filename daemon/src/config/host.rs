//! `[daemon]` and `[admin]`.

use std::path::{Path, PathBuf};

use super::fault::Sink;
use super::files::Raw;
use super::section::Section;
use super::{AdminSettings, DaemonSettings, rules, secret, values};
use crate::access::{RootAccess, Rule};
use crate::quota::Quota;

/// The keys of `[daemon]`.
pub(super) const DAEMON_KEYS: &[&str] = &[
    "socket",
    "socket_group",
    "state_dir",
    "state_key",
    "egress_dir",
    "max_connections",
    "max_connections_per_uid",
    "max_in_flight_per_uid",
    "max_waiting_per_uid",
    "max_watches_per_uid",
    "max_watched_tokens_per_uid",
    "max_unread_bytes_per_uid",
    "max_variants_per_uid",
    "max_provider_calls_per_minute_per_uid",
    "max_refusals_per_minute_per_uid",
];

/// The keys of `[admin]`.
pub(super) const ADMIN_KEYS: &[&str] = &["allow", "root"];

/// More need more file descriptors than a service usually has.
const CONNECTIONS_MAX: usize = 100_000;

/// More of anything else would be no limit.
const QUOTA_MAX: usize = 1_000_000_000;

/// More in a minute would be none either.
const RATE_MAX: usize = 1_000_000;

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

/// Reads `[daemon]`. Faulty values are replaced by the defaults, which nobody sees. `egress_dir` of the command line
/// replaces that of the file.
pub(super) fn daemon(raw: Option<&Raw>, egress_dir: Option<&Path>, sink: &Sink) -> DaemonSettings {
    let egress_dir = egress_dir.map(|path| Some(path.to_owned()).filter(|path| !path.as_os_str().is_empty()));
    let default = DaemonSettings::default();
    let Some(raw) = raw else { return DaemonSettings { egress_dir: egress_dir.flatten(), ..default } };
    let section = Section::new("daemon".to_owned(), raw, DAEMON_KEYS, sink);
    let count = |key| section.read(key, |field| values::count(field, 1..=CONNECTIONS_MAX));
    let all = count("max_connections");
    let per_uid = count("max_connections_per_uid");
    let faulty = all.is_faulty();
    let all = all.into_value().unwrap_or(default.max_connections);
    if let Some(place) = per_uid.place().filter(|_| !faulty && per_uid.value().is_some_and(|one| *one > all))
    {
        let message = format!("is more than max_connections ({all}), so it would never apply; lower it");
        section.fault_at(place, "max_connections_per_uid", message);
    }
    DaemonSettings {
        socket: section.read("socket", values::socket_path).into_value().unwrap_or(default.socket),
        socket_group: section.read("socket_group", rules::group).into_value(),
        state_dir: section.read("state_dir", values::path).into_value().unwrap_or(default.state_dir),
        state_key: section.read("state_key", secret::source).into_value(),
        egress_dir: {
            let configured = section.read("egress_dir", values::path).into_value();
            egress_dir.unwrap_or(configured)
        },
        max_connections: all,
        max_connections_per_uid: per_uid.into_value().unwrap_or(default.max_connections_per_uid.min(all)),
        quota: quota(&section),
    }
}

/// What else one user may have.
fn quota(section: &Section<'_>) -> Quota {
    let default = Quota::default();
    let count = |key, default| {
        let read = section.read(key, |field| values::count(field, 1..=QUOTA_MAX));
        read.into_value().unwrap_or(default)
    };
    let rate = |key, default| {
        let read = section.read(key, |field| values::count(field, 1..=RATE_MAX));
        read.into_value().and_then(|count| u32::try_from(count).ok()).unwrap_or(default)
    };
    Quota {
        in_flight: count("max_in_flight_per_uid", default.in_flight),
        waiting: count("max_waiting_per_uid", default.waiting),
        watches: count("max_watches_per_uid", default.watches),
        watched_tokens: count("max_watched_tokens_per_uid", default.watched_tokens),
        unread_bytes: count("max_unread_bytes_per_uid", default.unread_bytes),
        variants: count("max_variants_per_uid", default.variants),
        provider_calls_per_minute: rate(
            "max_provider_calls_per_minute_per_uid",
            default.provider_calls_per_minute,
        ),
        refusals_per_minute: rate("max_refusals_per_minute_per_uid", default.refusals_per_minute),
    }
}

/// `[admin]`.
pub(super) fn admin(raw: Option<&Raw>, sink: &Sink) -> AdminSettings {
    let Some(raw) = raw else { return AdminSettings::default() };
    let section = Section::new("admin".to_owned(), raw, ADMIN_KEYS, sink);
    let words = [("allow", RootAccess::Allow), ("deny", RootAccess::Deny)];
    let allow = section.read("allow", rules::list);
    if let Some(place) =
        allow.place().filter(|_| allow.value().is_some_and(|rules| rules.contains(&Rule::Any)))
    {
        let message = "\"any\" makes every process that reaches the socket an operator";
        sink.warn(place, Some("admin.allow".to_owned()), message);
    }
    AdminSettings {
        allow: allow.into_value().unwrap_or_default(),
        root: section.read("root", |field| values::word(field, &words)).into_value().unwrap_or_default(),
    }
}

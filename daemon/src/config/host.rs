//! `[daemon]` and `[admin]`.

use super::section::{Field, Section};
use super::{AdminSettings, DaemonSettings, rules, values};
use crate::access::{RootAccess, Rule};
use crate::quota::Quota;

/// More connections need more file descriptors than a service usually has.
const CONNECTIONS_MAX: usize = 100_000;

/// Higher limits would limit nothing.
const QUOTA_MAX: usize = 1_000_000_000;
const RATE_MAX: u32 = 1_000_000;

pub(super) fn daemon(section: &Section<'_>) -> DaemonSettings {
    let mut quota = Quota::default();
    for (key, limit) in [
        ("max_in_flight_per_uid", &mut quota.in_flight),
        ("max_request_bytes_per_uid", &mut quota.request_bytes),
        ("max_waiting_per_uid", &mut quota.waiting),
        ("max_watches_per_uid", &mut quota.watches),
        ("max_watched_tokens_per_uid", &mut quota.watched_tokens),
        ("max_unread_bytes_per_uid", &mut quota.unread_bytes),
        ("max_variants_per_uid", &mut quota.variants),
    ] {
        *limit = section.read(key, values::count(1..=QUOTA_MAX)).unwrap_or(*limit);
    }
    let calls = section.read("max_provider_calls_per_minute_per_uid", values::count(1..=RATE_MAX));
    quota.provider_calls_per_minute = calls.unwrap_or(quota.provider_calls_per_minute);
    let count = values::count(1..=CONNECTIONS_MAX);
    let per_uid = section.read("max_connections_per_uid", &count);
    let max = section.read_or("max_connections", 4096, &count);
    if let (Some(per_uid), Some(max)) = (per_uid, max)
        && per_uid > max
    {
        let message = format!("is more than max_connections ({max}), so it would never apply; lower it");
        section.fault_if_complete::<()>("max_connections_per_uid", message);
    }
    let max_connections = max.unwrap_or_default();
    quota.connections = per_uid.unwrap_or(quota.connections.min(max_connections));
    let socket = section.read("socket", values::socket_path);
    let socket = socket.unwrap_or_else(|| "/run/tokend/tokend.sock".into());
    let http_socket = section.read("http_socket", values::socket_path);
    let credential_socket = section.read("credential_socket", values::socket_path);
    for (key, path, others) in [
        ("http_socket", &http_socket, [Some(&socket), None]),
        ("credential_socket", &credential_socket, [Some(&socket), http_socket.as_ref()]),
    ] {
        if path.is_some() && others.contains(&path.as_ref()) {
            section.fault_if_complete::<()>(key, "each socket needs a path of its own".to_owned());
        }
    }
    DaemonSettings {
        socket,
        http_socket,
        credential_socket,
        socket_group: section.read("socket_group", rules::group),
        state_dir: section.read("state_dir", values::path).unwrap_or_else(|| "/var/lib/tokend".into()),
        state_key: section.read("state_key", values::secret_source),
        egress_dir: section.read("egress_dir", values::path),
        max_connections,
        quota,
    }
}

pub(super) fn admin(section: &Section<'_>) -> AdminSettings {
    let allow = |field: &Field<'_>| {
        let rules = rules::list(field)?;
        if rules.contains(&Rule::ANY) {
            field.warn("\"any\" makes every process that reaches the socket an operator");
        }
        Some(rules)
    };
    let root = section.read("root", values::word(&["allow", "deny"]));
    AdminSettings {
        allow: section.read("allow", allow).unwrap_or_default(),
        root: if root == Some("deny") { RootAccess::Deny } else { RootAccess::Allow },
    }
}

//! Which start of a unit is the present one (systemd.exec(5), `INVOCATION_ID`).
//!
//! systemd keeps it for journald in a folder that only root writes to. It is the unit's: a process that outlived
//! its own invocation (`KillMode=`) is told the one that has begun since, as is its control group.

use std::fs;

/// How systemd writes an id.
const DIGITS: usize = 32;

/// The present invocation of a system unit.
pub(super) fn of(unit: &str) -> Option<String> {
    // A unit's name has no slash in it.
    let id = fs::read_link(format!("/run/systemd/units/invocation:{unit}")).ok()?.into_os_string();
    let id = id.into_string().ok()?;
    (id.len() == DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

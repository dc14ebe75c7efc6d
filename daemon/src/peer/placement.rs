//! Finds the units to which a path in the tree of control groups belongs. Pure.
//!
//! systemd makes a group for each unit, in groups for its slices, and only root can put one beside or above it.
//! So the first part of the path that is no slice is a system unit. That unit controls the groups below
//! it: a service with `Delegate=` and a user's own service manager make groups of any name there.

/// Suffixes of the units that processes run in.
const UNIT_SUFFIXES: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The longest name of a unit (systemd.unit(5)).
pub(super) const UNIT_NAME_MAX: usize = 255;

/// The system unit of a process, and the unit of its user's own service manager.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) unit: Option<String>,
    pub(super) user_unit: Option<String>,
}

impl Placement {
    /// Reads `/proc/PID/cgroup` of a process of the user `uid`. Only the unified hierarchy is systemd's word on every host
    /// (cgroups(7)); without it there is no placement.
    pub(super) fn read(text: &str, uid: u32) -> Option<Self> {
        text.lines().find_map(|line| line.strip_prefix("0::")).map(|path| Self::of(path, uid))
    }

    fn of(path: &str, uid: u32) -> Self {
        // A path that leads out of what this process sees of the tree names somebody else's units, and a group
        // that is gone names none.
        let leads_out = path.split('/').any(|part| part == "..");
        if !path.starts_with('/') || leads_out || path.ends_with(" (deleted)") {
            return Self::default();
        }
        // systemd puts `_` before a name that the kernel could take for a file of its own, such as `cpu.service`, and
        // before one that begins with `_`.
        let parts = path.split('/').filter(|part| !part.is_empty());
        let mut parts = parts.map(|part| part.strip_prefix('_').unwrap_or(part));
        // The next part that is no slice, if it is a unit.
        let mut next =
            || parts.find(|part| part.strip_suffix(".slice").is_none()).filter(|part| is_unit(part));
        let Some(unit) = next() else { return Self::default() };
        // A process in another user's manager has no user unit: that other user chose the unit's name.
        let user_unit = (unit == format!("user@{uid}.service")).then(next).flatten();
        Self { unit: Some(unit.to_owned()), user_unit: user_unit.map(ToOwned::to_owned) }
    }
}

fn is_unit(name: &str) -> bool {
    let stem = UNIT_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
    let usable = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    name.len() <= UNIT_NAME_MAX && stem.is_some_and(|stem| !stem.is_empty() && stem.chars().all(usable))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: u32 = 1000;

    fn units(path: &str) -> (Option<String>, Option<String>) {
        let placement = Placement::of(path, UID);
        (placement.unit, placement.user_unit)
    }

    #[test]
    fn the_unit_is_the_systems_and_never_one_that_a_user_made() {
        let cases = [
            ("/init.scope", "init.scope"),
            ("/system.slice/billing.service", "billing.service"),
            ("/system.slice/system-pay.slice/pay@eu.service", "pay@eu.service"),
            (
                "/system.slice/system-pay\\x2dout.slice/pay-out@eu\\x2dwest.service",
                "pay-out@eu\\x2dwest.service",
            ),
            ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
            ("/top.service", "top.service"),
            // Below a unit lies what that unit makes.
            ("/system.slice/billing.service/worker.service", "billing.service"),
            ("/system.slice/billing.service/a.slice/other.service", "billing.service"),
            ("/machine.slice/libpod-1.scope/container/system.slice/billing.service", "libpod-1.scope"),
            // Names that systemd escapes for the kernel's sake.
            ("/system.slice/_cpu.service", "cpu.service"),
            ("/system.slice/__odd.service", "_odd.service"),
            ("/_memory.slice/billing.service", "billing.service"),
        ];
        for (path, unit) in cases {
            assert_eq!(units(path), (Some(unit.to_owned()), None), "{path}");
        }
    }

    #[test]
    fn where_no_unit_is_proved_there_is_none() {
        let long = format!("/system.slice/{}.service", "x".repeat(UNIT_NAME_MAX));
        let paths = [
            "",
            "/",
            "/init",
            "/init/billing.service",
            "/docker/0123/system.slice/billing.service",
            "/../system.slice/billing.service",
            "/system.slice/../billing.service",
            "/system.slice/billing.service (deleted)",
            "system.slice/billing.service",
            "/system.slice",
            "/system.slice/.service",
            "/system.slice/bil ling.service",
            "/system.slice/billing.target",
            "/system.slice/billing.Service",
            &long,
        ];
        for path in paths {
            assert_eq!(units(path), (None, None), "{path}");
        }
    }

    #[test]
    fn a_users_unit_is_told_of_processes_of_that_user_alone() {
        let own = "/user.slice/user-1000.slice/user@1000.service";
        let cases = [
            (format!("{own}/app.slice/mail.service"), "user@1000.service", Some("mail.service")),
            (
                format!("{own}/app.slice/app-mail@7.service/x"),
                "user@1000.service",
                Some("app-mail@7.service"),
            ),
            (format!("{own}/app.slice/_cpu.service"), "user@1000.service", Some("cpu.service")),
            (format!("{own}/init.scope"), "user@1000.service", Some("init.scope")),
            (format!("{own}/app.slice"), "user@1000.service", None),
            (own.to_owned(), "user@1000.service", None),
            (
                "/user.slice/user-1001.slice/user@1001.service/app.slice/mail.service".to_owned(),
                "user@1001.service",
                None,
            ),
            ("/system.slice/user@1000.scope/mail.service".to_owned(), "user@1000.scope", None),
        ];
        for (path, unit, user_unit) in cases {
            assert_eq!(units(&path), (Some(unit.to_owned()), user_unit.map(ToOwned::to_owned)), "{path}");
        }
    }

    #[test]
    fn only_the_unified_hierarchy_counts() {
        let hybrid = "9:name=systemd:/x.service\n0::/system.slice/billing.service\n";
        assert_eq!(Placement::read(hybrid, UID), Some(Placement::of("/system.slice/billing.service", UID)));
        assert_eq!(Placement::read("1:name=systemd:/system.slice/billing.service\n", UID), None);
        assert_eq!(Placement::read("", UID), None);
    }
}

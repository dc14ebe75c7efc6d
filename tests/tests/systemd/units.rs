//! What systemd itself says about the units.

use crate::host::Host;

/// The exposure levels that `systemd-analyze security` may find, in tenths. What is left of each is told in the unit,
/// beside what is left out on purpose.
const EXPOSURE_MOST: [(&str, &str); 2] =
    [("tokend.service", "--threshold=4"), ("tokend-egress.service", "--threshold=11")];

/// The first systemd with `PrivateUsers=identity`.
const KNOWS_IDENTITY: u32 = 257;

#[test]
fn the_units_have_no_fault() {
    const UNITS: &str = "/usr/lib/systemd/system";
    let Some(host) = Host::boot() else { return };
    let units = ["tokend.service", "tokend.socket", "tokend-egress.service", "tokend-egress.socket"];
    let units = units.map(|unit| format!("{UNITS}/{unit}"));
    let mut verify = vec!["systemd-analyze", "verify", "--man=no"];
    verify.extend(units.iter().map(String::as_str));
    let verified = host.machine.run(&verify);
    assert_eq!((verified.code, verified.stderr.as_str(), verified.stdout.as_str()), (0, "", ""));
    for (unit, most) in EXPOSURE_MOST {
        let exposure = host.machine.run(&["systemd-analyze", "security", "--no-pager", most, unit]);
        assert_eq!(exposure.code, 0, "{}", exposure.stdout);
    }
}

#[test]
fn callers_are_told_apart_where_a_site_hides_other_users_by_their_own_numbers() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    let version = machine.check(&["systemctl", "--version"]);
    let version: u32 = version.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    if version < KNOWS_IDENTITY {
        return;
    }
    machine.write("/etc/systemd/system/tokend.service.d/site.conf", "[Service]\nPrivateUsers=identity\n");
    machine.check(&["systemctl", "daemon-reload"]);
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    host.token_for("alice", "psb");
    assert_eq!(machine.run_as("bob", &["tokenctl", "get", "psb"]).code, 4);
    host.stop_cleanly();
}

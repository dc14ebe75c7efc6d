//! What systemd itself says about the units.

use crate::host::Host;

/// The exposure level that `systemd-analyze security` may find, in tenths. What is left of it is told in the
/// unit, beside what is left out on purpose.
const EXPOSURE_MOST: &str = "--threshold=13";

/// The same with the drop-ins that the unit names.
const SITE_EXPOSURE_MOST: &str = "--threshold=10";

/// The first systemd with `PrivateUsers=identity`.
const KNOWS_IDENTITY: u32 = 257;

#[test]
fn the_units_have_no_fault() {
    let Some(host) = Host::boot() else { return };
    let verified = host.machine.run(&[
        "systemd-analyze",
        "verify",
        "--man=no",
        "/usr/lib/systemd/system/tokend.service",
        "/usr/lib/systemd/system/tokend.socket",
    ]);
    assert_eq!((verified.code, verified.stderr.as_str(), verified.stdout.as_str()), (0, "", ""));
    let exposure =
        host.machine.run(&["systemd-analyze", "security", "--no-pager", EXPOSURE_MOST, "tokend.service"]);
    assert_eq!(exposure.code, 0, "{}", exposure.stdout);
    let version = host.machine.check(&["systemctl", "--version"]);
    let version: u32 = version.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    if version >= KNOWS_IDENTITY {
        with_what_a_site_knows(&host);
    }
}

/// With the drop-ins that the unit names, the daemon still tells its callers.
fn with_what_a_site_knows(host: &Host) {
    let machine = &host.machine;
    machine.write(
        "/etc/systemd/system/tokend.service.d/site.conf",
        "[Service]\nPrivateUsers=identity\nIPAddressDeny=any\nIPAddressAllow=localhost 192.0.2.0/24\n",
    );
    machine.check(&["systemctl", "daemon-reload"]);
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    host.token_for("alice", "psb");
    assert_eq!(machine.run_as("bob", &["tokenctl", "get", "psb"]).code, 4);
    let exposure =
        machine.run(&["systemd-analyze", "security", "--no-pager", SITE_EXPOSURE_MOST, "tokend.service"]);
    assert_eq!(exposure.code, 0, "{}", exposure.stdout);
    host.stop_cleanly();
}

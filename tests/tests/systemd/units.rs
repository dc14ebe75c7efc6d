//! What systemd itself says about the units.

use crate::host::Host;

/// The exposure level that `systemd-analyze security` may find, in tenths. What is left of it is told in the
/// unit, beside what is left out on purpose.
const EXPOSURE_MOST: &str = "--threshold=13";

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
}

//! What systemd itself says about the units.

use tokend_tests::requirement;

use crate::host::Host;

#[test]
fn the_units_have_no_fault_and_expose_little() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    let units = [
        "tokend.service",
        "tokend.socket",
        "tokend-http.socket",
        "tokend-credential.socket",
        "tokend-egress@.service",
        "tokend-egress@.socket",
        "tokend-sync@.service",
        "tokend-proxy@.service",
        "tokend-metrics.service",
    ]
    .map(|unit| format!("/usr/lib/systemd/system/{unit}"));
    let mut verify = vec!["systemd-analyze", "verify", "--man=no"];
    verify.extend(units.iter().map(String::as_str));
    let verified = machine.run(&verify);
    assert_eq!((verified.code, verified.stderr.as_str(), verified.stdout.as_str()), (0, "", ""));
    // In tenths. Comments in the unit argue each remaining point.
    let expose_at_most = |unit: &str, tenths: &str| {
        let most = format!("--threshold={tenths}");
        let exposure = machine.run(&["systemd-analyze", "security", "--no-pager", &most, unit]);
        assert_eq!(exposure.code, 0, "{}", exposure.stdout);
    };
    expose_at_most("tokend.service", "15");
    expose_at_most("tokend-egress@identity-2.example:443.service", "11");
    expose_at_most("tokend-sync@psb.service", "2");
    expose_at_most("tokend-proxy@psb.service", "12");
    expose_at_most("tokend-metrics.service", "10");
    host.take_network();
    expose_at_most("tokend.service", "7");
}

#[test]
fn callers_are_identified_with_private_users_identity() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    if !requirement::applies("systemd 257 (PrivateUsers=identity)", machine.systemd_version() >= 257) {
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

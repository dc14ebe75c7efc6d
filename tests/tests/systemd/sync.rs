//! `tokend-sync@.service`: a token in a file for a program of another unit.

use tokend_tests::{secrets, wait};

use crate::host::Host;

const UNIT: &str = "tokend-sync@synced.service";
const FILE: &str = "/run/tokend-sync/synced/token";

/// Has the token replaced, and waits until the new one is in the file.
fn until_rotated(host: &Host, before: &str) -> String {
    host.machine.check(&["tokenctl", "refresh", "--deadline", "60s", "synced"]);
    let after = wait::until("the new token in the file", || {
        let read = host.machine.run_as("alice", &["cat", FILE]).stdout;
        (!read.is_empty() && read != before).then_some(read)
    });
    secrets::register("access-token", &after);
    after
}

#[test]
fn the_unit_keeps_the_token_of_its_user_in_a_file() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.configure(&format!(
        "[token.synced]\nprovider = \"psb\"\nscope = \"synced\"\nallow = [{{ user = \"alice\", unit = \"{UNIT}\" }}]\n"
    ));
    host.start_provider();
    assert_ne!(machine.run(&["systemctl", "start", UNIT]).code, 0, "no drop-in names a user");
    machine.check(&["systemctl", "stop", UNIT]);
    machine.write(&format!("/etc/systemd/system/{UNIT}.d/user.conf"), "[Service]\nUser=alice\n");
    machine.check(&["systemctl", "daemon-reload"]);
    // It starts the daemon's socket, and returns once the file has a token.
    machine.check(&["systemctl", "start", UNIT]);
    let first = machine.run_as("alice", &["cat", FILE]).expect_success();
    secrets::register("access-token", &first);
    assert_eq!(machine.check(&["stat", "-c", "%a %U", FILE]).trim(), "600 alice");
    assert_ne!(machine.run_as("bob", &["cat", FILE]).code, 0);
    assert_eq!(machine.run_as("alice", &["tokenctl", "get", "synced"]).code, 4, "the token is for the unit");
    let status = machine.property(UNIT, "StatusText");
    assert!(status.starts_with("synced: the token in the file expires at "), "{status}");

    let second = until_rotated(&host, &first);
    machine.check(&["systemctl", "restart", "tokend"]);
    assert_eq!(machine.run_as("alice", &["cat", FILE]).stdout, second);
    until_rotated(&host, &second);
    let process = machine.property(UNIT, "MainPID");
    machine.check(&["systemctl", "kill", "--signal=KILL", UNIT]);
    machine.check(&["test", "-s", FILE]);
    wait::until("another process", || {
        let is_ready = machine.property(UNIT, "ActiveState") == "active";
        (is_ready && machine.property(UNIT, "MainPID") != process).then_some(())
    });
    machine.check(&["systemctl", "stop", UNIT]);
    assert_eq!(machine.property(UNIT, "Result"), "success");
    assert_eq!(machine.property(UNIT, "ExecMainStatus"), "0");
    assert_ne!(machine.run(&["test", "-e", "/run/tokend-sync/synced"]).code, 0);
    host.stop_cleanly();
}

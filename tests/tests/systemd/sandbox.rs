//! What the units let a process do that was made to run something else.

use tokend_tests::{Finished, Machine};

use crate::host::Host;

/// Puts a program into every folder that may be written to, runs it there, and tells of both.
const TRY_EVERYWHERE: &str = "find / -type d -writable ! -path '/proc/*' 2>/dev/null | while read -r folder; do \
    cp /usr/bin/true \"$folder/probe\" 2>/dev/null || continue; echo \"written $folder\"; \
    \"$folder/probe\" 2>/dev/null && echo \"run $folder\"; rm \"$folder/probe\"; done";

#[test]
fn no_file_that_the_daemon_can_write_can_be_run() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    machine.check(&["systemctl", "start", "tokend"]);
    let tried = in_files_of(machine, "tokend", &["sh", "-c", TRY_EVERYWHERE]).expect_success();
    let folders = |what: &str| -> Vec<&str> {
        let mut folders: Vec<&str> = tried.lines().filter_map(|line| line.strip_prefix(what)).collect();
        folders.sort_unstable();
        folders
    };
    assert_eq!(folders("run "), [""; 0], "{tried}");
    assert_eq!(folders("written "), ["/dev/shm", "/tmp", "/var/lib/tokend", "/var/tmp"]);
    host.stop_cleanly();
}

#[test]
fn without_a_network_services_that_would_reach_it_are_hidden_and_the_name_service_is_not() {
    const HIDDEN: [&str; 6] = [
        "/run/dbus/probe",
        "/run/systemd/resolve/probe",
        "/run/avahi-daemon/probe",
        "/run/cups/probe",
        "/run/snapd.socket",
        "/run/snapd-snap.socket",
    ];
    const SEEN: [&str; 4] =
        ["/run/systemd/userdb/probe", "/run/nscd/probe", "/run/nslcd/probe", "/run/samba/winbindd/probe"];
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.take_network();
    let probes = [&HIDDEN[..], &SEEN[..]].concat().join("\nListenStream=");
    machine.write("/etc/systemd/system/probe.socket", &format!("[Socket]\nListenStream={probes}\n"));
    machine.write("/etc/systemd/system/probe.service", "[Service]\nExecStart=/usr/bin/true\n");
    machine.check(&["systemctl", "start", "probe.socket", "tokend.service"]);
    for path in HIDDEN.iter().chain(&SEEN) {
        let may_connect =
            ["setpriv", "--reuid=tokend", "--regid=tokend", "--clear-groups", "test", "-w", path];
        assert_eq!(machine.run(&may_connect).code, 0, "{path}");
        let there = in_files_of(machine, "tokend", &may_connect);
        assert_eq!(there.code == 0, SEEN.contains(path), "{path}: {there:?}");
    }
    host.stop_cleanly();
}

/// Runs a command with the files that a service has, as root, so that no file's mode has a part in it.
fn in_files_of(machine: &Machine, service: &str, command: &[&str]) -> Finished {
    let pid = machine.property(service, "MainPID");
    machine.run(&[&["nsenter", "--mount", "--target", &pid], command].concat())
}

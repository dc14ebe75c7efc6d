//! `tokend init` with the real service manager.

use crate::host::{Host, PROVIDER};

#[test]
fn an_encrypted_secret_is_refused_if_the_unit_could_not_start_with_it() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    for (name, file) in [("other.secret", "/etc/other.cred"), ("bank.secret", "/etc/bank.cred")] {
        let name = format!("--name={name}");
        machine.check(&[
            "systemd-creds",
            "encrypt",
            "--with-key=host",
            &name,
            "/etc/credstore/psb.secret",
            file,
        ]);
    }
    let endpoint = format!("http://{PROVIDER}/token");
    let init = |file| {
        let command = ["tokend", "init", "bank", "--provider", &endpoint, "--client-id", "me", "--yes"];
        machine.run(&[&command[..], &["--allow", "none", "--secret-from", file]].concat())
    };
    let refused = init("encrypted:/etc/other.cred");
    let remedy = "encrypt the secret with `systemd-creds encrypt --name=bank.secret - FILE`";
    assert!(refused.code == 1 && refused.stderr.contains(remedy), "{refused:?}");
    let written = machine.check(&["find", "/etc/tokend", "/etc/systemd/system", "-name", "*bank*"]);
    assert_eq!(written, "", "nothing was written");

    let done = init("encrypted:/etc/bank.cred");
    assert_eq!(done.code, 0, "{done:?}");
    machine.check(&["systemctl", "daemon-reload"]);
    machine.check(&["systemctl", "restart", "tokend"]);
    host.token_for("root", "bank");
}

#[test]
fn the_daemon_can_read_a_configuration_in_a_new_directory() {
    let Some(host) = Host::boot() else { return };
    let init = "umask 077; tokend init bank --provider https://id.example/token --client-id me --allow none --yes \
        --secret-from credential:psb.secret --config /etc/other/tokend.toml";
    host.machine.check(&["sh", "-c", init]);
    // Root checks it as the daemon's user.
    let checked = host.machine.check(&["tokend", "check", "--config", "/etc/other/tokend.toml"]);
    assert_eq!(checked, "/etc/other/tokend.toml: no faults, 1 token(s)\n");
}

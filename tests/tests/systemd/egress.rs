//! How the daemon reaches providers: by itself as shipped, and through `tokend-egress@.socket` without a network.

use std::thread;

use tokend_tests::{Machine, wait};

use crate::host::{Host, PROVIDER};

const DROPIN: &str = "/etc/systemd/system/tokend.service.d/no-network.conf";

fn main_pid(machine: &Machine, unit: &str) -> String {
    machine.property(unit, "MainPID")
}

/// The command that an error names for a provider.
fn enable(instance: &str) -> String {
    format!("systemctl enable --now tokend-egress@{instance}.socket")
}

/// Waits until no connection to the provider is open. One is kept for a moment after a request.
fn until_no_connection_is_left(machine: &Machine) {
    let (_, port) = PROVIDER.split_once(':').unwrap();
    let to_provider = format!(":{:04X} 01", port.parse::<u16>().unwrap());
    wait::until("the end of the connections to the provider", || {
        let connections = machine.check(&["cat", "/proc/net/tcp"]);
        (!connections.contains(&to_provider)).then_some(())
    });
}

/// Has the token in force replaced, by a request on a connection of its own.
fn renew(host: &Host) -> String {
    until_no_connection_is_left(&host.machine);
    host.machine.check(&["tokenctl", "refresh", "--deadline", "60s", "psb"]);
    host.token_for("alice", "psb")
}

/// Starts a provider with TLS and a private authority: the lines of its configuration.
fn start_tls_provider(machine: &Machine, name: &str, address: &str) -> String {
    let ca_file = format!("/etc/{name}.pem");
    let unit = format!("--unit=provider-{name}");
    let (secret, log) = ("/etc/credstore/psb.secret", format!("/tmp/requests-{name}"));
    machine.check(&["systemd-run", "--quiet", &unit, "provider", address, secret, "3600", &log, &ca_file]);
    wait::until(&format!("the provider {name}"), || {
        (machine.run(&["test", "-e", &ca_file]).code == 0).then_some(())
    });
    machine.check(&["chmod", "0644", &ca_file]);
    format!(
        "[provider.{name}]\npreset = \"econnect-psb\"\ntoken_endpoint = \"https://{address}/token\"\n\
         client_id = \"host\"\nclient_secret = {{ credential = \"psb.secret\" }}\nca_file = \"{ca_file}\"\n\
         [token.{name}]\nprovider = \"{name}\"\nallow = [\"user:alice\"]\n"
    )
}

#[test]
fn as_shipped_the_daemon_has_the_network_and_fetches_its_tokens_itself() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    host.token_for("alice", "psb");
    let network = |pid: &str| machine.check(&["readlink", &format!("/proc/{pid}/ns/net")]);
    assert_eq!(network(&main_pid(machine, "tokend")), network("1"));
    host.stop_cleanly();
}

#[test]
fn without_a_network_only_enabled_providers_are_reached_and_the_daemon_verifies_them() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    let text = [("one", "127.0.0.1:8443"), ("two", "127.0.0.1:8444"), ("three", "127.0.0.1:8445")]
        .map(|(name, address)| start_tls_provider(machine, name, address))
        .concat();
    // `imposter` answers where `two` does, but is expected to have a certificate of the authority of `one`.
    let imposter =
        text.split("[provider.two]").next().unwrap().replace("8443", "8444").replace("one", "imposter");
    host.configure(&(text + &imposter.replace("/etc/imposter.pem", "/etc/one.pem")));
    host.take_network();
    for instance in ["127.0.0.1:8443", "127.0.0.1:8444", "::1:8446", "identity-2.example:443"] {
        machine.check(&enable(instance).split(' ').collect::<Vec<_>>());
    }
    for socket in ["::1:8446", "identity-2.example:443"] {
        machine.check(&["test", "-S", &format!("/run/tokend-egress/{socket}")]);
    }
    machine.check(&["systemctl", "start", "tokend"]);
    host.token_for("alice", "one");
    host.token_for("alice", "two");

    let refused = machine.run_as("alice", &["tokenctl", "get", "--deadline", "20s", "three"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (6, ""), "{}", refused.stderr);
    let shown = machine.check(&["tokenctl", "status", "--verbose"]);
    assert!(shown.contains(&enable("127.0.0.1:8445")), "{shown}");
    assert!(machine.journal(&["-u", "tokend", "--output=export"]).contains(&enable("127.0.0.1:8445")));
    assert_ne!(machine.run_as("alice", &["tokenctl", "get", "--deadline", "20s", "imposter"]).code, 0);
    let requests =
        |name: &str| machine.run(&["cat", &format!("/tmp/requests-{name}")]).stdout.lines().count();
    assert_eq!([requests("one"), requests("two"), requests("three")], [1, 1, 0]);

    let daemon = main_pid(machine, "tokend");
    let connect = "exec 3<>/dev/tcp/127.0.0.1/8443";
    assert_eq!(machine.run(&["bash", "-c", connect]).code, 0);
    assert_ne!(machine.run(&["nsenter", "--net", "--target", &daemon, "bash", "-c", connect]).code, 0);
    // Members of the group that may connect to the daemon get no way out.
    let writes = |user| machine.run_as(user, &["test", "-w", "/run/tokend-egress/127.0.0.1:8443"]).code == 0;
    assert_eq!(["root", "tokend", "alice", "carol"].map(writes), [true, true, false, false]);

    machine.check(&enable("127.0.0.1:8445").split(' ').collect::<Vec<_>>());
    host.token_for("alice", "three");
    host.stop_cleanly();
}

#[test]
fn a_relay_that_is_killed_stopped_or_out_of_reach_delays_no_held_token() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    let relay = format!("tokend-egress@{PROVIDER}");
    host.configure(
        "[token.later]\nprovider = \"psb\"\nscope = \"later\"\nallow = [\"user:alice\"]\nwarm = \"on-demand\"\n",
    );
    host.take_network();
    machine.check(&enable(PROVIDER).split(' ').collect::<Vec<_>>());
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    let held = host.token_for("alice", "psb");
    let daemon = main_pid(machine, "tokend");
    let at_once = || machine.run_as("alice", &["tokenctl", "get", "--deadline", "0s", "psb"]).stdout;

    machine.check(&["systemctl", "kill", "--signal=STOP", &format!("{relay}.service")]);
    thread::scope(|scope| {
        let later = scope.spawn(|| host.token_for("alice", "later"));
        assert_eq!(at_once().trim_end(), held);
        machine.check(&["systemctl", "kill", "--signal=KILL", &format!("{relay}.service")]);
        assert_eq!(at_once().trim_end(), held);
        later.join().unwrap();
    });
    machine.check(&["systemctl", "stop", &format!("{relay}.service")]);
    let renewed = renew(&host);
    assert_ne!(renewed, held, "the socket starts the relay again");

    machine.check(&["systemctl", "stop", "provider.service"]);
    assert_ne!(machine.run(&["tokenctl", "refresh", "psb"]).code, 0);
    let shown = machine.check(&["tokenctl", "status", "--verbose"]);
    assert!(shown.contains(&format!("journalctl -u '{relay}.service'")), "{shown}");
    assert_eq!(at_once().trim_end(), renewed);
    assert_eq!(main_pid(machine, "tokend"), daemon);
    host.stop_cleanly();
}

#[test]
fn a_site_can_say_where_connections_may_go() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    let pin = |addresses: &str| {
        machine.write(
            "/etc/systemd/system/tokend-egress@.service.d/site.conf",
            &format!("[Service]\nIPAddressDeny=any\nIPAddressAllow={addresses}\n"),
        );
        machine.check(&["systemctl", "daemon-reload"]);
        machine.check(&["systemctl", "stop", &format!("tokend-egress@{PROVIDER}.service")]);
        machine.check(&["systemctl", "restart", "tokend"]);
    };
    host.take_network();
    machine.check(&enable(PROVIDER).split(' ').collect::<Vec<_>>());
    host.start_provider();
    pin("192.0.2.0/24 2001:db8::/32");
    assert_eq!(machine.run_as("alice", &["tokenctl", "get", "--deadline", "60s", "psb"]).code, 6);
    assert_eq!(host.requests(), [], "a request to an address that is not on the list");
    pin("localhost");
    host.token_for("alice", "psb");
    host.stop_cleanly();
}

#[test]
fn a_restart_takes_and_gives_the_network_and_costs_no_token() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    let token = host.token_for("alice", "psb");
    // Without it, IPAddressDeny= would also drop the packets that close the daemon's old connections.
    until_no_connection_is_left(machine);
    host.take_network();
    machine.check(&enable(PROVIDER).split(' ').collect::<Vec<_>>());
    machine.check(&["systemctl", "restart", "tokend"]);
    assert_eq!((host.token_for("alice", "psb"), host.requests().len()), (token.clone(), 1));
    assert_ne!(renew(&host), token);
    machine.check(&["rm", DROPIN]);
    machine.check(&["systemctl", "daemon-reload"]);
    machine.check(&["systemctl", "restart", "tokend"]);
    renew(&host);
    host.stop_cleanly();
}

//! The daemon has no network, and gets its connections from tokend-egress: who may ask for them, and what comes of it
//! when either of the two is killed, restarted, confined or not there.

use std::thread;

use tokend_tests::{Machine, wait};

use crate::host::{Host, PROVIDER};
use crate::restart::upgrade;

const SOCKET: &str = "/run/tokend/egress.sock";
const DROPIN: &str = "/etc/systemd/system/tokend.service.d/network.conf";

/// What `tokend.service` says for a daemon that makes its connections itself.
const NETWORK: &str = "[Service]\nPrivateNetwork=no\nRestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK\n\
    IPAddressDeny=\nInaccessiblePaths=\nUnsetEnvironment=TOKEND_EGRESS\n";

/// What a package of a release without the helper has not.
const HELPER: [&str; 3] = [
    "/usr/bin/tokend-egress",
    "/usr/lib/systemd/system/tokend-egress.service",
    "/usr/lib/systemd/system/tokend-egress.socket",
];

fn start() -> Option<Host> {
    let host = Host::boot()?;
    host.start_provider();
    host.machine.check(&["systemctl", "start", "tokend"]);
    host.token_for("alice", "psb");
    Some(host)
}

fn main_pid(machine: &Machine, unit: &str) -> String {
    machine.property(unit, "MainPID")
}

/// Has the token in force replaced, by a request on a connection of its own.
fn renew(host: &Host) -> String {
    until_no_connection_is_left(&host.machine);
    host.machine.check(&["tokenctl", "refresh", "--deadline", "20s", "psb"]);
    host.token_for("alice", "psb")
}

/// A connection is kept for a moment after a request, and what goes over it needs nobody's help.
fn until_no_connection_is_left(machine: &Machine) {
    let (_, port) = PROVIDER.split_once(':').unwrap();
    let to_provider = format!(":{:04X} 01", port.parse::<u16>().unwrap());
    wait::until("the end of the connections to the provider", || {
        let connections = machine.check(&["cat", "/proc/net/tcp"]);
        (!connections.contains(&to_provider)).then_some(())
    });
}

#[test]
fn the_daemon_has_no_network_and_tokens_come_all_the_same() {
    let Some(host) = start() else { return };
    let machine = &host.machine;
    let network = |pid: &str| machine.check(&["readlink", &format!("/proc/{pid}/ns/net")]);
    let (daemon, helper) = (main_pid(machine, "tokend"), main_pid(machine, "tokend-egress"));
    assert_ne!(network(&daemon), network("1"));
    assert_eq!(network(&helper), network("1"));
    let (address, port) = PROVIDER.split_once(':').unwrap();
    let connect = format!("exec 3<>/dev/tcp/{address}/{port}");
    assert_eq!(machine.run(&["bash", "-c", &connect]).code, 0);
    let from_there = ["nsenter", "--net", "--target", &daemon, "bash", "-c", &connect];
    assert_ne!(machine.run(&from_there).code, 0, "the provider is reached from the daemon's network");
    host.stop_cleanly();
}

#[test]
fn only_root_and_the_daemons_user_may_ask_for_connections() {
    let Some(host) = start() else { return };
    let (address, port) = PROVIDER.split_once(':').unwrap();
    let ask = |user: &str| host.machine.run_as(user, &["asker", SOCKET, address, port]).expect_success();
    for user in ["root", "tokend"] {
        assert_eq!(ask(user).trim_end(), PROVIDER, "{user}");
    }
    // A member of the group that may connect to the daemon, and somebody else.
    for user in ["alice", "carol"] {
        let refused = ask(user);
        assert!(refused.contains("Permission denied (os error 13)"), "{user}: {refused}");
    }
    host.stop_cleanly();
}

#[test]
fn a_helper_that_is_killed_at_work_is_there_again_and_nobody_waits_for_what_is_held() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.configure(
        "[token.later]\nprovider = \"psb\"\nscope = \"later\"\nallow = [\"user:alice\"]\nwarm = \"on-demand\"\n",
    );
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    let held = host.token_for("alice", "psb");
    let before = [main_pid(machine, "tokend"), main_pid(machine, "tokend-egress")];
    until_no_connection_is_left(machine);

    machine.check(&["systemctl", "kill", "--signal=STOP", "tokend-egress.service"]);
    thread::scope(|scope| {
        // Its first request falls to the helper that is about to be killed, or to the next one.
        let later = scope.spawn(|| host.token_for("alice", "later"));
        let got = machine.run_as("alice", &["tokenctl", "get", "--deadline", "0s", "psb"]);
        assert_eq!((got.code, got.stdout.trim_end()), (0, held.as_str()), "{}", got.stderr);
        machine.check(&["systemctl", "kill", "--signal=KILL", "tokend-egress.service"]);
        let got = machine.run_as("alice", &["tokenctl", "get", "--deadline", "0s", "psb"]);
        assert_eq!((got.code, got.stdout.trim_end()), (0, held.as_str()), "{}", got.stderr);
        later.join().unwrap();
    });
    assert_ne!(renew(&host), held);
    assert_eq!(main_pid(machine, "tokend"), before[0]);
    assert_ne!(main_pid(machine, "tokend-egress"), before[1]);
    host.stop_cleanly();
}

#[test]
fn a_helper_that_is_stopped_or_restarted_leaves_the_daemon_alone_and_is_started_when_it_is_needed() {
    let Some(host) = start() else { return };
    let machine = &host.machine;
    let daemon = main_pid(machine, "tokend");
    for verb in ["restart", "stop"] {
        let before = host.token_for("alice", "psb");
        machine.check(&["systemctl", verb, "tokend-egress.service"]);
        assert_ne!(renew(&host), before, "after a {verb}");
        assert_eq!(machine.property("tokend-egress", "ActiveState"), "active");
    }
    // Without its socket it cannot be asked: what is held is served all the same.
    let held = host.token_for("alice", "psb");
    machine.check(&["systemctl", "stop", "tokend-egress.socket"]);
    assert_eq!(host.token_for("alice", "psb"), held);
    until_no_connection_is_left(machine);
    assert_ne!(machine.run(&["tokenctl", "refresh", "psb"]).code, 0);
    assert_eq!(main_pid(machine, "tokend"), daemon);
    // A restart of the daemon brings it back.
    machine.check(&["systemctl", "restart", "tokend"]);
    assert_ne!(renew(&host), held);
    host.stop_cleanly();
}

#[test]
fn a_restart_of_the_daemon_leaves_the_helper_alone_and_one_of_its_socket_is_of_all() {
    let Some(host) = start() else { return };
    let machine = &host.machine;
    let helper = main_pid(machine, "tokend-egress");
    machine.check(&["systemctl", "restart", "tokend.service"]);
    let held = host.token_for("alice", "psb");
    assert_ne!(renew(&host), held);
    assert_eq!(main_pid(machine, "tokend-egress"), helper);

    machine.check(&["systemctl", "restart", "tokend.socket"]);
    let held = host.token_for("alice", "psb");
    assert_ne!(renew(&host), held);
    assert_ne!(main_pid(machine, "tokend-egress"), helper);
    host.stop_cleanly();
}

#[test]
fn a_site_can_say_where_connections_may_go() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    let pin = |addresses: &str| {
        machine.write(
            "/etc/systemd/system/tokend-egress.service.d/site.conf",
            &format!("[Service]\nIPAddressDeny=any\nIPAddressAllow={addresses}\n"),
        );
        machine.check(&["systemctl", "daemon-reload"]);
        machine.check(&["systemctl", "restart", "tokend"]);
    };
    host.start_provider();
    pin("192.0.2.0/24 2001:db8::/32");
    assert_eq!(machine.run_as("alice", &["tokenctl", "get", "psb"]).code, 6);
    assert_eq!(host.requests(), [], "a request to an address that is not on the list");
    pin("localhost");
    host.token_for("alice", "psb");
    host.stop_cleanly();
}

#[test]
fn an_upgrade_from_a_release_without_the_helper_costs_no_token_and_no_request() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    machine.check(&[&["rm"], &HELPER[..]].concat());
    machine.write(DROPIN, NETWORK);
    machine.check(&["systemctl", "daemon-reload"]);
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    let token = host.token_for("alice", "psb");

    machine.check(&["rm", DROPIN]);
    upgrade(&host);
    assert_eq!(host.token_for("alice", "psb"), token);
    assert_eq!(host.requests().len(), 1);
    assert_ne!(renew(&host), token);
    assert_eq!(machine.property("tokend-egress", "ActiveState"), "active");
    host.stop_cleanly();
}

#[test]
fn a_command_that_needs_the_network_has_it_where_a_site_says_so() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    // It tells the secret where it can connect.
    let (address, port) = PROVIDER.split_once(':').unwrap();
    machine.write(
        "/usr/bin/fetch-secret",
        &format!(
            "#!/bin/bash\nset -e\nexec 3<>/dev/tcp/{address}/{port}\ncat $CREDENTIALS_DIRECTORY/psb.secret\n"
        ),
    );
    machine.check(&["chmod", "755", "/usr/bin/fetch-secret"]);
    host.configure(&format!(
        "[provider.asks]\npreset = \"econnect-psb\"\ntoken_endpoint = \"http://{PROVIDER}/connect/token\"\n\
         client_id = \"host\"\nclient_secret = {{ command = [\"/usr/bin/fetch-secret\"] }}\n\
         [token.asks]\nprovider = \"asks\"\nallow = [\"user:alice\"]\n"
    ));
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    assert_eq!(machine.run_as("alice", &["tokenctl", "get", "asks"]).code, 7);
    // The daemon's own connections are made by the helper as before.
    machine.write(DROPIN, NETWORK.trim_end_matches("UnsetEnvironment=TOKEND_EGRESS\n"));
    machine.check(&["systemctl", "daemon-reload"]);
    machine.check(&["systemctl", "restart", "tokend"]);
    host.token_for("alice", "asks");
    host.stop_cleanly();
}

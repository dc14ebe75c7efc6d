//! The daemon without a network: `tokend-egress` connects for it.

use std::fs;
use std::time::SystemTime;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokend_client::Options;
use tokend_client::blocking::Client;
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_of};
use tokend_tests::{Answer, Authority, Flaw, Provider, RealDaemon, RealEgress, TestDir, requirement, wait};

/// A home with a token `t`.
fn home_with(endpoint: &str, more: &str) -> TestDir {
    let home = TestDir::new();
    home.configure("", &(provider_table(&home, "p", endpoint, more) + &token_of("p", "t", "")));
    home
}

/// The daemon of a home, told where the helper listens.
fn helped(home: &TestDir) -> Launch {
    Launch::new(home).argument("--egress").argument(home.egress_socket().to_str().unwrap())
}

/// The same in a network of its own, in which nothing is, not even loopback.
fn interrupted_requests(launch: Launch) -> Launch {
    launch.through(&["unshare", "--net", "--"])
}

fn failure_of(daemon: &RealDaemon, token: &str) -> Value {
    wait::until(&format!("a failure of {token} in the status"), || {
        let failure = daemon.tokenctl().status_of(token)["last_error"].clone();
        (!failure.is_null()).then_some(failure)
    })
}

fn message_of(daemon: &RealDaemon) -> String {
    failure_of(daemon, "t")["message"].as_str().expect("a failure has a message").to_owned()
}

#[test]
fn a_daemon_without_a_network_has_tokens_by_way_of_the_helper_alone() {
    if !(requirement::root() && requirement::program("unshare")) {
        return;
    }
    let authority = Authority::new();
    let provider = Provider::start_tls(authority.server(Flaw::None));
    let home =
        home_with(&provider.token_endpoint(), &format!("ca_file = \"{}\"", authority.ca_file().display()));
    // The control: cut off it is.
    let daemon = interrupted_requests(Launch::new(&home)).start();
    assert_eq!(failure_of(&daemon, "t")["class"], "unreachable");
    assert!(listens_to_the_kernel(&daemon));
    drop(daemon);
    let _helper = RealEgress::start(&home);
    let daemon = interrupted_requests(helped(&home)).start();
    daemon.tokenctl().get("t");
    assert_eq!(provider.count(), 1);
    assert!(!listens_to_the_kernel(&daemon), "of a network of its own, in which nothing changes");
}

/// Whether anybody in the daemon's network, which is the daemon alone, is told of changes of it.
fn listens_to_the_kernel(daemon: &RealDaemon) -> bool {
    let sockets = fs::read_to_string(format!("/proc/{}/net/netlink", daemon.pid())).unwrap();
    // The kernel's own have no process.
    sockets.lines().skip(1).any(|line| line.split_whitespace().nth(2) != Some("0"))
}

#[test]
fn what_a_helper_finds_out_is_reported_as_if_the_daemon_had() {
    let home = TestDir::new();
    let endpoints = [("nobody", "https://nobody.invalid/token"), ("closed", "https://127.0.0.1:1/token")];
    let mut text = String::new();
    for (name, endpoint) in endpoints {
        text.push_str(&(provider_table(&home, name, endpoint, "") + &token_of(name, name, "")));
    }
    home.configure("", &text);
    let failures = |launch: Launch| {
        let daemon = launch.start();
        endpoints.map(|(name, _)| {
            let mut failure = failure_of(&daemon, name);
            failure.as_object_mut().unwrap().retain(|key, _| ["class", "message"].contains(&key.as_str()));
            failure
        })
    };
    let direct = failures(Launch::new(&home));
    let _helper = RealEgress::start(&home);
    assert_eq!(failures(helped(&home)), direct);
}

#[test]
fn without_its_helper_the_daemon_serves_what_it_holds_and_says_what_to_look_at() {
    // Each request needs a connection of its own.
    let provider = Provider::start_answering(|_| Answer::token(3600).with_header("connection", "close"));
    let home = home_with(&provider.token_endpoint(), "");
    let helper = RealEgress::start(&home);
    let daemon = helped(&home).start();
    let held = daemon.tokenctl().get("t");
    drop(helper);
    let lost = daemon.wait_for_log(&["WARN", "changes of the network"]);
    assert!(lost.contains("egress.sock"), "{lost}");

    // Each failure makes the next back-off longer, and an operator's request waits for none.
    for _ in 0..6 {
        daemon.tokenctl().run(&["refresh", "t"]).expect_code(6);
    }
    let told = daemon.tokenctl().run(&["status", "--verbose"]).expect_success();
    for words in ["egress.sock", "Connection refused", "systemctl status tokend-egress.socket"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(daemon.tokenctl().get("t"), held);

    let client = Client::new(Options::new(daemon.socket()));
    let next = client.status().unwrap().tokens[0].next_attempt.unwrap().to_system_time();
    let _helper = RealEgress::start(&home);
    wait::until("another token", || (daemon.tokenctl().get("t") != held).then_some(()));
    assert!(SystemTime::now() < next, "not before its back-off has ended");
    daemon.wait_for_log(&["INFO", "tells of changes of the network again"]);
}

#[test]
fn a_helper_that_hangs_is_told_from_a_provider_that_does() {
    let provider = Provider::start();
    let home = home_with(&provider.token_endpoint(), "");
    let helper = RealEgress::start(&home);
    helper.signal(Signal::SIGSTOP);
    let daemon = helped(&home).start();
    assert!(message_of(&daemon).contains("egress.sock: timed out"), "{}", message_of(&daemon));
    helper.signal(Signal::SIGCONT);
    wait::until("a token", || (daemon.tokenctl().run(&["get", "t"]).code == 0).then_some(()));
}

#[test]
fn the_environment_names_a_helper_and_can_take_it_away() {
    let provider = Provider::start();
    let home = home_with(&provider.token_endpoint(), "");
    let named = Launch::new(&home).env("TOKEND_EGRESS", home.egress_socket()).start();
    assert!(message_of(&named).contains("egress.sock"), "{}", message_of(&named));
    assert_eq!(provider.count(), 0);
    drop(named);
    let direct = Launch::new(&home).env("TOKEND_EGRESS", "").start();
    direct.tokenctl().get("t");
}

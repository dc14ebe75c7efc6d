//! The daemon without a network of its own: every connection goes through a Unix socket that is named after its
//! destination.

use std::fs;

use serde_json::{Value, json};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_of};
use tokend_tests::{Answer, Authority, EgressSocket, Flaw, Provider, RealDaemon, TestDir, requirement, wait};

/// A home with a token `t`, and `egress_dir` in its configuration.
fn home_with(endpoint: &str, more: &str) -> TestDir {
    let home = TestDir::new();
    let egress_dir = format!("egress_dir = \"{}\"", home.egress_dir().display());
    home.configure(&egress_dir, &(provider_table(&home, "p", endpoint, more) + &token_of("p", "t", "")));
    home
}

/// The same daemon in a network of its own, in which nothing is, not even loopback.
fn without_network(launch: Launch) -> Launch {
    launch.through(&["unshare", "--net", "--"])
}

fn failure_of(daemon: &RealDaemon, token: &str) -> Value {
    wait::until(&format!("a failure of {token} in the status"), || {
        let failure = daemon.tokenctl().status_of(token)["last_error"].clone();
        (!failure.is_null()).then_some(failure)
    })
}

#[test]
fn a_daemon_without_a_network_gets_its_tokens_through_egress_sockets() {
    if !(requirement::root() && requirement::program("unshare")) {
        return;
    }
    let authority = Authority::new();
    let provider = Provider::start_tls(authority.server(Flaw::None));
    let trusted = format!("ca_file = \"{}\"", authority.ca_file().display());
    let home = home_with(&provider.token_endpoint(), &trusted);
    let direct = without_network(Launch::new(&home).argument("--egress-dir").argument("")).start();
    let failure = failure_of(&direct, "t");
    assert_eq!(failure["class"], "unreachable", "an empty --egress-dir means none: {failure}");
    drop(direct);

    let socket = EgressSocket::to(&home.egress_dir(), &provider.address().to_string(), provider.address());
    let daemon = without_network(Launch::new(&home)).start();
    daemon.tokenctl().get("t");
    assert_eq!((provider.count(), socket.connections()), (1, 1));
}

#[test]
fn tls_is_verified_through_an_egress_socket() {
    let provider = Provider::start_tls(Authority::new().server(Flaw::None));
    let home = home_with(&provider.token_endpoint(), "");
    let _socket = EgressSocket::to(&home.egress_dir(), &provider.address().to_string(), provider.address());
    let daemon = Launch::new(&home).start();
    assert_eq!(failure_of(&daemon, "t")["class"], "tls");
    assert_eq!(provider.count(), 0);
}

#[test]
fn a_missing_socket_names_the_command_that_makes_it_and_held_tokens_are_served() {
    // Each request needs a connection of its own.
    let provider = Provider::start_answering(|_| Answer::token(3600).with_header("connection", "close"));
    let home = home_with(&provider.token_endpoint(), "");
    let instance = provider.address().to_string();
    let command = format!("`systemctl enable --now tokend-egress@{instance}.socket`");
    let daemon = Launch::new(&home).start();
    let failure = failure_of(&daemon, "t");
    assert_eq!(failure["class"], "unreachable", "{failure}");
    daemon.wait_for_log(&["WARN", &command]);
    let shown = daemon.tokenctl().run(&["status", "--verbose"]).expect_success();
    assert!(shown.contains(&command), "{shown}");
    assert_eq!(provider.count(), 0);

    let _socket = EgressSocket::to(&home.egress_dir(), &instance, provider.address());
    let held = wait::until("a token", || {
        let got = daemon.tokenctl().run(&["get", "t"]);
        (got.code == 0).then(|| got.stdout.trim_end().to_owned())
    });
    fs::remove_file(home.egress_dir().join(&instance)).unwrap();
    daemon.tokenctl().run(&["refresh", "t"]).expect_code(6);
    assert_eq!(daemon.tokenctl().get("t"), held);
}

#[test]
fn a_connection_that_closes_without_a_byte_points_to_the_journal_of_its_unit() {
    for endpoint in ["http://127.0.0.1:1/token", "https://127.0.0.1:1/token"] {
        let home = home_with(endpoint, "");
        let _socket = EgressSocket::to_nowhere(&home.egress_dir(), "127.0.0.1:1");
        let daemon = Launch::new(&home).start();
        assert_eq!(failure_of(&daemon, "t")["class"], "unreachable", "{endpoint}");
        daemon.wait_for_log(&["WARN", "journalctl -u 'tokend-egress@127.0.0.1:1.service'"]);
    }
}

#[test]
fn discovery_uses_the_sockets_of_the_issuer_and_then_of_its_token_endpoint() {
    let (issuer, endpoint) = (Provider::start(), Provider::start());
    issuer.always(Answer::json(
        200,
        &json!({ "issuer": issuer.url(""), "token_endpoint": endpoint.token_endpoint() }),
    ));
    let home = TestDir::new();
    let table = provider_table(&home, "p", &issuer.url(""), "").replace("token_endpoint = ", "issuer = ");
    home.configure("", &(table + &token_of("p", "t", "")));
    let sockets = [&issuer, &endpoint]
        .map(|server| EgressSocket::to(&home.egress_dir(), &server.address().to_string(), server.address()));
    let daemon = Launch::new(&home).env("TOKEND_EGRESS_DIR", home.egress_dir()).start();
    daemon.tokenctl().get("t");
    assert_eq!(sockets.each_ref().map(EgressSocket::connections), [1, 1]);
}

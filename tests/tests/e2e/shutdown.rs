//! The daemon goes in good order, and never takes a socket from another that lives.

use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use tokend_client::Options;
use tokend_client::blocking::Client;
use tokend_protocol::{ErrorCode, Reply};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::token_table;
use tokend_tests::{Answer, Gate, Provider, RawPeer, Scene, raw_peer, wait};

#[test]
fn it_ends_when_it_is_told_to_and_takes_its_socket_along() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut scene = Scene::start(Provider::start(), &token_table("t", ""));
        scene.tokenctl().get("t");
        scene.daemon.signal(signal);
        assert_eq!(scene.daemon.wait_for_exit(), 0, "{signal}");
        assert!(!scene.home.socket().exists(), "{signal}");
    }
}

#[test]
fn who_waits_for_a_token_is_answered_before_it_ends() {
    let gate = Gate::new();
    let provider = Provider::start();
    provider.always(Answer::token(600).behind(&gate));
    let mut scene = Scene::start(provider, &token_table("t", ""));
    let mut waiting = RawPeer::connect(scene.socket()).unwrap();
    waiting.send(1, raw_peer::get("t")).unwrap();
    scene.provider.wait_for_requests(1);
    // The version is answered after the first request was taken up.
    waiting.send(2, tokend_protocol::Request::Version).unwrap();
    assert!(matches!(waiting.expect_reply(2), Reply::Version(_)));
    scene.daemon.signal(Signal::SIGTERM);
    wait::until("no further connections", || UnixStream::connect(scene.socket()).is_err().then_some(()));
    gate.open();
    match waiting.expect_reply(1) {
        Reply::Token(_) => (),
        Reply::Error(error) => assert_eq!(error.code, ErrorCode::ShuttingDown),
        other => panic!("a token was expected, not {other:?}"),
    }
    waiting.expect_close_within(wait::PATIENCE);
    assert_eq!(scene.daemon.wait_for_exit(), 0);
}

#[test]
fn a_provider_that_hangs_does_not_hold_it_up() {
    let provider = Provider::start();
    provider.always(Answer::token(60).with_fault(tokend_tests::Fault::HangBeforeHead));
    let mut scene = Scene::start(provider, &token_table("t", ""));
    scene.provider.wait_for_requests(1);
    assert_eq!(scene.daemon.stop(), 0);
}

#[test]
fn an_idle_or_silent_peer_does_not_hold_it_up() {
    let mut scene = Scene::start(Provider::start(), &token_table("t", ""));
    let mut idle = RawPeer::connect(scene.socket()).unwrap();
    idle.assert_alive();
    let _silent = RawPeer::connect(scene.socket()).unwrap();
    let mut half = RawPeer::connect(scene.socket()).unwrap();
    half.write(&[0, 0]).unwrap();
    assert_eq!(scene.daemon.stop(), 0);
    idle.expect_close_within(wait::PATIENCE);
}

#[test]
fn a_second_daemon_takes_no_socket_from_one_that_lives() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let before = scene.tokenctl().get("t");
    let mut second = Launch::new(&scene.home).spawn();
    assert_ne!(second.wait_for_exit(), 0);
    scene.daemon.wait_for_log(&["tokend.sock"]);
    assert_eq!(scene.tokenctl().get("t"), before, "the first is unharmed");
}

#[test]
fn a_dead_socket_is_replaced() {
    let mut scene = Scene::start(Provider::start(), &token_table("t", ""));
    scene.daemon.signal(Signal::SIGKILL);
    assert_eq!(scene.daemon.wait_for_exit(), 128 + 9);
    assert!(scene.home.socket().exists(), "a killed daemon leaves its socket");
    scene.daemon = Launch::new(&scene.home).start();
    scene.tokenctl().get("t");
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let mut scene = Scene::start(Provider::start(), &token_table("t", ""));
    assert_eq!(scene.daemon.stop(), 0);
    std::fs::write(scene.home.socket(), "precious").unwrap();
    let mut second = Launch::new(&scene.home).spawn();
    assert_ne!(second.wait_for_exit(), 0);
    assert_eq!(std::fs::read_to_string(scene.home.socket()).unwrap(), "precious");
}

#[test]
fn a_client_s_next_call_finds_the_daemon_that_took_over() {
    let mut scene = Scene::start(Provider::start(), &token_table("t", ""));
    let client = Client::new(Options::new(scene.socket()));
    let name = "t".parse().unwrap();
    client.get(&name).unwrap();
    assert_eq!(scene.daemon.stop(), 0);
    scene.daemon = Launch::new(&scene.home).start();
    client.get(&name).unwrap();
}

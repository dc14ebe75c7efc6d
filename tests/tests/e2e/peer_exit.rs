//! A connection is worth what the process is that made it, and nothing once that process is gone.

use std::fs;
use std::time::Duration;

use tokend_protocol::Reply;
use tokend_tests::test_support::token_table;
use tokend_tests::tokenctl::User;
use tokend_tests::{Answer, FdDonor, Gate, Provider, Scene, raw_peer, requirement};

const SOCKET: u32 = 61_000;
const ALICE: u32 = 61_001;

/// More than the daemon takes to notice.
const PATIENCE: Duration = tokend_tests::wait::PATIENCE;

fn scene(provider: Provider) -> Scene {
    let group = format!("socket_group = {:?}", SOCKET.to_string());
    Scene::start_with(provider, &group, &token_table("t", &format!("allow = [\"user:{ALICE}\"]")))
}

fn alice() -> User {
    User::new(ALICE).with_groups(&[SOCKET])
}

#[test]
fn a_connection_that_was_given_away_gets_nothing_once_its_maker_is_gone() {
    if !requirement::root() {
        return;
    }
    let scene = scene(Provider::start());
    let (mut donor, mut heir) = FdDonor::start(scene.socket(), &alice());
    assert!(matches!(heir.ask(1, raw_peer::get("t")), Reply::Token(_)), "its maker is there, and may");
    donor.end();
    // Closed before it asks, or because it asks.
    let _ = heir.send(2, raw_peer::get("t"));
    heir.expect_close_with_nothing(PATIENCE);
}

#[test]
fn an_answer_that_was_waited_for_is_not_given_to_an_heir() {
    if !requirement::root() {
        return;
    }
    let provider = Provider::start();
    let gate = Gate::new();
    provider.always(Answer::token(600).behind(&gate));
    let scene = scene(provider);
    let (mut donor, mut heir) = FdDonor::start(scene.socket(), &alice());
    heir.send(1, raw_peer::get("t")).unwrap();
    scene.provider.wait_for_requests(1);
    donor.end();
    gate.open();
    heir.expect_close_with_nothing(PATIENCE);
}

#[test]
fn idle_connections_of_a_process_that_is_gone_free_their_places() {
    if !requirement::root() {
        return;
    }
    let scene = scene(Provider::start());
    let (mut donor, mut heir) = FdDonor::start(scene.socket(), &alice());
    heir.assert_alive();
    donor.end();
    heir.expect_close_with_nothing(PATIENCE);
}

#[test]
fn a_connection_takes_two_descriptors_of_the_daemon_for_as_long_as_it_lasts() {
    if !requirement::root() {
        return;
    }
    let scene = scene(Provider::start());
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", scene.daemon.pid())).unwrap().count();
    scene.tokenctl().as_user(alice()).get("t");
    let before = descriptors();
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let (donor, mut peer) = FdDonor::start(scene.socket(), &alice());
            for id in 1..=3 {
                assert!(matches!(peer.ask(id, raw_peer::get("t")), Reply::Token(_)));
            }
            (donor, peer)
        })
        .collect();
    let taken = descriptors() - before;
    // Two more, if it has just begun to watch the clock and the network.
    assert!(taken <= 2 * callers.len() + 2, "{taken} for {}", callers.len());
}

//! What the daemon tells the service manager, and when.

use nix::sys::signal::Signal;
use tokend_tests::daemon::Launch;
use tokend_tests::notify::Manager;
use tokend_tests::provider::Door;
use tokend_tests::test_support::{provider_table, token_of, token_table};
use tokend_tests::{Answer, Provider, RealDaemon, TestDir};

struct Managed {
    daemon: RealDaemon,
    manager: Manager,
    provider: Provider,
    home: TestDir,
}

fn start(door: Door) -> Managed {
    let (home, provider) = (TestDir::new(), Provider::start());
    provider.set_door(door);
    home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + &token_table("t", "")));
    let manager = Manager::listen(&home.path().join("notify"));
    let daemon =
        Launch::new(&home).env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "1000000").start();
    Managed { daemon, manager, provider, home }
}

#[test]
fn it_is_ready_while_its_provider_hangs() {
    let managed = start(Door::Silent);
    managed.manager.wait_for("READY=1");
    managed.provider.wait_for_connections(1);
    managed.daemon.tokenctl().json(&["status"]);
    managed.manager.wait_for("STATUS=1 token: 1 pending");
}

#[test]
fn the_status_counts_the_tokens_as_they_are() {
    let managed = start(Door::Open);
    managed.manager.wait_for("STATUS=1 token: 1 fresh");
    let (good, bad) = (&managed.provider, Provider::start());
    bad.always(Answer::refusal(401, "invalid_client"));
    let home = &managed.home;
    home.configure(
        "",
        &[
            provider_table(home, "p", &good.token_endpoint(), ""),
            provider_table(home, "bad", &bad.token_endpoint(), ""),
            token_table("t", ""),
            token_table("u", ""),
            token_of("bad", "v", ""),
        ]
        .concat(),
    );
    managed.daemon.signal(Signal::SIGHUP);
    managed.manager.wait_for("STATUS=3 tokens: 2 fresh, 1 needs-operator");
}

#[test]
fn the_watchdog_is_fed_again_and_again() {
    let managed = start(Door::Open);
    tokend_tests::wait::until("three beats", || {
        let beats = managed.manager.heard().iter().filter(|line| *line == "WATCHDOG=1").count();
        (beats >= 3).then_some(())
    });
}

#[test]
fn a_reload_is_announced_and_ended_even_when_it_fails() {
    let managed = start(Door::Open);
    managed.manager.wait_for("READY=1");
    managed.daemon.signal(Signal::SIGHUP);
    managed.manager.wait_for("RELOADING=1");
    assert!(managed.manager.wait_for("MONOTONIC_USEC=").len() > 1);
    wait_for_ready(&managed.manager, 2);
    std::fs::write(managed.home.config(), "not toml [").unwrap();
    managed.daemon.signal(Signal::SIGHUP);
    wait_for_ready(&managed.manager, 3);
}

fn wait_for_ready(manager: &Manager, times: usize) {
    tokend_tests::wait::until("the end of the reload", || {
        (manager.heard().iter().filter(|line| *line == "READY=1").count() >= times).then_some(())
    });
}

#[test]
fn its_end_is_announced() {
    let mut managed = start(Door::Open);
    managed.manager.wait_for("READY=1");
    assert_eq!(managed.daemon.stop(), 0);
    managed.manager.wait_for("STOPPING=1");
}

#[test]
fn it_is_not_ready_with_a_bad_configuration() {
    let home = TestDir::new();
    home.configure("", "[token.t]\nprovider = \"none\"\n");
    let manager = Manager::listen(&home.path().join("notify"));
    let mut daemon = Launch::new(&home).env("NOTIFY_SOCKET", manager.path()).spawn();
    assert_ne!(daemon.wait_for_exit(), 0);
    assert!(!manager.heard().iter().any(|line| line == "READY=1"));
    daemon.wait_for_log(&["tokend.toml", "token.t.provider"]);
}

//! A reload takes over the whole new configuration or nothing of it, and costs what did not change nothing.

use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use tokend_tests::daemon::Launch;
use tokend_tests::notify::Manager;
use tokend_tests::scene::{provider_table, token_table};
use tokend_tests::{Home, Provider, Scene, wait};

/// Waits until a token can be had: the reload that brings it is over.
fn wait_for_token(scene: &Scene, name: &str) -> String {
    wait::until(&format!("the token {name}"), || {
        let got = scene.tokenctl().run(&["get", name]);
        (got.code == 0).then(|| got.stdout.trim_end().to_owned())
    })
}

fn reload_failed_at(scene: &Scene) -> Value {
    scene.tokenctl().json(&["status"])["daemon"]["reload_failed_at"].clone()
}

#[test]
fn what_did_not_change_keeps_its_token_and_asks_for_nothing() {
    let scene =
        Scene::start(Provider::start(), &(token_table("kept", "") + &token_table("gone", "scope = \"g\"")));
    let (kept, _gone) = (scene.tokenctl().get("kept"), scene.tokenctl().get("gone"));
    assert_eq!(scene.provider.count(), 2);
    scene.reconfigure(
        "",
        &(token_table("kept", "allow = [\"user:61001\"]") + &token_table("new", "scope = \"n\"")),
    );
    scene.daemon.signal(Signal::SIGHUP);
    let new = wait_for_token(&scene, "new");
    assert_ne!(new, kept);
    assert_eq!(scene.tokenctl().get("kept"), kept);
    scene.tokenctl().run(&["get", "gone"]).expect_code(5);
    let scopes: Vec<Option<String>> =
        scene.provider.requests().iter().map(|request| request.field("scope")).collect();
    assert_eq!(scopes.len(), 3, "one request for the new token, none for the kept: {scopes:?}");
    assert_eq!(scopes[2].as_deref(), Some("n"));
}

#[test]
fn a_changed_credential_is_asked_for_again() {
    let scene = Scene::start(Provider::start(), &token_table("t", "scope = \"one\""));
    let before = scene.tokenctl().get("t");
    scene.reconfigure("", &token_table("t", "scope = \"two\""));
    scene.daemon.signal(Signal::SIGHUP);
    scene.provider.wait_for_requests(2);
    wait::until("the new token", || (scene.tokenctl().get("t") != before).then_some(()));
    assert_eq!(scene.provider.requests()[1].field("scope").as_deref(), Some("two"));
}

#[test]
fn a_bad_configuration_changes_nothing_and_says_why() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let before = scene.tokenctl().get("t");
    assert_eq!(reload_failed_at(&scene), Value::Null);
    let bad = token_table("new", "scope = \"n\"") + &token_table("worse", "scop = \"x\"");
    scene.reconfigure("", &bad);
    scene.daemon.signal(Signal::SIGHUP);
    wait::until("the failure in the status", || (reload_failed_at(&scene) != Value::Null).then_some(()));
    scene.daemon.wait_for_log(&["tokend.toml:", "token.worse.scop"]);
    assert_eq!(scene.tokenctl().get("t"), before, "what was removed is still there");
    scene.tokenctl().run(&["get", "new"]).expect_code(5);
    assert_eq!(scene.provider.count(), 1);

    scene.reconfigure("", &(token_table("t", "") + &token_table("new", "scope = \"n\"")));
    scene.daemon.signal(Signal::SIGHUP);
    wait_for_token(&scene, "new");
    assert_eq!(scene.tokenctl().get("t"), before);
    assert_eq!(reload_failed_at(&scene), Value::Null, "a good reload ends the alarm");
}

#[test]
fn a_configuration_that_is_gone_changes_nothing() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let before = scene.tokenctl().get("t");
    std::fs::remove_file(scene.home.config()).unwrap();
    scene.daemon.signal(Signal::SIGHUP);
    wait::until("the failure in the status", || (reload_failed_at(&scene) != Value::Null).then_some(()));
    assert_eq!(scene.tokenctl().get("t"), before);
}

#[test]
fn many_reloads_in_a_row_lose_nothing() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let before = scene.tokenctl().get("t");
    for round in 0..20 {
        let name = format!("round-{round}");
        scene.reconfigure("", &(token_table("t", "") + &token_table(&name, "")));
        scene.daemon.signal(Signal::SIGHUP);
        assert_eq!(scene.tokenctl().get("t"), before);
    }
    assert_eq!(wait_for_token(&scene, "round-19"), before, "the same credential by another name");
    assert_eq!(scene.provider.count(), 1);
}

#[test]
fn a_configuration_that_hangs_holds_up_nothing_else() {
    let (home, provider) = (Home::new(), Provider::start());
    home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + &token_table("t", "")));
    let manager = Manager::listen(&home.path().join("notify"));
    let mut daemon =
        Launch::new(&home).env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "1000000").start();
    let mut drop_ins = home.config().into_os_string();
    drop_ins.push(".d");
    std::fs::create_dir_all(&drop_ins).unwrap();
    // Whoever opens it to read waits for somebody who writes.
    mkfifo(&Path::new(&drop_ins).join("never.toml"), Mode::S_IRUSR).unwrap();
    daemon.signal(Signal::SIGHUP);
    let beats = || manager.heard().iter().filter(|line| *line == "WATCHDOG=1").count();
    manager.wait_for("RELOADING=1");
    let before = beats();
    wait::until("three beats during the reload", || (beats() >= before + 3).then_some(()));
    daemon.tokenctl().get("t");
    assert_eq!(manager.heard().iter().filter(|line| *line == "READY=1").count(), 1, "it hangs still");
    assert_eq!(daemon.stop(), 0);
}

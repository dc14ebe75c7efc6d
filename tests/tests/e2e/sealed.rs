//! Tokens that survive a reboot: sealed on the disk under a key that the operator gives.

use std::fs;
use std::path::PathBuf;

use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Provider, RealDaemon, TestDir, secrets};

/// A daemon without a service manager, as after a reboot each time.
struct Host {
    home: TestDir,
    provider: Provider,
}

impl Host {
    fn new() -> Self {
        let host = Self { home: TestDir::new(), provider: Provider::start() };
        host.home.secret("state-key", &secrets::invent("state-key-of-enough-bytes"));
        host.configure("state-key", &token_table("t", ""));
        host
    }

    fn configure(&self, state_key: &str, tokens: &str) {
        let state_key = self.home.path().join(state_key);
        let state_key = format!("state_key = {{ file = \"{}\" }}", state_key.display());
        let table = provider_table(&self.home, "p", &self.provider.token_endpoint(), "");
        self.home.configure(&state_key, &(table + tokens));
    }

    /// What `get` prints of each token, of a daemon that is then killed.
    fn tokens(&self, names: &[&str]) -> Vec<String> {
        let daemon = RealDaemon::start(&self.home);
        let tokens = names.iter().map(|name| daemon.tokenctl().get(name)).collect();
        daemon.kill();
        tokens
    }

    fn files(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(self.home.path().join("state/tokens")).unwrap();
        let mut files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

#[test]
fn a_token_survives_a_reboot_and_is_on_the_disk_for_nobody_to_read() {
    let host = Host::new();
    host.configure("state-key", &(token_table("t", "") + &token_table("u", "scope = \"a\"")));
    let before = host.tokens(&["t", "u"]);
    assert_eq!(host.tokens(&["t", "u"]), before);
    assert_eq!(host.provider.count(), 2);
    for file in host.files() {
        secrets::assert_absent("a sealed file", &String::from_utf8_lossy(&fs::read(file).unwrap()));
    }
    let daemon = RealDaemon::start(&host.home);
    let status = daemon.tokenctl().json(&["status"]);
    let fact = status["daemon"]["attributes"]["reboot"].as_str().unwrap();
    assert!(fact.starts_with("tokens are sealed in /"), "{fact}");
}

#[test]
fn another_state_key_costs_a_request_and_no_file() {
    let host = Host::new();
    let before = host.tokens(&["t"]);
    host.home.secret("other-key", &secrets::invent("another-state-key-of-enough-bytes"));
    host.configure("other-key", &token_table("t", ""));
    assert_ne!(host.tokens(&["t"]), before);
    let log = fs::read_to_string(host.home.log()).unwrap();
    assert!(log.contains("do not open with this state key"), "{log}");
    host.configure("state-key", &token_table("t", ""));
    assert_eq!(host.tokens(&["t"]), before, "what the first key sealed is still there");
    assert_eq!(host.provider.count(), 2);
}

#[test]
fn without_its_state_key_the_daemon_serves_and_says_what_to_do() {
    let host = Host::new();
    host.home.secret("short-key", "too short");
    for (key, told) in [("missing-key", "missing-key: cannot be read"), ("short-key", "has 9 bytes")] {
        host.configure(key, &token_table("t", ""));
        let daemon = RealDaemon::start(&host.home);
        daemon.tokenctl().get("t");
        daemon.wait_for_log(&["daemon.state_key", told, "then restart the daemon"]);
        let status = daemon.tokenctl().json(&["status"]);
        let fact = status["daemon"]["attributes"]["reboot"].as_str().unwrap();
        assert!(fact.contains(told), "{fact}");
    }
    assert!(!host.home.path().join("state/tokens").exists(), "nothing is written unsealed");
}

#[test]
fn a_file_that_was_tampered_with_is_named_and_moved_aside() {
    let host = Host::new();
    let before = host.tokens(&["t"]);
    for file in host.files() {
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let daemon = RealDaemon::start(&host.home);
    let after = daemon.tokenctl().get("t");
    assert_ne!(vec![after.clone()], before);
    daemon.wait_for_log(&["is damaged; it is not used", ".damaged"]);
    let status = daemon.tokenctl().json(&["status"]);
    let fact = status["daemon"]["attributes"]["damaged-files"].as_str().unwrap();
    assert!(fact.starts_with("2 found since the start"), "that of the fingerprints' key too: {fact}");
    daemon.kill();
    assert!(host.files().iter().any(|file| file.extension().is_some_and(|end| end == "damaged")));
    assert_eq!(host.tokens(&["t"]), [after], "what was written in its place is whole");
    assert_eq!(host.provider.count(), 2);
}

#[test]
fn the_file_of_a_token_that_is_not_configured_any_more_goes() {
    let host = Host::new();
    host.configure("state-key", &(token_table("t", "") + &token_table("u", "scope = \"a\"")));
    host.tokens(&["t", "u"]);
    let all = host.files().len();
    host.configure("state-key", &token_table("t", ""));
    let daemon = RealDaemon::start(&host.home);
    tokend_tests::wait::until("the end of the file", || (host.files().len() == all - 1).then_some(()));
    daemon.kill();
    host.configure("state-key", &(token_table("t", "") + &token_table("u", "scope = \"a\"")));
    host.tokens(&["t", "u"]);
    assert_eq!(host.provider.count(), 3, "it was asked for again, and the other was not");
}

#[test]
fn a_state_directory_that_cannot_be_written_delays_and_refuses_nobody() {
    let host = Host::new();
    // A file where the folder should be.
    fs::write(host.home.path().join("state/tokens"), b"").unwrap();
    let daemon = RealDaemon::start(&host.home);
    daemon.tokenctl().get("t");
    daemon.wait_for_log(&["a reboot would lose tokens", "state/tokens", "daemon.state_dir"]);
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    assert_eq!(
        daemon.log().matches("a reboot would lose tokens").count(),
        1,
        "told once, not at every renewal"
    );
    fs::remove_file(host.home.path().join("state/tokens")).unwrap();
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    daemon.wait_for_log(&["tokens are kept for a reboot again"]);
}

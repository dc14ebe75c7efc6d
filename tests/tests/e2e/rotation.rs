//! A client secret is replaced, in whatever order, and nobody has to tell the daemon.

use std::fs;
use std::sync::{Arc, Mutex};

use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Answer, Provider, RealDaemon, TestDir, secrets, wait};

/// A provider that takes one secret and refuses the client with any other, and a daemon with the sources
/// `first.secret` and `second.secret`.
struct Rotation {
    daemon: RealDaemon,
    provider: Provider,
    home: TestDir,
    valid: Arc<Mutex<String>>,
}

impl Rotation {
    /// Starts with these secrets, of which the provider takes `valid`.
    fn start(first: &str, second: &str, valid: &str) -> Self {
        let home = TestDir::new();
        let sources =
            format!("[{}, {}]", home.secret("first.secret", first), home.secret("second.secret", second));
        let (provider, valid) = provider_that_takes(valid);
        let table = format!(
            "[provider.p]\ntoken_endpoint = {:?}\nclient_id = \"client\"\nclient_secret = {sources}\n{}",
            provider.token_endpoint(),
            token_table("t", "")
        );
        home.configure(
            "",
            &table.replace("[token", "token_endpoint_auth_method = \"client_secret_post\"\n[token"),
        );
        Self { daemon: Launch::new(&home).start(), provider, home, valid }
    }

    fn provider_takes(&self, secret: &str) {
        secret.clone_into(&mut self.valid.lock().unwrap());
    }

    fn refresh(&self) {
        self.daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    }

    /// What was sent since the last look, each secret by its name.
    fn sent_after(&self, requests: usize, names: &[(&str, &str)]) -> Vec<String> {
        let sent = self.provider.requests().into_iter().skip(requests);
        let name = |secret: String| {
            names
                .iter()
                .find(|(_, text)| *text == secret)
                .map_or("?".to_owned(), |(name, _)| (*name).to_owned())
        };
        sent.map(|request| name(request.field("client_secret").unwrap_or_default())).collect()
    }
}

fn provider_that_takes(secret: &str) -> (Provider, Arc<Mutex<String>>) {
    let valid = Arc::new(Mutex::new(secret.to_owned()));
    let known = Arc::clone(&valid);
    let provider = Provider::start_answering(move |request| {
        let right = request.field("client_secret").as_deref() == Some(known.lock().unwrap().as_str());
        if right { Answer::token(3600) } else { Answer::refusal(401, "invalid_client") }
    });
    (provider, valid)
}

#[test]
fn of_overlapping_secrets_the_one_that_works_is_used_and_status_says_which() {
    let (new, old) = (secrets::invent("new-secret"), secrets::invent("old-secret"));
    let names = [("new", new.as_str()), ("old", old.as_str())];
    let rotation = Rotation::start(&new, &old, &old);
    let tokenctl = rotation.daemon.tokenctl();
    tokenctl.get("t");
    assert_eq!(rotation.sent_after(0, &names), ["new", "old"]);
    let status = tokenctl.status_of("t");
    assert_eq!(status["requests"], 2, "{status:#}");
    assert_eq!(
        status["attributes"]["client-secret"],
        "the second of 2 is in use; the first is refused or cannot be read"
    );

    rotation.refresh();
    assert_eq!(rotation.sent_after(2, &names), ["old"], "the one that worked is remembered");

    rotation.provider_takes(&new);
    rotation.refresh();
    assert_eq!(rotation.sent_after(3, &names), ["old", "new"]);
    rotation.refresh();
    assert_eq!(rotation.sent_after(5, &names), ["new"]);
    let status = tokenctl.status_of("t");
    assert_eq!(status["attributes"]["client-secret"], serde_json::Value::Null, "{status:#}");
}

#[test]
fn a_secret_of_several_that_is_not_there_yet_is_passed_over() {
    let (new, old) = (secrets::invent("new-secret"), secrets::invent("old-secret"));
    let rotation = Rotation::start(&new, &old, &old);
    fs::remove_file(rotation.home.path().join("first.secret")).unwrap();
    rotation.refresh();
    rotation.refresh();
    let requests = rotation.provider.count();
    rotation.provider_takes(&new);
    let refused = rotation.daemon.tokenctl().run(&["refresh", "t"]);
    assert_eq!(refused.code, 7, "{}", refused.stderr);
    assert_eq!(rotation.provider.count(), requests + 1, "one round and no more");
    let status = rotation.daemon.tokenctl().status_of("t");
    assert_eq!(status["last_error"]["class"], "refused", "{status:#}");
    assert_eq!(status["state"], "degraded", "the token is still served: {status:#}");
}

#[test]
fn a_refusal_of_another_kind_is_not_tried_with_the_next_secret() {
    let (new, old) = (secrets::invent("new-secret"), secrets::invent("old-secret"));
    let rotation = Rotation::start(&new, &old, &new);
    rotation.daemon.tokenctl().get("t");
    rotation.provider.always(Answer::refusal(400, "invalid_scope"));
    assert_ne!(rotation.daemon.tokenctl().run(&["refresh", "t"]).code, 0);
    assert_eq!(rotation.provider.count(), 2);
}

#[test]
fn a_secret_file_that_is_put_right_brings_the_token_without_anybody_asking() {
    let home = TestDir::new();
    let (wrong, right) = (secrets::invent("wrong-secret"), secrets::invent("right-secret"));
    let (provider, _) = provider_that_takes(&right);
    let _ = home.secret("p.secret", &wrong);
    home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + &token_table("t", "")));
    let daemon = Launch::new(&home).start();
    wait::until("the refusal in the status", || {
        (daemon.tokenctl().status_of("t")["last_error"]["class"] == "refused").then_some(())
    });
    let status = daemon.tokenctl().status_of("t");
    let _ = home.secret("p.secret", &right);
    // Its own back-off after a refusal is longer than anything waits here.
    let renewed = wait::until("the token", || {
        let status = daemon.tokenctl().status_of("t");
        (status["state"] == "fresh").then_some(status)
    });
    assert_eq!(renewed["requests"], status["requests"].as_u64().unwrap() + 1, "{renewed:#}");
}

/// Real servers answer so to a wrong secret.
#[test]
fn a_refusal_without_a_code_lets_the_second_secret_be_tried() {
    for status in [400, 401, 403] {
        let (new, old) = (secrets::invent("new-secret"), secrets::invent("old-secret"));
        let rotation = Rotation::start(&new, &old, &old);
        let right = Some(old.clone());
        rotation.provider.answer_with(move |request| {
            let is_right = request.field("client_secret") == right;
            if is_right { Answer::token(3600) } else { Answer::status(status) }
        });
        rotation.refresh();
        let used = rotation.daemon.tokenctl().status_of("t")["attributes"]["client-secret"].clone();
        assert!(used.as_str().is_some_and(|used| used.starts_with("the second of 2")), "{status}: {used}");
    }
}

//! A token is there when it is asked for, whatever the provider does.

use std::fs;
use std::time::Duration;

use tokend_protocol::{Reply, Request};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_of, token_table};
use tokend_tests::{Answer, Fault, Gate, Provider, RawPeer, Scene, TestDir, raw_peer, secrets, wait};

#[test]
fn a_token_is_renewed_before_it_expires() {
    const LIFETIME: u64 = 6;
    let provider = Provider::start_answering(|_| Answer::token(LIFETIME));
    let scene = Scene::start(provider, &token_table("t", ""));
    let first = scene.tokenctl().get("t");
    let requests = scene.provider.wait_for_requests(2);
    let apart = requests[1].at - requests[0].at;
    assert!(apart < Duration::from_secs(LIFETIME), "renewed only after {apart:?}");
    wait::until("the new token", || (scene.tokenctl().get("t") != first).then_some(()));
}

#[test]
fn a_token_far_from_its_expiry_is_not_asked_for_again() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let tokens: Vec<String> = (0..5).map(|_| scene.tokenctl().get("t")).collect();
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(scene.provider.count(), 1);
}

/// What a provider does from its second request on, and the class that the status then names.
fn failures() -> Vec<(&'static str, Answer, &'static str)> {
    vec![
        ("server-error", Answer::status(500), "server"),
        ("unavailable", Answer::refusal(503, "temporarily_unavailable"), "server"),
        ("throttled", Answer::status(429).with_header("Retry-After", "1"), "throttled"),
        ("wrong-client", Answer::refusal(401, "invalid_client"), "refused"),
        ("wrong-grant", Answer::refusal(400, "unauthorized_client"), "refused"),
        ("forbidden", Answer::status(403), "refused"),
        ("html", Answer::status(200).with_body("text/html", "<html>sign in</html>"), "malformed"),
        ("empty", Answer::status(200), "malformed"),
        ("reset", Answer::token(60).with_fault(Fault::ResetBeforeHead), "unreachable"),
        ("hang", Answer::token(60).with_fault(Fault::HangBeforeHead), "timeout"),
    ]
}

#[test]
fn no_error_takes_a_valid_token_away() {
    let home = TestDir::new();
    let failures = failures();
    let mut text = String::new();
    let mut providers = Vec::new();
    for (name, failure, _) in &failures {
        let provider = Provider::start();
        provider.then(Answer::token(40));
        provider.always(failure.clone());
        text.push_str(&provider_table(&home, name, &provider.token_endpoint(), ""));
        text.push_str(&token_of(name, name, "refresh_before = \"39s\""));
        providers.push(provider);
    }
    home.configure("", &text);
    let daemon = Launch::new(&home).start();
    let tokenctl = daemon.tokenctl();
    let first: Vec<String> = failures.iter().map(|(name, ..)| tokenctl.get(name)).collect();
    for (index, (name, _, class)) in failures.iter().enumerate() {
        let status = wait::until(&format!("a failure of {name} in the status"), || {
            let status = tokenctl.status_of(name);
            (!status["last_error"].is_null()).then_some(status)
        });
        assert_eq!(status["last_error"]["class"], *class, "{name}: {status:#}");
        assert_eq!(status["state"], "degraded", "{name}: {status:#}");
        assert_eq!(tokenctl.get(name), first[index], "{name}: the token is still served");
    }
}

#[test]
fn an_unreachable_provider_takes_no_valid_token_away() {
    let home = TestDir::new();
    let provider = Provider::start_answering(|_| Answer::token(40));
    let text = provider_table(&home, "p", &provider.token_endpoint(), "");
    home.configure("", &(text + &token_table("t", "refresh_before = \"39s\"")));
    let daemon = Launch::new(&home).start();
    let first = daemon.tokenctl().get("t");
    drop(provider);
    let status = wait::until("a failure in the status", || {
        let status = daemon.tokenctl().status_of("t");
        (!status["last_error"].is_null()).then_some(status)
    });
    assert_eq!(status["last_error"]["class"], "unreachable");
    assert_eq!(daemon.tokenctl().get("t"), first);
}

#[test]
fn what_is_held_does_not_wait_behind_what_is_not_on_the_same_connection() {
    let gate = Gate::new();
    let provider = Provider::start();
    provider.always(Answer::token(3600).behind(&gate));
    let scene = Scene::start(provider, &token_table("t", ""));
    let mut peer = RawPeer::connect(scene.socket()).unwrap();
    for id in 1..=1000 {
        peer.send(id, raw_peer::get("t")).unwrap();
    }
    assert!(matches!(peer.ask(1001, Request::Version), Reply::Version(_)));
    gate.open();
    assert!((0..1000).all(|_| matches!(peer.receive().unwrap().unwrap().unwrap().message, Reply::Token(_))));
}

#[test]
fn a_thousand_callers_at_once_cost_the_provider_one_request() {
    let gate = Gate::new();
    let provider = Provider::start();
    provider.always(Answer::token(3600).behind(&gate));
    let limits = "max_connections = 1200\nmax_connections_per_uid = 1100";
    let scene = Scene::start_with(provider, limits, &token_table("t", ""));
    let mut peers: Vec<RawPeer> = (0..1000).map(|_| RawPeer::connect(scene.socket()).unwrap()).collect();
    for peer in &mut peers {
        peer.send(1, raw_peer::get("t")).unwrap();
    }
    // Whoever is answered the second request has had the first taken up: all of them wait now.
    for peer in &mut peers {
        assert!(matches!(peer.ask(2, Request::Version), Reply::Version(_)));
    }
    scene.provider.wait_for_requests(1);
    gate.open();
    let mut tokens = Vec::new();
    for peer in &mut peers {
        match peer.expect_reply(1) {
            Reply::Token(reply) => tokens.push(reply.token),
            other => panic!("a token was expected, not {other:?}"),
        }
    }
    assert_eq!(tokens.len(), 1000);
    assert!(tokens.iter().all(|token| *token == tokens[0]), "all have the same token");
    assert_eq!(scene.provider.count(), 1, "exactly one request reached the provider");
}

#[test]
fn a_script_can_wait_for_the_first_token() {
    let gate = Gate::new();
    let provider = Provider::start();
    provider.always(Answer::token(3600).behind(&gate));
    let scene = Scene::start(provider, &token_table("t", ""));
    scene.tokenctl().run(&["wait", "t", "--for", "valid", "--deadline", "100ms"]).expect_code(8);
    let tokenctl = scene.tokenctl();
    let waiting =
        std::thread::spawn(move || tokenctl.run(&["wait", "t", "--for", "fresh", "--deadline", "50s"]));
    gate.open();
    assert_eq!(waiting.join().unwrap().expect_success(), "");
    scene.tokenctl().get("t");
    assert_eq!(scene.provider.count(), 1);
}

#[test]
fn two_names_for_one_credential_share_its_token() {
    let tokens = token_table("a", "scope = \"x y\"") + &token_table("b", "scope = \"y x\"");
    let scene = Scene::start(Provider::start(), &tokens);
    assert_eq!(scene.tokenctl().get("a"), scene.tokenctl().get("b"));
    assert_eq!(scene.provider.count(), 1);
}

#[test]
fn retry_after_is_honoured_and_the_caller_gets_the_token_in_the_end() {
    let provider = Provider::start();
    provider.then(Answer::status(429).with_header("Retry-After", "2"));
    let scene = Scene::start(provider, &token_table("t", ""));
    let first = scene.provider.wait_for_requests(1);
    let token = wait::until("a token", || {
        let got = scene.tokenctl().run(&["get", "t"]);
        assert!(matches!(got.code, 0 | 6), "{}", got.stderr);
        (got.code == 0).then_some(got.stdout)
    });
    assert!(!token.is_empty());
    let requests = scene.provider.requests();
    let waited = requests[1].at - first[0].at;
    assert!(waited >= Duration::from_secs(2), "asked again after {waited:?}");
    assert_eq!(requests.len(), 2, "and once only");
}

#[test]
fn a_rotated_secret_is_used_without_a_restart() {
    let home = TestDir::new();
    let (old, new) = (secrets::invent("old-secret"), secrets::invent("new-secret"));
    let valid = std::sync::Arc::new(std::sync::Mutex::new(old.clone()));
    let known = std::sync::Arc::clone(&valid);
    let provider = Provider::start_answering(move |request| {
        let right = request.field("client_secret").as_deref() == Some(known.lock().unwrap().as_str());
        if right { Answer::token(3600) } else { Answer::refusal(401, "invalid_client") }
    });
    let _ = home.secret("p.secret", &old);
    home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + &token_table("t", "")));
    let daemon = Launch::new(&home).start();
    let before = daemon.tokenctl().get("t");
    valid.lock().unwrap().clone_from(&new);
    let _ = home.secret("p.secret", &new);
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    assert_ne!(daemon.tokenctl().get("t"), before);
}

#[test]
fn a_secret_that_cannot_be_read_takes_no_valid_token_away() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let before = scene.tokenctl().get("t");
    fs::remove_file(scene.home.path().join("p.secret")).unwrap();
    let refreshed = scene.tokenctl().run(&["refresh", "t"]);
    assert_ne!(refreshed.code, 0);
    assert_eq!(scene.tokenctl().status_of("t")["last_error"]["class"], "secret");
    assert_eq!(scene.tokenctl().get("t"), before);
    assert_eq!(scene.provider.count(), 1, "nothing is sent without the secret");
}

#[test]
fn a_rejected_token_is_replaced_once() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let before = scene.tokenctl().get("t");
    let outcome = scene.tokenctl().run(&["reject", "t"]);
    assert!(outcome.code == 0 || outcome.code == 6, "{}", outcome.stderr);
    let count = scene.provider.count();
    assert!(count <= 2, "one rejection asks at most once: {count}");
    if count == 2 {
        assert_ne!(scene.tokenctl().get("t"), before);
    } else {
        assert_eq!(scene.tokenctl().get("t"), before, "it is too new to be given up");
    }
}

//! Keys and tokens of others in place of a client secret.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::token_table;
use tokend_tests::{Answer, Authority, Identity, Provider, RealDaemon, Recorded, TestDir, program, secrets};

/// A private key of the daemon's own tests, written and registered to be searched for: its source in the configuration.
fn key(home: &TestDir, file: &str) -> String {
    let folder = program::workspace().join("daemon/src/signing_key/tests");
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    for line in text.lines().filter(|line| line.len() > 40 && !line.starts_with('-')) {
        secrets::register("private-key", line);
    }
    home.secret(file, &text)
}

fn start(home: &TestDir, provider: &Provider, lines: &str) -> RealDaemon {
    let endpoint = provider.token_endpoint();
    let table = format!("[provider.p]\ntoken_endpoint = {endpoint:?}\nclient_id = \"my client\"\n{lines}\n");
    home.configure("", &(table + &token_table("t", "")));
    Launch::new(home).start()
}

/// The header and the claims of the assertion in a request.
fn assertion(request: &Recorded) -> [Value; 2] {
    let assertion = request.field("client_assertion").expect("the request has an assertion");
    secrets::register("assertion", &assertion);
    let parts: Vec<&str> = assertion.split('.').take(2).collect();
    let decoded = |part: &str| serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    [decoded(parts[0]), decoded(parts[1])]
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

#[test]
fn the_request_has_an_assertion_in_place_of_a_secret() {
    let (home, provider) = (TestDir::new(), Provider::start());
    let passphrase = home.secret("passphrase", "swordfish");
    let lines = format!(
        "private_key = {}\nprivate_key_passphrase = {passphrase}\nprivate_key_id = \"k1\"",
        key(&home, "p256.encrypted.pem")
    );
    let daemon = start(&home, &provider, &lines);
    daemon.tokenctl().get("t");
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    let requests = provider.requests();
    let mut ids = Vec::new();
    for request in &requests {
        assert_eq!(
            request.field("client_assertion_type").as_deref(),
            Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
        );
        assert_eq!(request.field("client_id").as_deref(), Some("my client"));
        assert_eq!((request.field("client_secret"), request.header("authorization")), (None, None));
        let [header, claims] = assertion(request);
        assert_eq!(header, json!({ "alg": "ES256", "typ": "JWT", "kid": "k1" }));
        assert_eq!(
            [&claims["iss"], &claims["sub"], &claims["aud"]],
            ["my client", "my client", &*provider.token_endpoint()]
        );
        ids.push(claims["jti"].clone());
    }
    assert_eq!(requests.len(), 2);
    assert_ne!(ids[0], ids[1], "each assertion is new");
    // What the harness searches at the end of a test has the key, the passphrase and the assertions now.
}

#[test]
fn an_assertion_is_made_by_the_providers_clock() {
    let (home, hour) = (TestDir::new(), Duration::from_secs(3600));
    let provider = Provider::start_answering(move |request| {
        let [_, claims] = assertion(request);
        let ahead = now() + hour;
        let issued_at = Duration::from_secs(claims["iat"].as_u64().unwrap());
        let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + ahead);
        let answer = if issued_at.abs_diff(ahead) > Duration::from_secs(600) {
            Answer::refusal(401, "invalid_client")
        } else {
            Answer::token(3600)
        };
        answer.with_header("Date", &date)
    });
    let lines = format!("private_key = {}", key(&home, "ed25519.pkcs8.pem"));
    let daemon = start(&home, &provider, &lines);
    daemon.tokenctl().get("t");
    assert_eq!(provider.count(), 2, "the first assertion was refused, and the second one knew the time");
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    assert_eq!(provider.count(), 3, "from then on the time is known");
}

#[test]
fn the_clock_of_a_gateway_keeps_no_token_from_being_renewed() {
    let home = TestDir::new();
    let provider = Provider::start_answering(move |request| {
        let [_, claims] = assertion(request);
        let issued_at = Duration::from_secs(claims["iat"].as_u64().unwrap());
        let is_right = issued_at.abs_diff(now()) < Duration::from_secs(600);
        let answer = if is_right { Answer::token(3600) } else { Answer::refusal(401, "invalid_client") };
        let of_gateway = SystemTime::now() - Duration::from_secs(3600);
        answer.with_header("Date", &httpdate::fmt_http_date(of_gateway))
    });
    let lines = format!("private_key = {}", key(&home, "ed25519.pkcs8.pem"));
    let daemon = start(&home, &provider, &lines);
    daemon.tokenctl().get("t");
    for _ in 0..3 {
        daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    }
    assert_eq!(provider.count(), 4, "each assertion was accepted");
}

#[test]
fn a_server_that_wants_a_certificate_refuses_the_client_and_is_not_down() {
    let (home, authority) = (TestDir::new(), Authority::new());
    let provider = Provider::start_tls(authority.server_for_clients());
    let own = Identity::self_signed("client.example").configure(&home, "client");
    let ca_file = authority.ca_file();
    let secret = home.secret("p.secret", &secrets::invent("client-secret"));
    let daemon = start(&home, &provider, &format!("client_secret = {secret}\nca_file = {ca_file:?}\n{own}"));
    let refused = daemon.tokenctl().run(&["get", "t"]).expect_code(7);
    assert!(refused.contains("does not accept the client certificate"), "{refused}");
    assert_eq!(daemon.tokenctl().status_of("t")["last_error"]["class"], "refused");
    authority.issue("client.example").configure(&home, "client");
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    let authorization = provider.requests()[0].header("authorization").map(str::to_owned);
    assert!(authorization.is_some_and(|value| value.starts_with("Basic ")), "the secret is sent too");
}

#[test]
fn a_key_that_cannot_sign_is_an_operators_matter_and_named_to_operators() {
    let (home, provider) = (TestDir::new(), Provider::start());
    let lines = format!("private_key = {}\nsigning_alg = \"ES256\"", key(&home, "p384.sec1.pem"));
    let daemon = start(&home, &provider, &lines);
    daemon.tokenctl().run(&["get", "t"]).expect_code(7);
    assert_eq!(provider.count(), 0, "nothing is sent without an assertion");
    let status = daemon.tokenctl().status_of("t");
    assert_eq!(status["last_error"]["class"], "secret", "{status}");
    let message = status["last_error"]["message"].as_str().unwrap();
    assert!(message.contains("a key on P-384 cannot sign with ES256; expected ES384"), "{message}");
    // Another key is read at the next attempt.
    let pem =
        std::fs::read_to_string(program::workspace().join("daemon/src/signing_key/tests/p256.sec1.pem"))
            .unwrap();
    home.secret("p384.sec1.pem", &pem);
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
}

#[test]
fn an_assertion_that_is_made_elsewhere_is_sent_as_it_is_at_each_request() {
    let (home, provider) = (TestDir::new(), Provider::start());
    let lines = format!(
        "client_assertion = {}\nclient_assertion_type = \"urn:example:spiffe\"",
        home.secret("svid", &secrets::invent("first-svid"))
    );
    let daemon = start(&home, &provider, &lines);
    daemon.tokenctl().get("t");
    let second = secrets::invent("second-svid");
    home.secret("svid", &second);
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    let requests = provider.requests();
    let sent: Vec<_> = requests.iter().map(|request| request.field("client_assertion").unwrap()).collect();
    assert!(sent[0].contains("first-svid") && sent[1] == second, "{}", sent.len());
    assert_eq!(requests[0].field("client_assertion_type").as_deref(), Some("urn:example:spiffe"));
}

#[test]
fn a_token_is_exchanged_for_another_one() {
    let (home, provider) = (TestDir::new(), Provider::start());
    let subject = home.secret("subject", &secrets::invent("subject-token"));
    let endpoint = provider.token_endpoint();
    let exchange = format!(
        "grant_type = \"urn:ietf:params:oauth:grant-type:token-exchange\"\nsubject_token = {subject}\n\
         subject_token_type = \"urn:ietf:params:oauth:token-type:access_token\"\naudience = \"api\""
    );
    let table = format!(
        "[provider.p]\ntoken_endpoint = {endpoint:?}\nclient_id = \"c\"\ntoken_endpoint_auth_method = \"none\"\n{}",
        token_table("t", &exchange)
    );
    home.configure("", &table);
    let daemon = Launch::new(&home).start();
    daemon.tokenctl().get("t");
    let next = secrets::invent("next-subject-token");
    home.secret("subject", &next);
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    let requests = provider.requests();
    let last = requests.last().unwrap();
    let field = |name: &str| last.field(name).unwrap_or_default();
    assert_eq!(field("grant_type"), "urn:ietf:params:oauth:grant-type:token-exchange");
    assert_eq!(field("subject_token_type"), "urn:ietf:params:oauth:token-type:access_token");
    assert_eq!(
        (field("subject_token"), field("audience")),
        (next, "api".to_owned()),
        "it is read for each request"
    );
}

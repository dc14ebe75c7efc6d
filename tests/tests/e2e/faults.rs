//! A provider that misbehaves harms nobody but its own tokens, and never gets a secret sent elsewhere.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokend_tests::daemon::Launch;
use tokend_tests::provider::Door;
use tokend_tests::test_support::{provider_table, token_of, token_table};
use tokend_tests::{Answer, Authority, Fault, Flaw, Provider, RealDaemon, Scene, TestDir, Tokenctl, wait};

/// A daemon with a token `bad` of a provider with a fault, and a token `good` of one without.
struct Pair {
    daemon: RealDaemon,
    bad: Provider,
    _good: Provider,
    _home: TestDir,
}

impl Pair {
    fn start(bad: Provider) -> Self {
        Self::start_with(bad, Provider::token_endpoint, "")
    }

    fn start_with(bad: Provider, endpoint: impl Fn(&Provider) -> String, more: &str) -> Self {
        let (home, good) = (TestDir::new(), Provider::start());
        let mut text = provider_table(&home, "bad", &endpoint(&bad), more);
        text.push_str(&provider_table(&home, "good", &good.token_endpoint(), ""));
        text.push_str("[token.bad]\nprovider = \"bad\"\n[token.good]\nprovider = \"good\"\n");
        home.configure("", &text);
        Self { daemon: Launch::new(&home).start(), bad, _good: good, _home: home }
    }

    /// The good token is served while the fault is there; then the bad one's status.
    fn served_meanwhile(&self) -> Value {
        self.daemon.tokenctl().get("good");
        let status = failure_of(&self.daemon.tokenctl(), "bad");
        self.daemon.tokenctl().get("good");
        status
    }
}

fn failure_of(tokenctl: &Tokenctl, name: &str) -> Value {
    wait::until(&format!("a failure of {name} in the status"), || {
        let status = tokenctl.status_of(name);
        (!status["last_error"].is_null()).then_some(status)
    })
}

#[test]
fn a_reply_of_100_megabytes_is_given_up_early() {
    let bad = Provider::start();
    bad.always(Answer::token(3600).with_fault(Fault::Padded(100 * 1024 * 1024)));
    let pair = Pair::start(bad);
    assert_eq!(pair.served_meanwhile()["last_error"]["class"], "malformed");
    let sent = pair.bad.sent();
    assert!(sent < 50 * 1024 * 1024, "{sent} bytes were taken: the rest of the reply was read");
}

#[test]
fn a_provider_that_hangs_delays_nobody_else() {
    for fault in [Fault::HangBeforeHead, Fault::HangInHead, Fault::HangInBody] {
        let bad = Provider::start();
        bad.always(Answer::token(3600).with_fault(fault));
        let pair = Pair::start(bad);
        pair.bad.wait_for_requests(1);
        let began = Instant::now();
        pair.daemon.tokenctl().get("good");
        let status = pair.daemon.tokenctl().status_of("bad");
        assert!(
            status["last_error"].is_null() || began.elapsed() > Duration::from_secs(5),
            "{fault:?}: {status:#}"
        );
        assert_eq!(status["held"], Value::Null);
    }
}

#[test]
fn a_provider_that_hangs_is_given_up_in_time() {
    let (home, mut text) = (TestDir::new(), String::new());
    let faults = [
        ("head", Fault::HangInHead),
        ("body", Fault::HangInBody),
        ("drip", Fault::Drip(Duration::from_millis(400))),
    ];
    let _providers = faults.map(|(name, fault)| {
        let provider = Provider::start();
        provider.always(Answer::token(3600).with_fault(fault));
        text.push_str(&provider_table(&home, name, &provider.token_endpoint(), ""));
        text.push_str(&token_of(name, name, ""));
        provider
    });
    home.configure("", &text);
    let daemon = Launch::new(&home).start();
    for (name, _) in faults {
        assert_eq!(failure_of(&daemon.tokenctl(), name)["last_error"]["class"], "timeout", "{name}");
    }
}

#[test]
fn a_host_that_takes_no_connection_is_given_up_in_time() {
    let (listener, _fill) = full_listener();
    let endpoint = format!("http://{}/token", listener.local_addr().unwrap());
    let pair = Pair::start_with(Provider::start(), |_| endpoint.clone(), "");
    assert_eq!(pair.served_meanwhile()["last_error"]["class"], "timeout");
}

/// A listener whose queue is full, so that the kernel answers no further connection.
fn full_listener() -> (std::net::TcpListener, Vec<TcpStream>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let attempt = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
    let fill: Vec<TcpStream> = (0..64).map_while(|_| attempt().ok()).collect();
    assert!(fill.len() < 64, "the queue does not fill");
    (listener, fill)
}

#[test]
fn a_reset_and_a_closed_port_are_told_apart_from_a_refusal() {
    let reset = Provider::start();
    reset.always(Answer::token(3600).with_fault(Fault::ResetBeforeHead));
    assert_eq!(Pair::start(reset).served_meanwhile()["last_error"]["class"], "unreachable");

    let cut = Provider::start();
    cut.always(Answer::token(3600).with_fault(Fault::ResetInBody));
    assert_eq!(Pair::start(cut).served_meanwhile()["last_error"]["class"], "unreachable");

    let door = Provider::start();
    door.set_door(Door::Resets);
    assert_eq!(Pair::start(door).served_meanwhile()["last_error"]["class"], "unreachable");

    let gone = Provider::start();
    let endpoint = gone.token_endpoint();
    drop(gone);
    let pair = Pair::start_with(Provider::start(), |_| endpoint.clone(), "");
    assert_eq!(pair.served_meanwhile()["last_error"]["class"], "unreachable");
    pair.daemon.tokenctl().run(&["get", "bad"]).expect_code(6);
}

#[test]
fn a_body_that_breaks_off_is_no_token() {
    let bad = Provider::start();
    bad.always(Answer::token(3600).with_fault(Fault::CutInBody));
    let pair = Pair::start(bad);
    let class = pair.served_meanwhile()["last_error"]["class"].clone();
    assert!(class == "unreachable" || class == "malformed", "{class}");
    pair.daemon.tokenctl().run(&["get", "bad"]).expect_code(6);
}

#[test]
fn a_private_authority_is_trusted_by_its_ca_file() {
    let authority = Authority::new();
    let more = format!("ca_file = \"{}\"", authority.ca_file().display());
    let by_address =
        Pair::start_with(Provider::start_tls(authority.server(Flaw::None)), Provider::token_endpoint, &more);
    by_address.daemon.tokenctl().get("bad");
    let by_name = Pair::start_with(
        Provider::start_tls(authority.server(Flaw::None)),
        |provider| provider.url_by_name("/token"),
        &more,
    );
    by_name.daemon.tokenctl().get("bad");
}

#[test]
fn an_authority_that_is_replaced_is_trusted_without_a_restart() {
    let (former, current) = (Authority::new(), Authority::new());
    let more = format!("ca_file = \"{}\"", former.ca_file().display());
    let provider = Provider::start_tls(current.server(Flaw::None));
    let pair = Pair::start_with(provider, Provider::token_endpoint, &more);
    assert_eq!(pair.served_meanwhile()["last_error"]["class"], "tls");
    std::fs::copy(current.ca_file(), former.ca_file()).unwrap();
    wait::until("a token from the provider with the new authority", || {
        let got = pair.daemon.tokenctl().run(&["get", "bad"]);
        (got.code == 0).then_some(())
    });
}

/// The two places of an issuer's metadata, in the order in which they are looked at.
const PLACES: [&str; 2] = ["/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"];

/// A daemon whose token `t` is of an issuer that answers so at the two places.
fn discovering(answers: impl Fn(&Provider) -> [Answer; 2]) -> (RealDaemon, Provider, TestDir) {
    let (home, issuer) = (TestDir::new(), Provider::start());
    let answers = answers(&issuer);
    issuer.answer_with(move |request| {
        let place = PLACES.iter().position(|place| *place == request.path);
        place.map_or_else(|| Answer::token(3600), |place| answers[place].clone())
    });
    let table = provider_table(&home, "p", "ISSUER", "");
    let table = table.replace("token_endpoint = \"ISSUER\"", &format!("issuer = {:?}", issuer.url("")));
    home.configure("", &format!("{table}{}", token_table("t", "")));
    (Launch::new(&home).start(), issuer, home)
}

fn metadata(issuer: &Provider) -> Answer {
    let document = serde_json::json!({ "issuer": issuer.url(""), "token_endpoint": issuer.token_endpoint() });
    Answer::json(200, &document)
}

#[test]
fn metadata_is_found_in_the_second_place_whatever_is_in_the_first() {
    for first in
        [Answer::status(404), Answer::status(503), Answer::status(403), Answer::json(200, &[1].into())]
    {
        let what = format!("{first:?}");
        let (daemon, issuer, _home) = discovering(|issuer| [first.clone(), metadata(issuer)]);
        daemon.tokenctl().get("t");
        assert_eq!(PLACES.map(|place| issuer.count_at(place)), [1, 1], "{what}");
    }
}

#[test]
fn what_an_issuer_says_of_itself_is_not_hidden_by_a_place_that_is_empty() {
    let cases = [
        ([503, 404], "server", [true, true]),
        ([404, 503], "server", [true, true]),
        ([403, 404], "refused", [true, true]),
        ([404, 404], "refused", [true, true]),
        ([429, 404], "throttled", [true, false]),
    ];
    for (statuses, class, asked) in cases {
        let (daemon, issuer, _home) = discovering(|_| statuses.map(Answer::status));
        let status = failure_of(&daemon.tokenctl(), "t");
        assert_eq!(status["last_error"]["class"], class, "{statuses:?}: {status:#}");
        assert_eq!(PLACES.map(|place| issuer.count_at(place) > 0), asked, "{statuses:?}");
    }
}

#[test]
fn an_issuer_that_asks_for_a_rest_gets_it() {
    let rest = Answer::status(503).with_header("Retry-After", "3");
    let (_daemon, issuer, _home) = discovering(|issuer| [rest.clone(), metadata(issuer)]);
    let requests = issuer.wait_for_requests(2);
    assert_eq!(requests[1].path, PLACES[0], "the issuer is not asked in another place meanwhile");
    let waited = requests[1].at.duration_since(requests[0].at);
    assert!(waited >= Duration::from_secs(3), "{waited:?}");
}

#[test]
fn a_provider_that_repeats_the_secret_in_any_form_gets_it_into_no_log() {
    let forms = |secret: &str| {
        let reversed: String = secret.chars().rev().collect();
        [secret.to_owned(), STANDARD.encode(secret), secret.to_uppercase(), reversed]
    };
    let provider = Provider::start_answering(move |request| {
        let said = forms(&request.field("client_secret").unwrap_or_default()).join(" ");
        let body = serde_json::json!({ "error": said, "error_description": said });
        Answer::json(401, &body).with_header("Server", &said)
    });
    let scene = Scene::start(provider, &token_table("t", ""));
    // What is printed and logged is searched for the secret itself by the harness.
    let refused = scene.tokenctl().run(&["get", "t"]);
    assert_eq!(refused.code, 7, "{}", refused.stderr);
    let said = scene.tokenctl().json(&["status", "t"])["attributes"]["provider-said"].clone();
    assert!(said.as_str().is_some_and(|said| said.contains("***")), "operators see it: {said}");
    scene.daemon.wait_for_log(&["an error code that is not in RFC 6749"]);
    let secret = scene.provider.requests()[0].field("client_secret").unwrap();
    for form in forms(&secret) {
        assert!(!scene.daemon.log().contains(&form) && !refused.stderr.contains(&form), "{form}");
    }
}

#[test]
fn the_journal_says_why_a_token_was_not_renewed_and_when_it_is_tried_again() {
    let body = serde_json::json!({ "error": "invalid_client", "error_description": "the key has expired" });
    let provider = Provider::start_answering(move |_| Answer::json(401, &body));
    let scene = Scene::start(provider, &token_table("t", ""));
    scene.daemon.wait_for_log(&["t not renewed: ", "invalid_client (status 401); next attempt in "]);
    assert!(!scene.daemon.log().contains("the key has expired"));
    let status = scene.tokenctl().json(&["status", "t"]);
    assert_eq!(status["attributes"]["provider-said"], "the key has expired", "{status:#}");
    let asked = format!("{} (status 401, application/json)", scene.provider.token_endpoint());
    assert_eq!(status["attributes"]["asked"], asked, "{status:#}");
    assert!(status["next_attempt"].is_string(), "{status:#}");
}

#[test]
fn the_status_tells_where_metadata_was_looked_for_and_what_it_says() {
    let other =
        serde_json::json!({ "issuer": "https://id.other.example", "token_endpoint": "https://x.example" });
    let (daemon, issuer, _home) = discovering(|_| [Answer::json(200, &other), Answer::status(404)]);
    failure_of(&daemon.tokenctl(), "t");
    let status = daemon.tokenctl().json(&["status", "t"]);
    let asked = format!(
        "{} (status 200, application/json); {} (status 404, no media type)",
        issuer.url(PLACES[0]),
        issuer.url(PLACES[1])
    );
    assert_eq!(status["attributes"]["asked"], asked, "{status:#}");
    assert_eq!(status["attributes"]["provider-said"], "issuer: https://id.other.example");
    assert_eq!(status["requests"], 2, "requests for metadata count");
}

#[test]
fn a_fault_of_trust_is_the_operators_and_names_the_ca_file() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let home = TestDir::new();
    let server = Provider::start_tls(authority.server(Flaw::None));
    std::fs::write(home.path().join("empty.pem"), "").unwrap();
    std::fs::write(
        home.path().join("broken.pem"),
        "-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let empty = home.path().join("empty.pem");
    let cases = [
        ("stranger", stranger.ca_file(), ": trusted are the system's authorities and those in the ca_file "),
        ("missing", home.path().join("missing.pem"), "the ca_file cannot be used: "),
        ("empty", empty, "it has no certificate"),
        ("broken", home.path().join("broken.pem"), "it is not valid PEM"),
    ];
    let mut text = String::new();
    for (name, ca_file, _) in &cases {
        let more = format!("ca_file = \"{}\"", ca_file.display());
        text.push_str(&provider_table(&home, name, &server.token_endpoint(), &more));
        text.push_str(&token_of(name, name, ""));
    }
    home.configure("", &text);
    let daemon = Launch::new(&home).start();
    for (name, ca_file, words) in &cases {
        daemon.tokenctl().run(&["get", name]).expect_code(7);
        let message = daemon.tokenctl().status_of(name)["last_error"]["message"].to_string();
        assert!(
            message.contains(words) && message.contains(&*ca_file.to_string_lossy()),
            "{name}: {message}"
        );
    }
    std::fs::copy(authority.ca_file(), &cases[1].1).unwrap();
    wait::until("a token once the ca_file is there", || {
        (daemon.tokenctl().run(&["get", "missing"]).code == 0).then_some(())
    });
}

//! What providers really answer: each reply is either understood or refused, in one daemon, side by side.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_of};
use tokend_tests::{Answer, Fault, Provider, RealDaemon, TestDir, secrets};

/// What comes of a reply.
enum Expected {
    /// A token that lives at most so many seconds, and more than half of it; the counted departures.
    Token(u64, &'static [&'static str]),
    /// No token: the exit code of `tokenctl get`, the class in the status, the counted departures.
    Nothing(i32, &'static str, &'static [&'static str]),
}

use Expected::{Nothing, Token};

/// The exit code where a retry may help.
const RETRY: i32 = 6;
/// The exit code where an operator is needed.
const OPERATOR: i32 = 7;

/// What a reply tells that has no lifetime, as configured for all.
const DEFAULT: u64 = 450;

const YEAR: u64 = 366 * 24 * 3600;

/// A good reply but for one field.
fn with(field: &str, value: Value) -> Answer {
    let mut reply = good();
    reply[field] = value;
    Answer::json(200, &reply)
}

fn without(field: &str) -> Answer {
    let mut reply = good();
    reply.as_object_mut().unwrap().remove(field);
    Answer::json(200, &reply)
}

/// A good reply with a lifetime that the JSON writer would not write.
fn with_raw_lifetime(lifetime: &str) -> Answer {
    let body = good().to_string().replace("3600", lifetime);
    Answer::status(200).with_body("application/json", body)
}

fn good() -> Value {
    json!({ "access_token": secrets::invent("access-token"), "token_type": "Bearer", "expires_in": 3600 })
}

fn body(content_type: &str, body: impl Into<Vec<u8>>) -> Answer {
    Answer::status(200).with_body(content_type, body)
}

fn lifetimes() -> Vec<(&'static str, Answer, Expected)> {
    vec![
        ("number", with("expires_in", json!(3600)), Token(3600, &[])),
        ("string", with("expires_in", json!("1799")), Token(1799, &["expires_in-string"])),
        ("float", with("expires_in", json!(3599.5)), Token(3600, &["expires_in-float"])),
        ("exponent", with_raw_lifetime("3.6e3"), Token(3600, &["expires_in-float"])),
        ("huge", with_raw_lifetime("99999999999999999999999"), Token(YEAR, &["expires_in-huge"])),
        ("missing", without("expires_in"), Token(DEFAULT, &["expires_in-missing"])),
        ("null", with("expires_in", Value::Null), Token(DEFAULT, &["expires_in-null"])),
        ("zero", with("expires_in", json!(0)), Nothing(RETRY, "malformed", &["expires_in-zero"])),
        ("negative", with("expires_in", json!(-1)), Nothing(RETRY, "malformed", &["expires_in-negative"])),
        (
            "words",
            with("expires_in", json!("an hour")),
            Token(DEFAULT, &["expires_in-invalid", "expires_in-string"]),
        ),
    ]
}

fn other_fields() -> Vec<(&'static str, Answer, Expected)> {
    let form = format!("access_token={}&token_type=bearer&expires_in=900", secrets::invent("access-token"));
    vec![
        ("type-lower", with("token_type", json!("bearer")), Token(3600, &[])),
        ("type-upper", with("token_type", json!("BEARER")), Token(3600, &[])),
        ("type-gateway", with("token_type", json!("BearerToken")), Token(3600, &["token_type-other"])),
        ("type-mac", with("token_type", json!("mac")), Nothing(OPERATOR, "refused", &[])),
        ("type-missing", without("token_type"), Token(3600, &["token_type-missing"])),
        (
            "mark",
            Answer::status(200).with_bare_body(format!("\u{feff}{}", good())),
            Token(3600, &["byte-order-mark"]),
        ),
        ("scope-array", with("scope", json!(["a", "b"])), Token(3600, &["scope-array"])),
        ("scope-null", with("scope", Value::Null), Token(3600, &[])),
        ("empty-name", with("", json!("")), Token(3600, &[])),
        ("odd-fields", with("refresh_token_expires_in", json!([{ "x": null }])), Token(3600, &[])),
        ("text-plain", body("text/plain", good().to_string()), Token(3600, &["content-type"])),
        ("no-type", Answer::status(200).with_bare_body(good().to_string()), Token(3600, &[])),
        ("form", body("application/x-www-form-urlencoded", form), Token(900, &["form-encoded"])),
        ("gzip", Answer::json(200, &good()).gzipped(), Token(3600, &[])),
        ("deflate", Answer::json(200, &good()).deflated(), Token(3600, &[])),
        ("created", Answer::json(201, &good()), Token(3600, &[])),
    ]
}

fn refused() -> Vec<(&'static str, Answer, Expected)> {
    let link = |before: &str| format!("{before}access_token=t&token_type=bearer&expires_in=900");
    let error = json!({ "error": "invalid_client", "error_description": "no such client" });
    vec![
        ("error-200", Answer::json(200, &error), Nothing(OPERATOR, "refused", &["error-with-200"])),
        ("error-401", Answer::json(401, &error), Nothing(OPERATOR, "refused", &[])),
        ("forbidden", Answer::status(403), Nothing(RETRY, "refused", &[])),
        ("busy", Answer::refusal(400, "temporarily_unavailable"), Nothing(RETRY, "server", &[])),
        ("failed", Answer::status(500), Nothing(RETRY, "server", &[])),
        (
            "html",
            body("text/html", "<html><body>Please sign in</body></html>"),
            Nothing(RETRY, "malformed", &[]),
        ),
        ("html-link", body("text/html", link("<a href=\"/sign-in?x=1&")), Nothing(RETRY, "malformed", &[])),
        ("bare-link", Answer::status(200).with_bare_body(link("<p>&")), Nothing(RETRY, "malformed", &[])),
        ("form-as-json", body("application/json", link("")), Nothing(RETRY, "malformed", &[])),
        ("error-empty", Answer::json(200, &json!({ "error": "" })), Nothing(RETRY, "malformed", &[])),
        ("empty", body("application/json", ""), Nothing(RETRY, "malformed", &[])),
        ("cut", body("application/json", r#"{"access_token":"abc"#), Nothing(RETRY, "malformed", &[])),
        ("array", body("application/json", "[1]"), Nothing(RETRY, "malformed", &[])),
        ("no-token", without("access_token"), Nothing(RETRY, "malformed", &[])),
        ("token-empty", with("access_token", json!("")), Nothing(RETRY, "malformed", &[])),
        ("token-number", with("access_token", json!(5)), Nothing(RETRY, "malformed", &[])),
        ("token-newline", with("access_token", json!("a\r\nX-Evil: 1")), Nothing(RETRY, "malformed", &[])),
        (
            "unknown-coding",
            Answer::json(200, &good()).with_header("Content-Encoding", "zstd"),
            Nothing(RETRY, "malformed", &[]),
        ),
        (
            "oversized",
            Answer::json(200, &good()).with_fault(Fault::Padded(2 * 1024 * 1024)),
            Nothing(RETRY, "malformed", &[]),
        ),
        (
            "bomb",
            body("application/json", vec![b' '; 64 * 1024 * 1024]).gzipped(),
            Nothing(RETRY, "malformed", &[]),
        ),
    ]
}

/// One daemon with a token for each reply, each from a provider of its own path.
fn start(cases: &[(&'static str, Answer, Expected)]) -> (RealDaemon, Provider, TestDir) {
    let home = TestDir::new();
    let answers: HashMap<String, Answer> =
        cases.iter().map(|(name, answer, _)| (format!("/{name}"), answer.clone())).collect();
    let provider = Provider::start_answering(move |request| answers[&request.path].clone());
    let mut text = String::new();
    for (name, ..) in cases {
        let more = format!("default_lifetime = \"{DEFAULT}s\"\ntoken_type = \"BearerToken\"");
        text.push_str(&provider_table(&home, name, &provider.url(&format!("/{name}")), &more));
        text.push_str(&token_of(name, name, ""));
    }
    home.configure("", &text);
    (Launch::new(&home).start(), provider, home)
}

fn check(cases: &[(&'static str, Answer, Expected)]) {
    let (daemon, _provider, _home) = start(cases);
    let tokenctl = daemon.tokenctl();
    for (name, _, expected) in cases {
        let got = tokenctl.run(&["get", name]);
        let status = tokenctl.status_of(name);
        let counted = deviations(&status);
        match expected {
            Token(lifetime, departures) => {
                assert_eq!(got.code, 0, "{name}: {}", got.stderr);
                let left = status["held"]["expires_in_seconds"].as_u64().unwrap();
                assert!(left <= *lifetime && left > lifetime / 2, "{name}: {left} s are left");
                assert_eq!(counted, *departures, "{name}");
            }
            Nothing(code, class, departures) => {
                assert_eq!(got.code, *code, "{name}: {}", got.stderr);
                assert_eq!(got.stdout, "", "{name}");
                assert_eq!(status["last_error"]["class"], *class, "{name}: {status:#}");
                assert_eq!(counted, *departures, "{name}");
            }
        }
    }
}

fn deviations(status: &Value) -> Vec<String> {
    let mut kinds: Vec<String> = status["deviations"]
        .as_array()
        .expect("a status lists deviations")
        .iter()
        .map(|deviation| deviation["kind"].as_str().unwrap().to_owned())
        .collect();
    kinds.sort();
    kinds
}

#[test]
fn every_way_to_tell_a_lifetime_is_understood() {
    check(&lifetimes());
}

#[test]
fn every_spelling_of_the_other_fields_is_understood() {
    check(&other_fields());
}

#[test]
fn what_is_no_token_is_refused_and_named() {
    check(&refused());
}

#[test]
fn a_departure_is_counted_each_time_it_is_met() {
    let cases = [("t", with("expires_in", json!("3600")), Token(3600, &[]))];
    let (daemon, _provider, _home) = start(&cases);
    daemon.tokenctl().get("t");
    daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    let status = daemon.tokenctl().status_of("t");
    assert_eq!(status["deviations"][0]["count"], 2, "{status:#}");
}

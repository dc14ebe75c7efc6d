//! The rows: what a provider does, and what comes of it.

use serde_json::{Value, json};
use tokend_protocol::ErrorClass;
use tokend_tests::provider::Door;
use tokend_tests::{Answer, Fault, Flaw};

use super::server::{Trouble, good_reply};

/// One row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) trouble: Trouble,
    pub(super) comes: Comes,
}

/// What comes of a trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comes {
    /// A token all the same.
    Token,
    /// A failure of this class, which ends by itself soon after the trouble.
    Passes(ErrorClass),
    /// A refusal, which ends when an operator says so.
    Refusal,
    /// A certificate that is not trusted, which an operator has to mend. It is tried again by itself.
    Distrust,
    /// A failure of this class, and no further request for as long as the provider asked, within reason.
    Quiet(ErrorClass),
}

use Comes::{Distrust, Passes, Quiet, Refusal, Token};
use ErrorClass::{Malformed, Server, Throttled, Timeout, Unreachable};

/// A refusal without an OAuth error code. It may be a gateway's, and passes by itself for ten minutes.
const GATEWAY: Comes = Passes(ErrorClass::Refused);

/// All of them.
pub(super) fn rows() -> Vec<Row> {
    let answers = [statuses(), codes(), pages(), bodies(), fields(), waits(), broken_answers()];
    let answers = answers.into_iter().flatten().map(|(name, answer, comes)| {
        let trouble = Trouble::Answers(answer);
        Row { name, trouble, comes }
    });
    let connections = connections().into_iter().map(|(name, trouble, comes)| {
        let name = name.to_owned();
        Row { name, trouble, comes }
    });
    answers.chain(connections).collect()
}

type Answers = Vec<(String, Answer, Comes)>;

fn statuses() -> Answers {
    let refused =
        [400, 403, 404, 405, 410, 422].map(|status| (status, GATEWAY)).into_iter().chain([(401, Refusal)]);
    let passing = [408, 425, 500, 501, 502, 503, 504].map(|status| (status, Passes(Server)));
    let all = refused.chain(passing).chain([(429, Passes(Throttled))]);
    all.map(|(status, comes)| (format!("status-{status}"), Answer::status(status), comes)).collect()
}

fn codes() -> Answers {
    let cases = [
        (400, "invalid_request", Refusal),
        (401, "invalid_client", Refusal),
        (400, "invalid_grant", Refusal),
        (400, "unauthorized_client", Refusal),
        (400, "unsupported_grant_type", Refusal),
        (400, "invalid_scope", Refusal),
        (400, "invalid_target", Refusal),
        (400, "blue_moon", Refusal),
        (200, "invalid_client", Refusal),
        (400, "temporarily_unavailable", Passes(Server)),
        (503, "temporarily_unavailable", Passes(Server)),
        (400, "server_error", Passes(Server)),
        (500, "server_error", Passes(Server)),
        (500, "blue_moon", Passes(Server)),
        (400, "slow_down", Passes(Throttled)),
    ];
    let row = |(status, code, comes): (u16, &str, _)| {
        let name = format!("{}-{status}", code.replace('_', "-"));
        (name, Answer::refusal(status, code), comes)
    };
    cases.into_iter().map(row).collect()
}

/// What stands between the daemon and the provider.
fn pages() -> Answers {
    let page = |status| {
        let text = "<!DOCTYPE html><html><body>Please <a href=\"?access_token=x\">sign in</a></body></html>";
        Answer::status(status).with_body("text/html; charset=utf-8", text)
    };
    let elsewhere = |status| Answer::status(status).with_header("Location", "https://elsewhere.invalid/");
    vec![
        ("html-200".to_owned(), page(200), Passes(Malformed)),
        ("html-403".to_owned(), page(403), GATEWAY),
        ("html-502".to_owned(), page(502), Passes(Server)),
        ("redirect-301".to_owned(), elsewhere(301), GATEWAY),
        ("redirect-302".to_owned(), elsewhere(302), GATEWAY),
        ("redirect-307".to_owned(), elsewhere(307), GATEWAY),
        ("redirect-308".to_owned(), elsewhere(308), GATEWAY),
    ]
}

/// Replies of status 200 that are no token response.
fn bodies() -> Answers {
    let json = |body: &str| Answer::status(200).with_body("application/json", body);
    let good = good_reply().to_string();
    let twice = good.replace('{', "{\"access_token\":\"another\",");
    let long = "x".repeat(100 * 1024);
    let cases = [
        ("empty", json("")),
        ("no-content", Answer::status(204)),
        ("array", json("[1]")),
        ("string", json("\"token\"")),
        ("null", json("null")),
        ("truncated-json", json(&good[..good.len() / 2])),
        ("two-tokens", json(&twice)),
        ("deep-nesting", json(&"[".repeat(100_000))),
        ("long-token", json(&good.replace("\"access_token\":\"", &format!("\"access_token\":\"{long}")))),
        ("oversize", json(&good).with_fault(Fault::Padded(2 * 1024 * 1024))),
        ("oversize-unpacked", json(&" ".repeat(8 * 1024 * 1024)).gzipped()),
        ("not-gzip", json(&good).with_header("Content-Encoding", "gzip")),
        ("unknown-coding", json(&good).with_header("Content-Encoding", "zstd")),
        ("br", json(&good).with_header("Content-Encoding", "br")),
        ("json-as-form", json("access_token=x&token_type=bearer&expires_in=60")),
        ("binary", Answer::status(200).with_bare_body(vec![0xff, 0, 0xfe, 1])),
    ];
    cases.into_iter().map(|(name, answer)| (name.to_owned(), answer, Passes(Malformed))).collect()
}

/// A good reply but for one field, whose value is of a wrong type.
fn fields() -> Answers {
    let wrong = [
        ("number", json!(5)),
        ("boolean", json!(true)),
        ("null", Value::Null),
        ("array", json!(["x"])),
        ("object", json!({ "x": "y" })),
    ];
    let comes = |field, kind| match (field, kind) {
        ("access_token", _) => Some(Passes(Malformed)),
        ("expires_in", "number") => None,
        _ => Some(Token),
    };
    let mut rows = Answers::new();
    for field in ["access_token", "token_type", "expires_in", "scope", "refresh_token", "error"] {
        for (kind, value) in &wrong {
            let Some(comes) = comes(field, *kind) else { continue };
            let mut reply = good_reply();
            reply[field] = value.clone();
            let name = format!("{}-{kind}", field.replace('_', "-"));
            rows.push((name, Answer::json(200, &reply), comes));
        }
    }
    let words = json!({ "access_token": "some-token", "token_type": "Bearer", "expires_in": "an hour" });
    rows.push(("expires-in-words".to_owned(), Answer::json(200, &words), Token));
    let marked = format!("\u{feff}{}", good_reply());
    rows.push(("byte-order-mark".to_owned(), Answer::status(200).with_bare_body(marked), Token));
    let doubtful = [
        ("expires-in-zero", "expires_in", json!(0), Passes(Malformed)),
        ("expires-in-zero-string", "expires_in", json!("0"), Passes(Malformed)),
        ("expires-in-negative", "expires_in", json!(-3600), Passes(Malformed)),
        ("expires-in-infinite", "expires_in", json!("inf"), Token),
        ("expires-in-ages", "expires_in", json!(1e12), Token),
        ("token-type-mac", "token_type", json!("mac"), Refusal),
        ("token-type-dpop", "token_type", json!("DPoP"), Refusal),
        ("token-type-unknown", "token_type", json!("N_A"), Refusal),
        ("less-scope", "scope", json!("a"), Token),
        ("no-scope", "scope", json!(""), Token),
        ("less-scope-than-required", "scope", json!("a"), Refusal),
    ];
    for (name, field, value, comes) in doubtful {
        let mut reply = good_reply();
        reply[field] = value;
        rows.push((name.to_owned(), Answer::json(200, &reply), comes));
    }
    let refusal = json!({ "error": 5, "error_description": ["x"], "error_uri": {} });
    rows.push(("error-of-numbers".to_owned(), Answer::json(400, &refusal), GATEWAY));
    rows
}

/// What a provider says about when to come back.
fn waits() -> Answers {
    let cases = [
        (429, "0", Passes(Throttled)),
        (429, "-5", Passes(Throttled)),
        (429, "soon", Passes(Throttled)),
        (429, "Thu, 01 Jan 1998 00:00:00 GMT", Passes(Throttled)),
        (429, "1000000000", Quiet(Throttled)),
        (429, "99999999999999999999999999", Quiet(Throttled)),
        (429, "Fri, 31 Dec 9999 23:59:59 GMT", Quiet(Throttled)),
        (503, "1000000000", Quiet(Server)),
    ];
    let names =
        ["zero", "negative", "garbage", "past-date", "huge", "beyond-numbers", "far-date", "huge-503"];
    let row = |(name, (status, text, comes)): (&str, (u16, &str, _))| {
        (format!("retry-after-{name}"), Answer::status(status).with_header("Retry-After", text), comes)
    };
    names.into_iter().zip(cases).map(row).collect()
}

/// Answers that do not come whole, or not in time.
fn broken_answers() -> Answers {
    let padding = "x".repeat(1024 * 1024);
    let long_head = Answer::json(200, &good_reply()).with_header("X-Padding", &padding);
    let cases = [
        ("reset-before-head", Fault::ResetBeforeHead, Passes(Unreachable)),
        ("reset-in-body", Fault::ResetInBody, Passes(Unreachable)),
        ("cut-in-head", Fault::CutInHead, Passes(Unreachable)),
        ("cut-in-body", Fault::CutInBody, Passes(Unreachable)),
        ("not-http", Fault::NotHttp, Passes(Malformed)),
        ("hang-before-head", Fault::HangBeforeHead, Passes(Timeout)),
        ("hang-in-head", Fault::HangInHead, Passes(Timeout)),
        ("hang-in-body", Fault::HangInBody, Passes(Timeout)),
        ("drip", Fault::Drip(std::time::Duration::from_millis(400)), Passes(Timeout)),
    ];
    let row = |(name, fault, comes): (&str, _, _)| {
        (name.to_owned(), Answer::json(200, &good_reply()).with_fault(fault), comes)
    };
    let many = (0..300).fold(Answer::json(200, &good_reply()), |answer, number| {
        answer.with_header(&format!("X-Header-{number}"), "x")
    });
    let whole = [("oversize-head", long_head), ("300-headers", many)];
    let whole = whole.map(|(name, answer)| (name.to_owned(), answer, Passes(Malformed)));
    cases.into_iter().map(row).chain(whole).collect()
}

fn connections() -> Vec<(&'static str, Trouble, Comes)> {
    vec![
        ("nobody-listens", Trouble::Gone, Passes(Unreachable)),
        ("hang-at-connect", Trouble::Deaf, Passes(Timeout)),
        ("reset-at-connect", Trouble::Door(Door::Resets), Passes(Unreachable)),
        ("hang-after-connect", Trouble::Door(Door::Silent), Passes(Timeout)),
        ("tls-reset", Trouble::TlsDoor(Door::Resets), Passes(Unreachable)),
        ("tls-hang", Trouble::TlsDoor(Door::Silent), Passes(Timeout)),
        ("tls-expired", Trouble::Certificate(Flaw::Expired), Distrust),
        ("tls-wrong-host", Trouble::Certificate(Flaw::WrongHost), Distrust),
        ("tls-self-signed", Trouble::Certificate(Flaw::SelfSigned), Distrust),
        ("tls-unknown-authority", Trouble::Stranger, Distrust),
    ]
}

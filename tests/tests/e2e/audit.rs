//! Every decision is in the audit trail, and no caller can fill it.

use tokend_protocol::{CallOptions, ExplainRequest, GetRequest, Request, Subject, TokenName, Variant};
use tokend_tests::test_support::token_table;
use tokend_tests::{Provider, RawPeer, Scene, raw_peer};

/// The audit records in a log: each line, and how many decisions it stands for.
fn records(log: &str) -> Vec<(&str, u64)> {
    let audited = log.lines().filter(|line| line.contains("tokend::server::audit"));
    audited.map(|line| (line, count(line))).collect()
}

fn count(line: &str) -> u64 {
    let (_, rest) = line.split_once(" count=").expect("every record has a count");
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn asked(names: impl Iterator<Item = String>) -> String {
    requested("", names.map(|name| raw_peer::get(&name)))
}

/// The log of a daemon that answered these requests, and whose token `t` has more settings.
fn requested(settings: &str, requests: impl Iterator<Item = Request>) -> String {
    let mut scene = Scene::start(Provider::start(), &token_table("t", settings));
    let mut peer = RawPeer::connect(scene.socket()).unwrap();
    for (id, request) in (1..).zip(requests) {
        peer.ask(id, request);
    }
    assert_eq!(scene.daemon.stop(), 0);
    scene.daemon.log()
}

#[test]
fn repeated_hand_outs_are_one_record_and_a_count() {
    let log = asked((0..50).map(|_| "t".to_owned()));
    let records = records(&log);
    assert_eq!(records.iter().map(|(_, count)| count).sum::<u64>(), 50, "{records:?}");
    // A window may have ended meanwhile.
    assert!((2..=6).contains(&records.len()), "{records:?}");
    for (line, _) in &records {
        for word in ["decision=\"allow\"", "verb=\"get\"", "token=\"t\"", "fingerprint=", "pid=", "rule="] {
            assert!(line.contains(word), "{word} is missing: {line}");
        }
    }
}

#[test]
fn a_hand_out_after_a_renewal_is_recorded_with_the_new_token() {
    let mut scene = Scene::start(Provider::start(), &token_table("t", ""));
    let mut peer = RawPeer::connect(scene.socket()).unwrap();
    for id in 0..3 {
        peer.ask(2 * id, raw_peer::get("t"));
        peer.ask(2 * id + 1, raw_peer::get("t"));
        scene.tokenctl().run(&["refresh", "t"]).expect_success();
    }
    assert_eq!(scene.daemon.stop(), 0);
    let log = scene.daemon.log();
    let hand_outs = records(&log).into_iter().filter(|(line, _)| line.contains("verb=\"get\""));
    let mut counts = std::collections::BTreeMap::new();
    for (line, count) in hand_outs {
        let (_, rest) = line.split_once("fingerprint=").expect("a hand-out has a fingerprint");
        *counts.entry(rest.split(' ').next().unwrap()).or_insert(0) += count;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [2; 3], "{log}");
}

#[test]
fn made_up_names_do_not_fill_the_trail_and_every_refusal_counts() {
    let log = asked((0..2000).map(|number| format!("made-up-{number}")));
    let records = records(&log);
    assert_eq!(records.iter().map(|(_, count)| count).sum::<u64>(), 2000);
    assert!(records.len() < 500, "{} records", records.len());
    assert!(records.iter().all(|(line, _)| line.contains("no such token")));
}

const VARIANTS: &str = "scope = \"a b c\"\nvariants = { scope = [\"a\", \"b\"] }";

fn scope(terms: &[&str]) -> Variant {
    Variant { scope: terms.iter().map(|term| (*term).to_owned()).collect(), ..Variant::default() }
}

fn get(variant: Variant) -> Request {
    let options = CallOptions { deadline_ms: 15_000, min_ttl_ms: 0 };
    Request::Get(GetRequest { name: "t".parse().unwrap(), options, variant })
}

#[test]
fn another_spelling_of_a_variant_makes_no_other_record() {
    let worded = (0..100).map(|number| get(scope(if number % 2 == 0 { &["a", "b"] } else { &["b", "a"] })));
    let log = requested(VARIANTS, worded);
    let records = records(&log);
    assert_eq!(records.iter().map(|(_, count)| count).sum::<u64>(), 100, "{records:?}");
    // A window may have ended meanwhile.
    assert!((2..=6).contains(&records.len()), "{} records", records.len());
    assert!(records.iter().all(|(line, _)| line.contains("variant=\"scope=a,b\"")), "{records:?}");
}

#[test]
fn a_request_for_a_variant_that_nobody_may_have_is_recorded_without_its_words() {
    let name: TokenName = "t".parse().unwrap();
    let variant = scope(&["made-up-scope"]);
    let explain = ExplainRequest { name, variant: variant.clone(), subject: Subject::Caller };
    let log = requested(VARIANTS, [get(variant), Request::Explain(explain)].into_iter());
    let records = records(&log);
    let [(got, 1), (explained, 1)] = records.as_slice() else { panic!("{records:?}") };
    for (line, verb) in [(got, "get"), (explained, "explain")] {
        let verb = format!("verb=\"{verb}\"");
        assert!(line.contains("decision=\"deny\"") && line.contains(&verb), "{line}");
        assert!(line.contains("lets nobody ask for this variant") && !line.contains("made-up"), "{line}");
    }
}

//! Every decision is in the audit trail, and no caller can fill it.

use tokend_tests::scene::token_table;
use tokend_tests::{Provider, RawPeer, Scene, raw_peer};

/// The audit records in a log: each line, and how many decisions it stands for.
fn records(log: &str) -> Vec<(&str, u64)> {
    let audited = log.lines().filter(|line| line.contains("tokend::audit"));
    audited.map(|line| (line, count(line))).collect()
}

fn count(line: &str) -> u64 {
    let (_, rest) = line.split_once(" count=").expect("every record has a count");
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn asked(names: impl Iterator<Item = String>) -> String {
    let mut scene = Scene::start(Provider::start(), &token_table("t", ""));
    let mut peer = RawPeer::connect(scene.socket()).unwrap();
    for (id, name) in (1..).zip(names) {
        peer.ask(id, raw_peer::get(&name));
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
fn made_up_names_do_not_fill_the_trail_and_each_refusal_counts() {
    let log = asked((0..2000).map(|number| format!("made-up-{number}")));
    let records = records(&log);
    assert_eq!(records.iter().map(|(_, count)| count).sum::<u64>(), 2000);
    assert!(records.len() < 500, "{} records", records.len());
    assert!(records.iter().all(|(line, _)| line.contains("no such token")));
}

//! The audit trail in a real journal: no decision is missing there, whatever a caller does.
//!
//! At full size with `TOKEND_TESTS_FULL=1`:
//!
//!     TOKEND_TESTS_FULL=1 cargo test -p tokend-tests --test systemd -- --nocapture a_flood

use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

use serde_json::Value;
use tokend_tests::{Machine, report, size, wait};

use crate::host::Host;

const SCOPES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The daemon counts what is repeated for so long, in seconds, before it writes the count (`server/audit.rs`).
const WINDOW: u64 = 10;

/// The records that a user with one token may cause in a window: the first decisions of 64 kinds and the one that begins the merged
/// record, and as many counts (`server/audit/aggregator.rs`).
const RECORDS_OF_A_WINDOW: u64 = 2 * 65;

/// A user's hand-outs in the journal.
#[derive(Debug, Default)]
struct Audited {
    records: u64,
    decisions: u64,
}

#[test]
fn a_flood_of_one_user_costs_no_audit_decision() {
    let calls = size(2000, 200);
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    limit_the_journal(machine);
    let all = SCOPES.join(" ");
    let each = format!("\"{}\"", SCOPES.join("\", \""));
    host.configure(&format!(
        "[token.flooded]\nprovider = \"psb\"\nscope = \"{all}\"\nvariants = {{ scope = [{each}] }}\n\
         allow = [\"user:alice\", \"user:bob\"]\n"
    ));
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    host.token_for("root", "flooded");
    let [alice, bob] = ["alice", "bob"].map(|user| machine.check(&["id", "-u", user]).trim().to_owned());

    let began = Instant::now();
    let flooded = thread::scope(|scope| {
        let flood = scope.spawn(|| flood(machine, &alice));
        wait::until("the flood", || audited(machine).contains_key(&alice).then_some(()));
        // Each call is another process.
        let script = format!("for i in $(seq {calls}); do tokenctl get flooded >/dev/null || exit 1; done");
        let called = machine.run_as("bob", &["sh", "-c", &script]);
        machine.check(&["touch", "/tmp/end"]);
        called.expect_success();
        flood.join().unwrap()
    });
    host.stop_cleanly();
    let took = began.elapsed().as_secs();

    let audited = audited(machine);
    let of = |uid| &audited[uid];
    report(&format!(
        "{flooded} hand-outs of a flood in {took} s: {:?}; {calls} of another user: {:?}",
        of(&alice),
        of(&bob)
    ));
    assert_eq!(of(&bob).decisions, calls as u64);
    assert_eq!(of(&alice).decisions, flooded);
    let windows = took / WINDOW + 2;
    assert!(of(&alice).records <= windows * RECORDS_OF_A_WINDOW, "{windows} windows: {:?}", of(&alice));
}

/// Makes the journal's limit for services without a limit of their own a small one. The usual one allows some ten thousand
/// events in half a minute, more where the disk is large.
fn limit_the_journal(machine: &Machine) {
    machine.write(
        "/etc/systemd/journald.conf.d/limit.conf",
        "[Journal]\nRateLimitIntervalSec=1h\nRateLimitBurst=20\n",
    );
    machine.check(&["systemctl", "restart", "systemd-journald"]);
}

/// Floods the daemon as a user until there is a file `/tmp/end`, from control groups of the user's own. Returns the number
/// of hand-outs.
fn flood(machine: &Machine, uid: &str) -> u64 {
    let group = format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service");
    let scopes = SCOPES.join(" ");
    let script = format!(
        "mkdir -p {group} && chown {uid} {group} {group}/cgroup.procs && echo $$ >{group}/cgroup.procs && \
         exec setpriv --reuid={uid} --regid={uid} --groups=$(getent group tokend | cut -d: -f3) \
         flood /run/tokend/tokend.sock {group} /tmp/end flooded {scopes}"
    );
    machine.check(&["sh", "-c", &script]).trim().parse().unwrap()
}

/// The hand-outs that the journal has, by user.
fn audited(machine: &Machine) -> BTreeMap<String, Audited> {
    let journal = machine.journal(&["-u", "tokend", "TOKEND_VERB=get", "--output=json"]);
    let mut users: BTreeMap<String, Audited> = BTreeMap::new();
    for record in journal.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let audited = users.entry(record["TOKEND_UID"].as_str().unwrap().to_owned()).or_default();
        audited.records += 1;
        audited.decisions += record["TOKEND_COUNT"].as_str().unwrap().parse::<u64>().unwrap();
    }
    users
}

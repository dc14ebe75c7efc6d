//! The service as a whole: it starts, serves, reloads, survives and stops.

use serde_json::Value;
use tokend_tests::{Machine, secrets, wait};

use crate::host::Host;

#[test]
fn the_service_starts_serves_and_stops_on_a_real_machine() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;

    // There is no provider yet, and the start does not wait for one.
    machine.check(&["systemctl", "start", "tokend"]);
    assert_eq!(machine.property("tokend", "ActiveState"), "active");
    assert_eq!(machine.run_as("alice", &["tokenctl", "get", "psb"]).code, 6);

    host.start_provider();
    let token = host.token_for("alice", "psb");
    assert_eq!(host.token_for("root", "psb"), token);

    let refused = machine.run_as("bob", &["tokenctl", "get", "psb"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (4, ""), "{}", refused.stderr);
    let outside = machine.run_as("carol", &["tokenctl", "get", "psb"]);
    assert_eq!(outside.code, 3, "carol is not in the socket's group: {}", outside.stderr);
    audited(machine, "bob", "deny", "4");
    audited(machine, "alice", "allow", "5");

    machine.check(&["systemctl", "restart", "tokend"]);
    host.token_for("alice", "psb");

    host.stop_cleanly();
    assert_ne!(machine.run_as("alice", &["tokenctl", "get", "psb"]).code, 0);
}

/// A line of the audit trail about a user is in the journal, with fields of its own and a priority.
fn audited(machine: &Machine, user: &str, decision: &str, priority: &str) {
    let uid = machine.check(&["id", "-u", user]).trim().to_owned();
    let expected = [
        ("TARGET", "tokend::server::audit"),
        ("TOKEND_DECISION", decision),
        ("TOKEND_TOKEN", "psb"),
        ("TOKEND_UID", &uid),
        ("PRIORITY", priority),
    ];
    wait::until(&format!("an audit line on {user} in the journal"), || {
        let journal = machine.journal(&["-u", "tokend", "--output=json"]);
        let mut entries = journal.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        entries.any(|entry| expected.iter().all(|(field, value)| entry[field] == **value)).then_some(())
    });
}

#[test]
fn a_reload_takes_effect_or_fails_aloud() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    let token = host.token_for("alice", "psb");

    host.configure("[token.second]\nprovider = \"psb\"\nallow = [\"group:tokend\"]\n");
    machine.check(&["systemctl", "reload", "tokend"]);
    assert_eq!(host.token_for("bob", "second"), token, "the same credential by another name");
    assert_eq!(host.token_for("alice", "psb"), token);

    host.configure("[token.third]\nprovider = \"psp\"\n");
    assert_ne!(
        machine.run(&["systemctl", "reload", "tokend"]).code,
        0,
        "a bad configuration fails the reload"
    );
    assert_eq!(machine.property("tokend", "ActiveState"), "active");
    assert_eq!(host.token_for("bob", "second"), token, "what was there is still there");
    assert!(machine.journal(&["-u", "tokend"]).contains("token.third.provider"));
    host.stop_cleanly();
}

#[test]
fn a_restart_with_a_faulty_configuration_ends_neither_the_socket_nor_the_tokens() {
    const GET_30_TIMES: &str = "for i in $(seq 30); do tokenctl get psb; echo $?; done";
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    let token = host.token_for("alice", "psb");
    let socket_since = machine.property("tokend.socket", "ActiveEnterTimestampMonotonic");

    host.configure("[token.third]\nprovider = \"psp\"\n");
    assert_ne!(machine.run(&["systemctl", "restart", "tokend"]).code, 0);
    let calls = machine.run_as("alice", &["sh", "-c", GET_30_TIMES]);
    assert_eq!(calls.stdout, "6\n".repeat(30), "{}", calls.stderr);
    assert_eq!(calls.stderr.matches("configuration has faults").count(), 30, "{}", calls.stderr);
    assert!(machine.journal(&["-u", "tokend", "-p", "err"]).contains("token.third.provider"));

    host.configure("");
    assert_eq!(host.token_for("alice", "psb"), token);
    assert_eq!(host.requests().len(), 1);
    assert_eq!(machine.property("tokend.socket", "ActiveEnterTimestampMonotonic"), socket_since);
    host.stop_cleanly();
}

#[test]
fn the_first_caller_starts_the_service() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend.socket"]);
    assert_eq!(machine.property("tokend.service", "ActiveState"), "inactive");
    let got = machine.run_as("alice", &["tokenctl", "get", "psb"]);
    assert_eq!(got.code, 0, "{}", got.stderr);
    secrets::register("access-token", got.stdout.trim_end());
    assert_eq!(machine.property("tokend.service", "ActiveState"), "active");
    host.stop_cleanly();
}

#[test]
fn a_service_is_let_in_by_the_name_of_its_unit() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.configure("[token.billing]\nprovider = \"psb\"\nallow = [\"unit:billing.service\"]\n");
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    let token = host.token_for("root", "billing");
    let in_unit = |unit: &str| {
        let unit = format!("--unit={unit}");
        machine.run(&[
            "systemd-run",
            "--quiet",
            "--wait",
            "--pipe",
            "--uid=bob",
            &unit,
            "tokenctl",
            "get",
            "billing",
        ])
    };
    let got = in_unit("billing.service");
    assert_eq!((got.code, got.stdout.trim_end()), (0, token.as_str()), "{}", got.stderr);
    assert_eq!(in_unit("other.service").code, 4);
    assert_eq!(machine.run_as("bob", &["tokenctl", "get", "billing"]).code, 4);
    host.stop_cleanly();
}

#[test]
fn a_crash_is_repaired_and_callers_hardly_notice() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    host.token_for("alice", "psb");
    machine.check(&["systemctl", "kill", "--signal=KILL", "tokend.service"]);
    host.token_for("alice", "psb");
    assert_eq!(machine.property("tokend.service", "NRestarts"), "1");
    host.stop_cleanly();
}

#[test]
fn a_journal_that_hangs_delays_no_caller_and_misses_nothing() {
    const CALLS: u64 = 1000;
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    host.token_for("alice", "psb");

    machine.check(&["systemctl", "kill", "--signal=STOP", "systemd-journald.service"]);
    let calls =
        format!("for i in $(seq {CALLS}); do tokenctl get --deadline 5s psb >/dev/null || exit 1; done");
    let called = machine.run(&["sh", "-c", &calls]);
    machine.check(&["systemctl", "kill", "--signal=CONT", "systemd-journald.service"]);
    assert_eq!(called.code, 0, "{}", called.stderr);
    // What a caller repeats is one record with a count.
    wait::until("all hand-outs in the journal", || {
        let records = machine.journal(&["TOKEND_VERB=get", "TOKEND_UID=0", "--output=json"]);
        let records = records.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let counts = records.filter_map(|record| record["TOKEND_COUNT"].as_str()?.parse::<u64>().ok());
        (counts.sum::<u64>() >= CALLS).then_some(())
    });
    host.stop_cleanly();
}

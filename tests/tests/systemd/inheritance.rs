//! A connection is its maker's: whoever gets hold of it when that process has ended gains nothing, and neither does
//! whoever gets that process's number.

use std::thread;

use tokend_tests::{Finished, Machine};

use crate::host::Host;

const SOCKET: &str = "/run/tokend/tokend.sock";
const HANDED_OVER: &str = "/run/handover/connection";

fn start() -> Option<Host> {
    let host = Host::boot()?;
    host.configure("[token.billing]\nprovider = \"psb\"\nallow = [\"unit:billing.service\"]\n");
    host.start_provider();
    host.machine.check(&["install", "-d", "-m", "1777", "/run/handover"]);
    host.machine.check(&["systemctl", "start", "tokend"]);
    host.token_for("alice", "psb");
    Some(host)
}

/// Somebody who takes the connection that the giver passes on, and what both of them print.
fn hand_over(
    machine: &Machine,
    (heir, wish): (&str, &[&str]),
    between: impl FnOnce() -> String,
) -> (String, String) {
    thread::scope(|scope| {
        let taken =
            scope.spawn(|| machine.run_as(heir, &[&["fd_relay", "take", HANDED_OVER], wish].concat()));
        let given = between();
        (given, taken.join().map(Finished::expect_success).unwrap())
    })
}

fn give(machine: &Machine, user: &str, token: &[&str]) -> String {
    let given = machine.run_as(user, &[&["fd_relay", "give", HANDED_OVER, SOCKET], token].concat());
    given.expect_success()
}

/// Gives the number of a process that has ended to a new one, of this user and in a service of this name.
fn occupy(machine: &Machine, number: &str, user: &str, unit: &str) {
    machine.check(&["systemd-run", "--quiet", &format!("--unit={unit}"), "fd_relay", "occupy", number, user]);
    let expected = format!("0::/system.slice/{unit}");
    let owned = format!("Uid:\t{}", machine.check(&["id", "-u", user]).trim());
    tokend_tests::wait::until("the number's new owner", || {
        let process =
            machine.run(&["cat", &format!("/proc/{number}/cgroup"), &format!("/proc/{number}/status")]);
        let is_there = process.stdout.lines().any(|line| line == expected);
        (is_there && process.stdout.contains(&owned)).then_some(())
    });
}

fn number(given: &str) -> &str {
    given.split(' ').next().unwrap()
}

#[test]
fn a_connection_whose_maker_has_ended_gains_another_user_nothing() {
    let Some(host) = start() else { return };
    let machine = &host.machine;
    let (_, taken) = hand_over(machine, ("bob", &["psb"]), || give(machine, "alice", &[]));
    assert_eq!(taken, "while it lives: a token\nwhen it has ended: closed\n");
    host.stop_cleanly();
}

#[test]
fn the_number_of_a_process_that_has_ended_gives_no_rights_to_whoever_gets_it() {
    let Some(host) = start() else { return };
    let machine = &host.machine;
    let (given, taken) = hand_over(machine, ("bob", &["psb", "/run/handover/go"]), || {
        let given = give(machine, "alice", &["psb"]);
        // Another process of alice's, to whom the rule gives the token.
        occupy(machine, number(&given), "alice", "occupant.service");
        machine.check(&["touch", "/run/handover/go"]);
        given
    });
    assert!(given.ends_with(" a token\n"), "{given}");
    assert_eq!(taken, "later: closed\n");
    host.stop_cleanly();
}

#[test]
fn the_rights_of_a_process_are_not_those_of_whoever_had_its_number_before() {
    let Some(host) = start() else { return };
    let machine = &host.machine;
    let (_, taken) = hand_over(machine, ("bob", &["billing", "/run/handover/go"]), || {
        // The daemon finds the connection when bob's process has ended and its number is that of another process of
        // his, in the service that may have the token.
        machine.check(&["systemctl", "kill", "--signal=STOP", "tokend.service"]);
        let given = give(machine, "bob", &[]);
        occupy(machine, number(&given), "bob", "billing.service");
        machine.check(&["systemctl", "kill", "--signal=CONT", "tokend.service"]);
        machine.check(&["touch", "/run/handover/go"]);
        given
    });
    assert_eq!(taken, "later: closed\n");
    let given_out =
        machine.journal(&["-u", "tokend", "--output=cat", "TOKEND_TOKEN=billing", "TOKEND_DECISION=allow"]);
    assert!(!given_out.contains("billing"), "{given_out}");
    host.stop_cleanly();
}

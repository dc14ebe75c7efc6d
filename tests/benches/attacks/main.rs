//! The latency of a quiet user's calls alone and beside each attack of other users, in one run.
//!
//! `cargo bench -p tokend-tests --bench attacks`, as root, because every user is one of its own. Words after `--` pick
//! attacks by their names. `TOKEND_BINARY` names other daemons to measure, separated by colons: an attack is made on each
//! of them, in turns, and each has a line of the table. The last of them is the one that is judged.
//!
//! The ratio is to show how the daemon shares itself among users, and not how the kernel shares the processors. Three
//! things serve that. The daemon and the quiet caller are in a real-time class, so neither waits for a processor because
//! somebody computes. Beside the quiet caller alone, the
//! processors are kept busy at idle priority, so that they are as awake as during an attack. And rounds of both kinds take
//! turns, so that a change of the machine's load meets both. The column `busy` shows how much of a processor the daemon
//! took during the attack.
//!
//! The daemon has the limits of `tokend.service`: 9,216 descriptors, and 1 GiB of memory, beyond which it is killed.
//!
//! Latencies are judged in the table only, because they depend on the machine. A daemon that takes more than 256 MiB, that
//! ends, or in whose audit trail a decision is missing, fails the run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program that measures, and stops at the first fault"
)]

mod attacker;
mod stage;
mod table;
mod varying;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokend_tests::{bench, program, requirement};

use self::attacker::{ATTACKS, Attack};
use self::stage::Stage;

/// Rounds of each kind, quiet and beside the attack.
const ROUNDS: usize = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["caller", words @ .., socket] => bench::measure(words, Path::new(socket)),
        ["attacker", attack, user, users, round, socket] => {
            attacker::run(
                attack,
                user.parse().unwrap(),
                users.parse().unwrap(),
                round.parse().unwrap(),
                socket,
            );
        }
        ["once", user, control_group, socket] => varying::call(user.parse().unwrap(), control_group, socket),
        ["busy", _] => {
            bench::end_with_input();
            stage::keep_processors_busy();
        }
        picked if requirement::root() => return compare(picked),
        _ => (),
    }
    ExitCode::SUCCESS
}

fn compare(picked: &[&str]) -> ExitCode {
    let daemons: Vec<PathBuf> = match env::var_os("TOKEND_BINARY") {
        Some(paths) => env::split_paths(&paths).collect(),
        None => vec![program::tokend()],
    };
    table::print_head();
    let is_picked =
        |attack: &&Attack| picked.is_empty() || picked.iter().any(|word| attack.name.contains(word));
    let mut is_within = true;
    for attack in ATTACKS.iter().filter(is_picked) {
        let mut stages: Vec<Stage> = daemons.iter().map(|daemon| Stage::start(daemon)).collect();
        for round in 0..ROUNDS {
            for stage in &mut stages {
                stage.round(attack, round);
            }
        }
        let figures: Vec<_> = stages.into_iter().map(Stage::end).collect();
        for (daemon, figures) in daemons.iter().zip(&figures) {
            table::print_row(attack.name, daemon, figures);
        }
        is_within &= figures.last().unwrap().is_within_bounds();
    }
    if is_within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

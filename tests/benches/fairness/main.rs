//! How much one caller at full speed costs another: the median latency of a caller alone and beside a flood, in one run.
//!
//! `cargo bench -p tokend-tests --bench fairness`, as root, because both callers are users of their own. A name
//! after `--` picks one flood. The daemon, the flood and the caller are processes of their own and share the
//! machine, so that its noise is in the figures; alone and beside the flood take turns for that reason.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program that measures, and stops at the first fault"
)]

mod floods;

use std::env;
use std::path::Path;
use std::process::ExitCode;

use tokend_tests::bench::{self, share};
use tokend_tests::requirement;

use self::floods::{FLOODS, Placement};

/// Rounds of each, alone and beside the flood.
const ROUNDS: usize = 5;

/// Calls in a round.
const CALLS: usize = 2000;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["flood", number, socket] => floods::flood(number.parse().unwrap(), Path::new(socket)),
        ["caller", words @ .., socket] => bench::measure(words, Path::new(socket)),
        picked if requirement::root() => compare(picked),
        _ => (),
    }
    ExitCode::SUCCESS
}

fn compare(picked: &[&str]) {
    println!(
        "{:<32} {:>10} {:>10} {:>7} {:>10}",
        "median of a caller", "alone", "beside", "ratio", "99 of 100"
    );
    for (number, flood) in FLOODS.iter().enumerate() {
        if !picked.is_empty() && !picked.iter().any(|word| flood.name.contains(word)) {
            continue;
        }
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for round in floods::measure(number, ROUNDS, CALLS, Placement::Free) {
            alone.extend(round.alone);
            beside.extend(round.beside);
        }
        let (one, other) = (share(&alone, 50), share(&beside, 50));
        let ratio = other.as_secs_f64() / one.as_secs_f64();
        let worst = share(&beside, 99);
        println!("{:<32} {one:>10.1?} {other:>10.1?} {ratio:>7.2} {worst:>10.1?}", flood.name);
    }
}

//! How fast tokend is and how much memory it takes, against baselines that are measured in the same run.
//!
//! `tests/bench` runs it, and installs before what it compares. `docs/performance.md` describes the rows. All programs are
//! processes of their own and share the machine, so that its noise is in the figures. What is compared takes turns for that
//! reason, and a ratio is computed for each round. A bar that is not met fails nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a program that measures, and stops at the first fault"
)]

mod command;
mod cpu;
mod fairness;
#[path = "../fairness/floods.rs"]
mod floods;
mod floor;
mod load;
mod machine;
mod memory;
mod oidc_agent;
mod plot;
mod profile;
mod rotation;
mod server;
mod serving;
mod source;
mod start;
mod table;
mod tokend;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use std::{env, fs};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokend_tests::{bench, program};

use self::table::Report;

const USAGE: &str = "usage: speed [--tokens NUMBER] [--rounds NUMBER] [PART]...";

/// The daemon needs two for each of 10,000 connections, and some room.
const DESCRIPTORS: u64 = 32_768;

/// The options of a run.
pub(crate) struct Plan {
    pub(crate) tokens: usize,
    pub(crate) rounds: usize,
    /// Of [`PARTS`]; all if there are none.
    parts: Vec<String>,
}

type Part = (&'static str, fn(&Plan, &mut Report));

const PARTS: [Part; 8] = [
    ("source", source::measure),
    ("serving", serving::measure),
    ("command", command::measure),
    ("memory", memory::measure),
    ("rotation", rotation::measure),
    ("start", start::measure),
    ("fairness", fairness::measure),
    ("profile", profile::measure),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["floor", reply, socket] => floor::serve(reply, socket),
        ["load", words @ .., socket] => load::main(words, socket),
        ["flood", number, socket] => floods::flood(number.parse().unwrap(), Path::new(socket)),
        ["caller", words @ .., socket] => bench::measure(words, Path::new(socket)),
        words => {
            let Some(plan) = Plan::read(words) else {
                eprintln!("{USAGE}\nparts: {}", PARTS.map(|(name, _)| name).join(" "));
                return ExitCode::from(2);
            };
            plan.run();
        }
    }
    ExitCode::SUCCESS
}

impl Plan {
    fn read(words: &[&str]) -> Option<Self> {
        let mut plan = Self { tokens: 10_000, rounds: 5, parts: Vec::new() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--tokens" => plan.tokens = words.next()?.parse().ok().filter(|number| *number > 5)?,
                "--rounds" => plan.rounds = words.next()?.parse().ok().filter(|number| *number > 0)?,
                part if PARTS.iter().any(|(name, _)| *name == part) => plan.parts.push(part.to_owned()),
                _ => return None,
            }
        }
        Some(plan)
    }

    fn run(&self) {
        allow_descriptors();
        let (began, facts, mut report) = (Instant::now(), machine::facts(), Report::default());
        for (name, measure) in PARTS {
            if self.parts.is_empty() || self.parts.iter().any(|part| part == name) {
                eprintln!("{:>4} s  measuring: {name}", began.elapsed().as_secs());
                measure(self, &mut report);
            }
        }
        let (markdown, json) = (report.markdown(&facts), format!("{:#}\n", report.json(&facts)));
        let directory = program::workspace().join("target/speed");
        fs::create_dir_all(&directory).unwrap();
        let plot = plot::svg(&report);
        for (name, text) in [("speed.md", &markdown), ("speed.json", &json), ("speed.svg", &plot)] {
            fs::write(directory.join(name), text).unwrap();
        }
        println!("{markdown}\n{json}");
        eprintln!("{:>4} s  written to {}", began.elapsed().as_secs(), directory.display());
    }
}

/// Raises the limit of descriptors: as root to what the part `memory` needs, else as far as possible.
fn allow_descriptors() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = most.max(DESCRIPTORS);
    let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted);
    raised.or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, most, most)).unwrap();
}

//! The engine (credentials, throttles, schedule) in simulated time, with only clock and provider replaced.
//!
//! Every simulation follows from its seed. One that fails prints its seed;
//! `TOKEND_SIM_SEED=SEED cargo test -p tokend-tests --test simulation` runs exactly the same again.
//!
//! The normal run always takes the same seeds, so that the gate never fails by chance. For a nightly run,
//! `TOKEND_SIM_RANDOM=1` takes random ones, by the wall clock, and `TOKEND_SIM_SEEDS=5000` takes so many.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a test: a panic is how it fails, its figures are printed, and nothing is outside of it"
)]

mod caller;
mod host;
mod judge;
mod key;
mod plan;
mod provider;
mod real_servers;
mod regressions;
mod restarts;
mod tally;
mod test_support;
mod trouble;
mod world;

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use plan::Plan;
use tally::Tally;
use world::{Report, run};

/// Chooses the seeds of a run.
const SEED: &str = "TOKEND_SIM_SEED";

/// How many seeds, if not as many as usual.
const SEEDS: (&str, u64) = ("TOKEND_SIM_SEEDS", 200);

/// Takes random seeds instead of the fixed ones.
const RANDOM: &str = "TOKEND_SIM_RANDOM";

/// The first of the fixed seeds.
const FIRST: u64 = 20_261_000;

/// Seeds that have found a fault once.
const KNOWN: [u64; 1] = [1_795_262_525_117];

/// A token is renewed no earlier than at 60 % of its life, so that the schedule needs no more than five thirds of the
/// requests that would do if every lifetime were known in advance. Requests beyond that are one for each failure, at
/// intervals that the judge checks one by one, and those that callers and operators asked for.
const BOUND: f64 = 5.0 / 3.0;

/// A number that the environment names.
fn chosen(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn verdict(kind: &str, seed: u64, report: &Report) -> Result<(), String> {
    let Report { tally, violation, .. } = report;
    let replay = format!("{SEED}={seed} cargo test -p tokend-tests --test simulation {kind}");
    if let Some(violation) = violation {
        return Err(format!("seed {seed}: {violation}\nreplay: {replay}"));
    }
    let (renewals, least) = tally.plain;
    if renewals as f64 > BOUND * least + 1.0 {
        return Err(format!("seed {seed}: {renewals} renewals where {least:.0} would do\nreplay: {replay}"));
    }
    Ok(())
}

fn print(what: &str, tally: &Tally) {
    let (renewals, least) = tally.plain;
    // Past the capture of the test's output: the figures are of interest when all is well, too.
    let _ = writeln!(
        std::io::stderr(),
        "{what}: {} events; {} calls, {} served, {} waited; {} troubles, {} suspends\n\
         {} requests ({} failed, {} retries, {} wished for) where {:.0} would do; by the schedule alone {renewals} where \
         {least:.0} would do: {:.2} times as many, bound {BOUND:.2}",
        tally.events,
        tally.calls,
        tally.served,
        tally.waited,
        tally.troubles,
        tally.suspends,
        tally.sent,
        tally.failed,
        tally.retries,
        tally.wished,
        tally.least,
        renewals as f64 / least
    );
}

#[test]
fn a_year_of_a_thousand_tokens() {
    let seed = chosen(SEED).unwrap_or(2026);
    let report = run(Plan::year(seed));
    print(&format!("a year of 1000 tokens, seed {seed}"), &report.tally);
    verdict("a_year", seed, &report).unwrap_or_else(|wrong| panic!("{wrong}"));
}

#[test]
fn many_seeds() {
    let first = match chosen(RANDOM) {
        None | Some(0) => FIRST,
        Some(_) => 1_000 * SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(),
    };
    let seeds: Vec<u64> = match chosen(SEED) {
        Some(seed) => vec![seed],
        None => KNOWN.into_iter().chain(first..first + chosen(SEEDS.0).unwrap_or(SEEDS.1)).collect(),
    };
    let next = AtomicU64::new(0);
    let total = Mutex::new((Tally::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let report = run(Plan::short(seed));
                    let mut total = total.lock().unwrap();
                    total.0.add(&report.tally);
                    total.1.extend(verdict("many_seeds", seed, &report).err());
                }
            });
        }
    });
    let (tally, wrong) = total.into_inner().unwrap();
    print(&format!("{} seeds, {} to {}", seeds.len(), seeds[0], seeds[seeds.len() - 1]), &tally);
    assert!(
        wrong.is_empty(),
        "{} of {} failed\n{}",
        wrong.len(),
        seeds.len(),
        wrong.iter().take(3).cloned().collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn a_seed_runs_in_the_same_way_each_time() {
    let [one, other] = [(); 2].map(|()| run(Plan::short(7)));
    assert_eq!((one.digest, one.tally.events), (other.digest, other.tally.events));
    assert_ne!(one.digest, run(Plan::short(8)).digest);
}

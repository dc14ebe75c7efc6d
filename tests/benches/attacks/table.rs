//! The table of results.

use std::path::Path;
use std::time::Duration;

use tokend_tests::bench::share;

/// How many times the latency alone a latency beside an attack may be.
const KEPT_MAX: f64 = 3.0;
const NEW_MAX: f64 = 20.0;

const PEAK_KIB_MAX: u64 = 256 * 1024;

/// Latencies, by round.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) alone: Vec<Vec<Duration>>,
    pub(crate) beside: Vec<Vec<Duration>>,
}

/// The results of one attack on one daemon.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) kept: Comparison,
    pub(crate) new: Comparison,
    /// Calls of the quiet user that brought no token.
    pub(crate) failed: usize,
    pub(crate) peak_kib: Option<u64>,
    /// Whether the daemon ended during an attack.
    pub(crate) has_ended: bool,
    /// The share of a processor.
    pub(crate) busy: f64,
    /// Audit records about the attackers.
    pub(crate) records_per_second: f64,
    /// Hand-outs that the audit trail does not have: of the quiet user, and of the attackers.
    pub(crate) missing: [i64; 2],
    pub(crate) counts_attackers: bool,
}

impl Figures {
    pub(crate) fn is_within_bounds(&self) -> bool {
        !self.has_ended && self.missing == [0; 2] && self.peak_kib.is_some_and(|kib| kib <= PEAK_KIB_MAX)
    }
}

pub(crate) fn print_head() {
    println!(
        "{:<34} {:<8} | {:<44} | {:<44} | {:>8} {:>5} {:>9} {:>9} {:>6}\n{:<34} {:<8} | {HEAD} | {HEAD} | {:>8} {:>5} {:>9} {:>9} {:>6}",
        "",
        "",
        "get on a kept connection (at most 3x)",
        "get on a new connection (at most 20x)",
        "peak",
        "busy",
        "records",
        "decisions",
        "failed",
        "attack",
        "daemon",
        "MiB",
        "%",
        "/second",
        "missing",
        "calls"
    );
}

const HEAD: &str = "   alone   beside  ratio (min-max)  99 of 100   ";

pub(crate) fn print_row(attack: &str, daemon: &Path, figures: &Figures) {
    let name: String =
        daemon.display().to_string().split('/').rev().nth(1).unwrap_or("").chars().take(8).collect();
    let peak = match figures.peak_kib {
        _ if figures.has_ended => "ENDED".to_owned(),
        Some(kib) if kib > PEAK_KIB_MAX => format!("{} OVER", kib / 1024),
        kib => format!("{} ok", kib.unwrap_or_default() / 1024),
    };
    let [quiet, attackers] = figures.missing;
    let missing = if figures.has_ended {
        "-".to_owned()
    } else if figures.counts_attackers {
        format!("{quiet}+{attackers}")
    } else {
        quiet.to_string()
    };
    println!(
        "{attack:<34} {name:<8} | {} | {} | {peak:>8} {:>5.0} {:>9.0} {missing:>9} {:>6}",
        figures.kept.describe(KEPT_MAX),
        figures.new.describe(NEW_MAX),
        figures.busy * 100.0,
        figures.records_per_second,
        figures.failed
    );
}

impl Comparison {
    fn describe(&self, most: f64) -> String {
        let (alone, beside) = (self.alone.concat(), self.beside.concat());
        if alone.is_empty() || beside.is_empty() {
            return format!("{:<44}", "no call succeeded");
        }
        let rounds = self
            .alone
            .iter()
            .zip(&self.beside)
            .filter(|(alone, beside)| !alone.is_empty() && !beside.is_empty());
        let ratios: Vec<f64> = rounds.map(|(alone, beside)| ratio(alone, beside, 50)).collect();
        let (least, greatest) =
            (ratios.iter().copied().fold(f64::MAX, f64::min), ratios.iter().copied().fold(0.0, f64::max));
        let of_all = ratio(&alone, &beside, 50);
        let verdict = if of_all <= most { "ok" } else { "OVER" };
        let range = format!("({least:.1}-{greatest:.1})");
        format!(
            "{:>8.0?} {:>8.0?} {of_all:>6.1} {range:<12} {:>6.1} {verdict:<4}",
            share(&alone, 50),
            share(&beside, 50),
            ratio(&alone, &beside, 99)
        )
    }
}

fn ratio(alone: &[Duration], beside: &[Duration], of_hundred: usize) -> f64 {
    share(beside, of_hundred).as_secs_f64() / share(alone, of_hundred).as_secs_f64()
}

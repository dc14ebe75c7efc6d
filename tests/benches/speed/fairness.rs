//! How much a user who floods the daemon costs another. `--bench fairness` measures the same for longer.

use std::time::Duration;

use nix::unistd::Uid;
use tokend_tests::bench::share;

use crate::Plan;
use crate::floods::{self, FLOODS, Placement, Round};
use crate::table::{Bar, Report, Row};

/// There are many floods, so there are few rounds.
const ROUNDS_MAX: usize = 3;

/// Calls in a round.
const CALLS: usize = 1000;

/// How many times as long as alone a caller's median call may take.
const MOST: f64 = 3.0;

pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    if !Uid::effective().is_root() {
        report.left_out.push("calls beside a flood: run it as root".to_owned());
        return;
    }
    let placements = [(Placement::Free, ""), (Placement::Apart, ", the daemon on a processor of its own")];
    for ((placement, name), (number, flood)) in
        placements.iter().flat_map(|placement| FLOODS.iter().enumerate().map(move |flood| (placement, flood)))
    {
        let rounds = floods::measure(number, plan.rounds.min(ROUNDS_MAX), CALLS, *placement);
        let medians = |latencies: fn(&Round) -> &Vec<Duration>| {
            rounds.iter().map(|round| share(latencies(round), 50).as_secs_f64() * 1e6).collect()
        };
        report.rows.push(Row {
            what: format!("median get beside a flood: {}{name}", flood.name),
            unit: "µs",
            tokend: medians(|round| &round.beside),
            baseline: Some(("alone".to_owned(), medians(|round| &round.alone))),
            bar: Some(Bar::AtMost(MOST)),
        });
    }
}

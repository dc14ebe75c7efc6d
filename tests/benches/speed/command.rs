//! The time of `tokenctl get` from its start to its end, against a program that does nothing.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokend_tests::bench::share;
use tokend_tests::program;

use crate::Plan;
use crate::server::{Kind, Server};
use crate::table::{Bar, Report, Row};

/// Starts of each program in a round.
const STARTS: usize = 200;

/// How many times as long as `/bin/true` `tokenctl get` may take.
const MOST: f64 = 1.25;

pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let (tokend, redis) = (Server::tokend(5), Server::installed(Kind::Redis));
    let mut commands = vec![
        command(&program::tokenctl().display().to_string(), &["--socket", path(&tokend), "get", "t0"]),
        command("/bin/true", &[]),
    ];
    match &redis {
        Some(redis) => commands.push(command("redis-cli", &["-s", path(redis), "get", "t0"])),
        None => report.left_out.push("redis-cli: it is not installed".to_owned()),
    }
    let mut medians = vec![Vec::new(); commands.len()];
    for _ in 0..plan.rounds {
        let mut times = vec![Vec::new(); commands.len()];
        for _ in 0..STARTS {
            for (command, times) in commands.iter_mut().zip(&mut times) {
                times.push(run(command));
            }
        }
        for (times, medians) in times.iter().zip(&mut medians) {
            medians.push(share(times, 50).as_secs_f64() * 1e3);
        }
    }
    let names = [("/bin/true", Some(Bar::AtMost(MOST))), ("redis-cli get", None)];
    for ((name, bar), other) in names.into_iter().zip(&medians[1..]) {
        report.rows.push(Row {
            what: "tokenctl get, start to end".to_owned(),
            unit: "ms",
            tokend: medians[0].clone(),
            baseline: Some((name.to_owned(), other.clone())),
            bar,
        });
    }
}

fn path(server: &Server) -> &str {
    server.socket.to_str().unwrap()
}

/// A command without an environment, because variables of cargo make a program slower to start.
fn command(program: &str, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn run(command: &mut Command) -> Duration {
    let began = Instant::now();
    let ended = command.status().unwrap();
    assert!(ended.success(), "{command:?} failed");
    began.elapsed()
}

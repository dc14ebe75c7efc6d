//! The time of `tokenctl get` from its start to its end, against a program that does nothing.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokend_tests::bench::share;
use tokend_tests::program;

use crate::Plan;
use crate::oidc_agent::OidcAgent;
use crate::server::{Kind, Server};
use crate::table::{Bar, Report, Row};

/// Starts of each program in a round.
const STARTS: usize = 200;

/// How many times as long as `/bin/true` `tokenctl get` may take.
const MOST: f64 = 1.25;

pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let (tokend, redis) = (Server::tokend(5), Server::installed(Kind::Redis));
    let mut own =
        command(&program::tokenctl().display().to_string(), &["--socket", path(&tokend), "get", "t0"]);
    let mut commands = vec![("/bin/true", Some(Bar::AtMost(MOST)), command("/bin/true", &[]))];
    match &redis {
        Some(redis) => {
            let command = command("redis-cli", &["-s", path(redis), "get", "t0"]);
            commands.push(("redis-cli get", None, command));
        }
        None => report.left_out.push("redis-cli: it is not installed".to_owned()),
    }
    let agent = OidcAgent::start();
    match &agent {
        Some(agent) => {
            let mut command = agent.command("oidc-token");
            command.arg("t0");
            commands.push(("oidc-token", None, command));
        }
        None => report.left_out.push("oidc-token: oidc-agent is not installed".to_owned()),
    }
    let mut figures = vec![(Vec::new(), Vec::new()); commands.len()];
    for _ in 0..plan.rounds {
        for ((_, _, other), (owns, others)) in commands.iter_mut().zip(&mut figures) {
            let (mut own_times, mut times) = (Vec::new(), Vec::new());
            for _ in 0..STARTS {
                own_times.push(run(&mut own));
                times.push(run(other));
            }
            owns.push(share(&own_times, 50).as_secs_f64() * 1e3);
            others.push(share(&times, 50).as_secs_f64() * 1e3);
        }
    }
    for ((name, bar, _), (own, other)) in commands.into_iter().zip(figures) {
        report.rows.push(Row {
            what: "tokenctl get, start to end".to_owned(),
            unit: "ms",
            tokend: own,
            baseline: Some((name.to_owned(), other)),
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

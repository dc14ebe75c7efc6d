//! Many callers of the daemon at once, as services are: each with a client of its own, asking for one token after
//! the other, for as long as they are let.
//!
//! `load SOCKET NUMBER REPORT TOKEN...` runs until it gets SIGTERM, then writes what
//! came of it to the file REPORT, as lines of a name and a value. A call that fails is counted and its reason told.

#![expect(clippy::expect_used, reason = "test code: a panic is how it fails")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use tokend_client::{Client, Options, TokenName};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Between two calls of one caller, on average.
const PAUSE: Duration = Duration::from_millis(40);

/// The results of the calls.
#[derive(Debug, Default)]
struct Tally {
    calls: u64,
    failures: BTreeMap<String, u64>,
    longest: Duration,
    /// Hand-outs of a token that expires before one that was handed out earlier.
    older: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [socket, number, report, tokens @ ..] = arguments.as_slice() else { return ExitCode::from(2) };
    let (Ok(number), Ok(tokens)) = (number.parse(), tokens.iter().map(|name| name.parse()).collect()) else {
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tally = runtime.expect("a runtime can be built").block_on(run(socket, number, tokens));
    fs::write(report, tally.lines()).expect("the report can be written");
    ExitCode::SUCCESS
}

async fn run(socket: &str, number: usize, tokens: Vec<TokenName>) -> Tally {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be caught");
    let (end, ends) = watch::channel(false);
    let mut callers = JoinSet::new();
    for _ in 0..number {
        callers.spawn(call(Client::new(Options::new(socket)), tokens.clone(), ends.clone()));
    }
    terminate.recv().await;
    end.send_replace(true);
    let mut all = Tally::default();
    while let Some(tally) = callers.join_next().await {
        all.add(tally.expect("a caller ends in good order"));
    }
    all
}

async fn call(client: Client, tokens: Vec<TokenName>, ends: watch::Receiver<bool>) -> Tally {
    let mut tally = Tally::default();
    let mut newest = BTreeMap::new();
    while !*ends.borrow() {
        let Some(name) = fastrand::choice(&tokens) else { break };
        let began = Instant::now();
        match client.get(name).await {
            Ok(reply) => {
                // The wall clock's grain, and the time between two looks at it.
                let end = reply.info.expires_at.0 / 1_000;
                let before = newest.insert(name.clone(), end);
                tally.older += u64::from(before.is_some_and(|before| end + 1 < before));
            }
            Err(error) => *tally.failures.entry(error.to_string()).or_default() += 1,
        }
        tally.calls += 1;
        tally.longest = tally.longest.max(began.elapsed());
        tokio::time::sleep(PAUSE.mul_f64(2.0 * fastrand::f64())).await;
    }
    tally
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.longest = self.longest.max(other.longest);
        self.older += other.older;
        for (reason, times) in other.failures {
            *self.failures.entry(reason).or_default() += times;
        }
    }

    fn lines(&self) -> String {
        let failed: u64 = self.failures.values().sum();
        let longest = self.longest.as_millis();
        let lines =
            format!("calls {}\nfailed {failed}\nlongest-ms {longest}\nolder {}\n", self.calls, self.older);
        let told = |lines, (reason, times): (&String, &u64)| format!("{lines}failure {times} x {reason}\n");
        self.failures.iter().fold(lines, told)
    }
}

//! The log is written beside the service, never in its way.

use std::fs::File;
use std::io::{BufRead, BufReader};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::Mode;
use tokend_client::blocking::Client;
use tokend_client::{CallerHeaders, Options};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Provider, RealDaemon, TestDir};

/// Bytes of log that a pipe takes which nobody reads.
const PIPE: i32 = 4096;

/// Bytes of log that wait in the daemon, at most.
const WAITING_MOST: usize = 4 * 1024 * 1024;

/// What the record of one hand-out adds to them, at least: it names the token twice.
const RECORD_LEAST: usize = 2 * NAME_LENGTH;

/// As long as a name may be, so that few hand-outs make a long log.
const NAME_LENGTH: usize = tokend_protocol::TOKEN_NAME_MAX;

/// Names, each handed out in two ways, that fill the log. Hand-outs that repeat one another would be one record.
const NAMES: usize = (WAITING_MOST + PIPE as usize) / RECORD_LEAST / 2 + 1;

struct Stuck {
    daemon: RealDaemon,
    log: File,
    client: Client,
    _provider: Provider,
    _home: TestDir,
}

/// A daemon whose standard error is a pipe that nobody reads.
fn start() -> Stuck {
    let (home, provider) = (TestDir::new(), Provider::start());
    let table = provider_table(&home, "p", &provider.token_endpoint(), "");
    let tokens: String = (0..NAMES).map(|n| token_table(&name(n), "")).collect();
    home.configure("", &(table + &tokens));
    let path = home.path().join("log.pipe");
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let log = File::options().read(true).write(true).open(&path).unwrap();
    fcntl(&log, FcntlArg::F_SETPIPE_SZ(PIPE)).unwrap();
    let daemon = Launch::new(&home)
        .through(&["sh", "-c", "exec \"$@\" 2>\"$LOG_PIPE\"", "sh"])
        .env("LOG_PIPE", &path)
        .start();
    let client = Client::new(Options::new(home.socket()));
    Stuck { daemon, log, client, _provider: provider, _home: home }
}

fn name(number: usize) -> String {
    format!("{number:0>NAME_LENGTH$}")
}

fn hand_outs(client: &Client, names: usize) {
    for number in 0..names {
        let name = name(number).parse().unwrap();
        client.get(&name).expect("a log that nobody reads delays no caller");
        client.headers(&name, &CallerHeaders::default()).expect("nor does it delay another");
    }
}

#[test]
fn a_log_that_nobody_reads_delays_neither_callers_nor_the_end() {
    let mut stuck = start();
    hand_outs(&stuck.client, 8 * PIPE as usize / RECORD_LEAST);
    assert_eq!(stuck.daemon.stop(), 0);
}

#[test]
fn events_that_are_lost_are_told_of_once_the_log_goes_on() {
    let stuck = start();
    hand_outs(&stuck.client, NAMES);
    let mut lines = BufReader::new(stuck.log.try_clone().unwrap()).lines();
    let told = lines.find_map(|line| line.ok().filter(|line| line.contains("events were lost"))).unwrap();
    assert!(told.contains("ERROR") && told.contains("lost="), "{told}");
}

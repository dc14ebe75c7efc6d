//! The log is written beside the service, never in its way.

use std::fs::File;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::Mode;
use tokend_client::blocking::Client;
use tokend_client::{CallerHeaders, Options};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Provider, RealDaemon, TestDir};

/// Bytes of log that a pipe takes which nobody reads.
const PIPE: i32 = 4096;

/// The bytes that the record of one hand-out adds to the log, at least: it names the token twice.
const RECORD_LEAST: usize = 2 * NAME_LENGTH;

/// As long as a name may be, so that few hand-outs make a long log.
const NAME_LENGTH: usize = tokend_protocol::TOKEN_NAME_MAX;

/// Names that fill the pipe eight times. Hand-outs that repeat one another would be one record.
const NAMES: usize = 8 * PIPE as usize / RECORD_LEAST;

struct Stuck {
    daemon: RealDaemon,
    /// Keeps the pipe open.
    _log: File,
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
    Stuck { daemon, _log: log, client, _provider: provider, _home: home }
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
    hand_outs(&stuck.client, NAMES);
    assert_eq!(stuck.daemon.stop(), 0);
}

//! Killed and restarted under load, time and again: no caller has a failed call, no token is lost, and the provider is
//! sent what the schedule asks for and nothing else.
//!
//! At full size with `TOKEND_TESTS_FULL=1`:
//!
//!     TOKEND_TESTS_FULL=1 cargo test -p tokend-tests --test systemd -- --nocapture under_load

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use tokend::clock::{Clock, ClockChanges};
use tokend_tests::{size, wait};

use crate::host::{Host, PROVIDER};
use crate::restart::wait_for_successor;

/// The lifetime of each token, in seconds: so short that each is renewed many times meanwhile, and long enough that an outage of a
/// second or two, which is what a crash is, fits into the third that is kept for renewing.
const LIFETIME: u64 = 20;

/// The schedule renews a token no earlier than after 60 % of its life (`engine/schedule.rs`). What comes later than
/// after half of it was due: the rest is for the way to the provider, which is long where the machine is busy.
const EARLIEST_RENEWAL_MS: u64 = LIFETIME * 500;

/// A request that came so shortly before a kill may have been under way then.
const EXCHANGE_MS: u64 = 1_000;

const TOKENS: usize = 10;
const CALLERS: &str = "50";
const REPORT: &str = "/tmp/callers-report";

/// A kill. It happened at some time after `after` and before `before`.
struct Kill {
    after: u64,
    before: u64,
}

#[test]
fn under_load_no_kill_and_no_restart_loses_a_token_a_call_or_a_request() {
    let (kills, restarts) = (size(100, 6), size(20, 3));
    // Where they are few, they are spread over the life of a token.
    let pause =
        Duration::from_millis(400).max(Duration::from_secs(2 * LIFETIME) / u32::try_from(kills).unwrap() / 2);
    let Some(host) = Host::boot() else { return };
    let names: Vec<String> = (0..TOKENS).map(|number| format!("load-{number}")).collect();
    host.configure(&tokens(&names));
    host.start_provider_with(LIFETIME);
    host.machine.check(&["systemctl", "start", "tokend"]);
    for name in &names {
        host.token_for("root", name);
    }
    start_callers(&host, &names);

    let began = now();
    let mut killed = Vec::new();
    for number in 0..kills + restarts {
        thread::sleep(pause.mul_f64(fastrand::f64()));
        let before = host.machine.property("tokend", "MainPID");
        // Restarts are spread among the kills.
        if number % (kills + restarts).div_ceil(restarts) == 1 {
            host.machine.check(&["systemctl", "restart", "tokend"]);
        } else {
            let after = now();
            host.machine.check(&["systemctl", "kill", "--signal=KILL", "tokend.service"]);
            killed.push(Kill { after, before: now() });
        }
        wait_for_successor(&host, &before);
    }
    wait::until("the renewal of every token", || (host.requests().len() > 2 * TOKENS).then_some(()));
    let took = now() - began;
    let report = end_callers(&host);
    let figure =
        |name: &str| -> u64 { report.get(name).unwrap_or_else(|| panic!("{report:?}")).parse().unwrap() };
    assert_eq!((figure("failed"), figure("older")), (0, 0), "{report:?}");

    let Traffic { requests, interrupted_requests } = traffic(&host, &killed);
    let still_held = names
        .iter()
        .filter(|name| host.machine.run(&["tokenctl", "get", "--deadline", "0s", name]).code == 0);
    assert_eq!(still_held.count(), TOKENS, "every token is held, without asking anybody");
    tokend_tests::report(&format!(
        "{} kills and {} restarts in {} s under {CALLERS} callers: {} calls, 0 failed, the longest {} ms; {requests} \
         requests for {TOKENS} tokens of {LIFETIME} s, all due by schedule, {interrupted_requests} of them a second time because \
         the daemon was killed before the answer",
        killed.len(),
        kills + restarts - killed.len(),
        took / 1_000,
        figure("calls"),
        figure("longest-ms"),
    ));
    host.stop_cleanly();
}

fn tokens(names: &[String]) -> String {
    let provider = format!(
        "[provider.load]\ntoken_endpoint = \"http://{PROVIDER}/token\"\nclient_id = \"load\"\n\
         client_secret = {{ credential = \"psb.secret\" }}\ntoken_endpoint_auth_method = \"client_secret_post\"\n"
    );
    names.iter().fold(provider, |all, name| {
        all + &format!("[token.{name}]\nprovider = \"load\"\nscope = \"{name}\"\n")
    })
}

/// Starts callers as root, who ask all the time.
pub(crate) fn start_callers(host: &Host, names: &[String]) {
    let callers = [
        "systemd-run",
        "--quiet",
        "--unit=load",
        "/usr/bin/load",
        "/run/tokend/tokend.sock",
        CALLERS,
        REPORT,
    ];
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    host.machine.check(&[&callers, names.as_slice()].concat());
}

/// What the callers have to say, by name.
pub(crate) fn end_callers(host: &Host) -> BTreeMap<String, String> {
    host.machine.check(&["systemctl", "kill", "--signal=TERM", "load.service"]);
    let report = wait::until("the callers' report", || {
        let read = host.machine.run(&["cat", REPORT]);
        (read.code == 0 && !read.stdout.is_empty()).then_some(read.stdout)
    });
    report
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// What the provider was sent.
struct Traffic {
    requests: usize,
    /// Requests that were repeated because a kill cut the exchange off.
    interrupted_requests: usize,
}

/// Looks at each request whether it was due: the one before it for the same token lies as far back as the schedule
/// wants, or its answer was lost with the process that waited for it.
fn traffic(host: &Host, killed: &[Kill]) -> Traffic {
    let mut by_scope: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (at, scope) in host.requests() {
        if scope.starts_with("load-") {
            by_scope.entry(scope).or_default().push(at);
        }
    }
    assert_eq!(by_scope.len(), TOKENS);
    let mut interrupted_requests = 0;
    for (scope, requests) in &by_scope {
        for pair in requests.windows(2) {
            if pair[1] - pair[0] >= EARLIEST_RENEWAL_MS {
                continue;
            }
            let is_cut_off =
                killed.iter().any(|kill| kill.after <= pair[0] + EXCHANGE_MS && pair[0] <= kill.before);
            assert!(is_cut_off, "{scope} was asked for {} ms after the request before", pair[1] - pair[0]);
            interrupted_requests += 1;
        }
    }
    // An exchange is over in a moment, so that hardly a kill falls into one. Were requests repeated for no such reason,
    // each kill would do it.
    assert!(
        interrupted_requests <= 1 + killed.len() / 10,
        "{interrupted_requests} requests repeated after {} kills",
        killed.len()
    );
    Traffic { requests: by_scope.values().map(Vec::len).sum(), interrupted_requests }
}

/// Milliseconds since the boot, as the provider counts.
fn now() -> u64 {
    Clock::kernel(ClockChanges::default()).now().to_wire().0
}

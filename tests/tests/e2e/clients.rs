//! The client library against a daemon in this process: calls in flight together, watches, reloads that
//! callers live through.

use std::thread;
use std::time::Duration;

use tokend_client::{Client, Error, Options, TokenName, blocking};
use tokend_protocol::{ErrorCode, Reply};
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Answer, Gate, InProcess, Provider, TestDir, raw_peer, requirement};

struct Setting {
    daemon: InProcess,
    provider: Provider,
    home: TestDir,
}

fn start(provider: Provider, tokens: &str) -> Setting {
    let home = TestDir::new();
    home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + tokens));
    Setting { daemon: InProcess::start(&home), provider, home }
}

fn name(text: &str) -> TokenName {
    text.parse().unwrap()
}

/// Runs a future on a runtime of the caller's own, as a service has it.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn calls_of_one_client_wait_together_and_cost_one_request() {
    let gate = Gate::new();
    let provider = Provider::start();
    provider.always(Answer::token(600).behind(&gate));
    let setting = start(provider, &token_table("t", ""));
    let tokens = block_on(async {
        let client = Client::new(Options::new(setting.daemon.socket()));
        let calls: Vec<_> = (0..50)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.get(&name("t")).await })
            })
            .collect();
        // Answered beside the calls that wait, on the same connection.
        client.version().await.unwrap();
        gate.open();
        let mut tokens = Vec::new();
        for call in calls {
            tokens.push(call.await.unwrap().unwrap().token);
        }
        tokens
    });
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(setting.provider.count(), 1);
}

#[test]
fn a_watch_tells_of_a_renewal() {
    let provider = Provider::start();
    provider.then(Answer::token(3));
    let setting = start(provider, &token_table("t", ""));
    block_on(async {
        let client = Client::new(Options::new(setting.daemon.socket()));
        let first = client.get(&name("t")).await.unwrap().info.fingerprint;
        let mut watch = client.watch(&[name("t")]).await.unwrap();
        let renewed = tokio::time::timeout(tokend_tests::wait::PATIENCE, async {
            loop {
                let held = watch.next().await.unwrap().unwrap().held;
                if let Some(held) = held.filter(|held| held.fingerprint != first) {
                    return held;
                }
            }
        });
        let renewed = renewed.await.expect("the renewal is told");
        assert_eq!(client.get(&name("t")).await.unwrap().info.fingerprint, renewed.fingerprint);
    });
}

#[test]
fn a_lifetime_that_the_provider_does_not_give_is_refused_at_once() {
    let provider = Provider::start();
    provider.always(Answer::token(60));
    let setting = start(provider, &token_table("t", ""));
    let client = blocking::Client::new(Options::new(setting.daemon.socket()));
    client.get(&name("t")).unwrap();
    match client.with_min_ttl(Duration::from_secs(3600)).get(&name("t")) {
        Err(Error::MinTtlUnreachable { .. }) => (),
        other => panic!("a refusal was expected, not {other:?}"),
    }
    assert!(setting.provider.count() <= 2, "the provider is not asked again and again");
}

#[test]
fn blocking_clients_of_many_threads_are_served_side_by_side() {
    let setting = start(Provider::start(), &token_table("t", ""));
    let client = blocking::Client::new(Options::new(setting.daemon.socket()));
    let expected = client.get(&name("t")).unwrap().token;
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let client = client.clone();
            thread::spawn(move || (0..50).map(|_| client.get(&name("t")).unwrap().token).collect::<Vec<_>>())
        })
        .collect();
    for thread in threads {
        assert!(thread.join().unwrap().iter().all(|token| *token == expected));
    }
    assert_eq!(setting.provider.count(), 1);
}

#[test]
fn an_open_connection_sees_a_reload() {
    let setting = start(Provider::start(), &(token_table("t", "") + &token_table("gone", "scope = \"g\"")));
    let mut peer = setting.daemon.peer();
    assert!(matches!(peer.ask(1, raw_peer::get("gone")), Reply::Token(_)));
    let table = provider_table(&setting.home, "p", &setting.provider.token_endpoint(), "");
    setting.home.configure("", &(table + &token_table("t", "")));
    setting.daemon.reload();
    match peer.ask(2, raw_peer::get("gone")) {
        Reply::Error(error) => assert_eq!(error.code, ErrorCode::UnknownToken),
        other => panic!("a refusal was expected, not {other:?}"),
    }
    assert!(matches!(peer.ask(3, raw_peer::get("t")), Reply::Token(_)));
}

/// The example client of the specification, in the language's standard library alone.
#[test]
fn the_python_example_gets_a_token() {
    if !requirement::program("python3") {
        return;
    }
    let setting = start(Provider::start(), &token_table("t", ""));
    let expected =
        blocking::Client::new(Options::new(setting.daemon.socket())).get(&name("t")).unwrap().token;
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../protocol/examples/get_token.py");
    let run = |token: &str| {
        let mut python = std::process::Command::new("python3");
        python.arg("-B").arg(example).arg(token).arg(setting.daemon.socket());
        python.output().unwrap()
    };
    let got = run("t");
    assert!(got.status.success(), "{got:?}");
    assert_eq!(String::from_utf8(got.stdout).unwrap().trim_end(), expected.expose());
    let refused = run("no-such-token");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no such token"), "{refused:?}");
}

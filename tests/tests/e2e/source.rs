//! Tokens that callers keep in process: pushed by the daemon, in use while it is away, and never expired.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tokend_client::blocking::{Client, TokenSource};
use tokend_client::{Error, Options, Variant};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Answer, InProcess, Provider, Scene, TestDir, program, secrets, wait};

fn client(socket: &std::path::Path) -> Client {
    Client::new(Options::new(socket).deadline(wait::PATIENCE))
}

fn source(client: &Client, name: &str, scope: &str) -> TokenSource {
    let scope = scope.split_whitespace().map(str::to_owned).collect();
    client.variant(&name.parse().unwrap(), Variant { scope, ..Variant::default() }).source()
}

fn text(source: &TokenSource) -> String {
    source.token().unwrap().reply.token.expose().to_owned()
}

#[test]
fn a_rotation_is_pushed_and_audited_and_reads_cost_the_daemon_nothing() {
    let mut scene = Scene::start(Provider::start(), &token_table("t", ""));
    let (tokenctl, client) = (scene.tokenctl(), client(scene.socket()));
    let source = source(&client, "t", "");
    let first = text(&source);
    (0..1000).for_each(|_| assert_eq!(text(&source), first));
    assert_eq!(tokenctl.status_of("t")["hand_outs"], 1);
    tokenctl.run(&["refresh", "t"]).expect_success();
    wait::until("the rotation", || (text(&source) != first).then_some(()));
    let fingerprint = source.token().unwrap().fingerprint().to_string();
    assert_eq!(tokenctl.status_of("t")["hand_outs"], 2);
    assert_eq!(tokenctl.get("t"), text(&source));
    let new = text(&source);
    drop(source);
    assert_eq!(scene.daemon.stop(), 0);
    let log = scene.daemon.log();
    let audited = |line: &&str| line.contains("verb=\"watch\"") && line.contains(&fingerprint);
    let record = log.lines().find(audited).expect("the hand-out is in the audit trail");
    assert!(
        record.contains("decision=\"allow\"") && record.contains("rule=") && !log.contains(&new),
        "{record}"
    );
}

#[test]
fn a_killed_daemon_leaves_the_token_until_it_expires_and_its_successor_brings_the_next() {
    let home = TestDir::new();
    let provider = Provider::start_answering(|_| Answer::token(8));
    let table = provider_table(&home, "p", &provider.token_endpoint(), "");
    home.configure("", &(table + &token_table("t", "")));
    let daemon = Launch::new(&home).start();
    let impatient = Client::new(Options::new(daemon.socket()).deadline(Duration::from_millis(50)));
    let source = source(&impatient, "t", "");
    wait::until("the first token", || source.token().ok());
    daemon.kill();
    let last = source.try_token().unwrap().reply.token.expose().to_owned();
    let refused = wait::until("the token expires", || match source.token() {
        Ok(token) => {
            let late = tokend_client::now().since(token.reply.info.expires_at);
            assert!(late < Duration::from_secs(5), "it was handed out {late:?} after it expired");
            None
        }
        Err(error) => Some(error),
    });
    assert!(matches!(refused, Error::NotReachable { .. }), "{refused:?}");
    let _daemon = Launch::new(&home).start();
    let next = wait::until("the next token", || source.token().ok());
    assert_ne!(next.reply.token.expose(), last);
}

#[test]
fn a_provider_that_returns_the_same_token_again_extends_it() {
    let provider = Provider::start();
    provider.always(Answer::token(6));
    let scene = Scene::start(provider, &token_table("t", ""));
    let source = source(&client(scene.socket()), "t", "");
    let first = source.token().unwrap();
    let later = wait::until("the token lasts longer", || {
        source.try_token().ok().filter(|token| token.reply.info.expires_at > first.reply.info.expires_at)
    });
    assert_eq!(later.fingerprint(), first.fingerprint());
}

#[test]
fn a_source_keeps_a_token_on_demand_in_use_and_a_watch_does_not() {
    let provider = Provider::start_answering(|_| Answer::token(6));
    let scene = Scene::start(provider, &token_table("t", "warm = \"on-demand\"\nidle_timeout = \"1s\""));
    let client = client(scene.socket());
    let mut watch = client.watch(&["t".parse().unwrap()]).unwrap();
    assert!(watch.next().unwrap().unwrap().token.is_none());
    assert_eq!(scene.provider.count(), 0, "a watch of the condition needs no token");
    let source = source(&client, "t", "");
    let first = text(&source);
    // Nothing reads the source meanwhile.
    scene.provider.wait_for_requests(4);
    assert_ne!(text(&source), first);
    drop(source);
    wait::until("the token rests", || (scene.tokenctl().status_of("t")["state"] == "pending").then_some(()));
}

#[test]
fn variants_are_kept_apart_and_in_use() {
    let provider = Provider::start_answering(|request| {
        let scope = request.field("scope").unwrap_or_default().replace(' ', "+");
        Answer::this_token(&format!("{scope}.{}", secrets::invent("token")), 5)
    });
    let more = "scope = \"a b\"\nwarm = \"on-demand\"\nvariants = { scope = \"a b\" }";
    let scene = Scene::start(provider, &token_table("t", more));
    let client = client(scene.socket());
    let sources = ["", "a", "b"].map(|scope| source(&client, "t", scope));
    let prefixes = ["a+b.", "a.", "b."];
    let firsts = sources.each_ref().map(text);
    // Unused variants rest after two renewals.
    scene.provider.wait_for_requests(3 * 6);
    for ((source, prefix), first) in sources.iter().zip(prefixes).zip(firsts) {
        let now = text(source);
        assert!(now.starts_with(prefix) && first.starts_with(prefix) && now != first, "{prefix}");
    }
}

#[test]
fn a_reload_that_takes_the_token_away_takes_it_from_the_source_and_another_one_returns_it() {
    let (home, provider) = (TestDir::new(), Provider::start());
    let configure = |tokens: &str| {
        home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + tokens));
    };
    let (both, one) = (token_table("t", "") + &token_table("u", ""), token_table("u", ""));
    configure(&both);
    let daemon = InProcess::start(&home);
    let client = client(daemon.socket());
    let (t, u) = (source(&client, "t", ""), source(&client, "u", ""));
    let (token, other) = (text(&t), text(&u));
    configure(&one);
    daemon.reload();
    let refused = wait::until("the token is taken away", || t.try_token().err());
    assert!(matches!(refused, Error::UnknownToken { .. }), "{refused:?}");
    assert!(matches!(t.token(), Err(Error::UnknownToken { .. })), "a reader does not wait");
    assert_eq!(text(&u), other);
    configure(&both);
    daemon.reload();
    wait::until("the token is back", || t.try_token().ok());
    assert!([token, other].contains(&text(&t)), "the two names share a token");
}

#[test]
fn a_rejection_brings_the_newer_token() {
    let provider = Provider::start_answering(|_| Answer::token(600));
    let scene = Scene::start(provider, &token_table("t", ""));
    let (client, tokenctl) = (client(scene.socket()), scene.tokenctl());
    let source = source(&client, "t", "");
    let refused = source.token().unwrap();
    assert!(source.reject(refused.fingerprint()).unwrap().is_none(), "the token is too new");
    assert_eq!(scene.provider.count(), 1);
    tokenctl.run(&["refresh", "t"]).expect_success();
    let newer = source.reject(refused.fingerprint()).unwrap().unwrap();
    assert_eq!(newer.reply.token.expose(), tokenctl.get("t"));
    assert_eq!(scene.provider.count(), 2, "the refused token had been replaced already");
}

/// An API that answers 401 to the tokens in the set, and what it was called with.
fn api(revoked: &Arc<Mutex<HashSet<String>>>) -> Provider {
    let revoked = Arc::clone(revoked);
    Provider::start_answering(move |request| {
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let is_refused = token.is_none_or(|token| revoked.lock().unwrap().contains(token));
        Answer::status(if is_refused { 401 } else { 200 })
    })
}

/// The running example. It is killed when it is dropped.
struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_example_goes_on_through_a_rotation_a_401_and_a_restart() {
    let home = TestDir::new();
    // No token is renewed by its schedule during the test.
    let (provider, revoked) = (Provider::start_answering(|_| Answer::token(86_400)), Arc::default());
    let table = provider_table(&home, "p", &provider.token_endpoint(), "");
    home.configure("", &(table + &token_table("t", "")));
    let mut daemon = Launch::new(&home).start();
    let tokenctl = daemon.tokenctl();
    let api = api(&revoked);
    let mut command = Command::new(program::call_api());
    command.args(["t", &api.url("/accounts")]).env("TOKEND_SOCKET", home.socket());
    let mut example = Example(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let output = BufReader::new(example.0.stdout.take().unwrap());
    let (send, lines) = mpsc::channel();
    thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    let fingerprint = || tokenctl.status_of("t")["held"]["fingerprint"].as_str().unwrap().to_owned();
    // Waits for a call with this token that the API accepts.
    let wait_for = |what: &str, fingerprint: &str| loop {
        let line = lines.recv_timeout(wait::PATIENCE).expect(what);
        if line.starts_with("200") && line.ends_with(fingerprint) {
            return;
        }
    };
    tokenctl.get("t");
    let first = fingerprint();
    wait_for("a call", &first);
    tokenctl.run(&["refresh", "t"]).expect_success();
    let second = fingerprint();
    assert_ne!(second, first);
    wait_for("a call after the rotation", &second);
    revoked.lock().unwrap().insert(tokenctl.get("t"));
    let third =
        wait::until::<String>("the 401 is reported", || Some(fingerprint()).filter(|now| *now != second));
    wait_for("a call after the 401", &third);
    assert_eq!(daemon.stop(), 0);
    let before = api.count();
    wait::until("calls without a daemon", || (api.count() > before + 1).then_some(()));
    wait_for("a call without a daemon", &third);
    let daemon = Launch::new(&home).start();
    let fourth = wait::until::<String>("a token after the restart", || {
        let held = daemon.tokenctl().status_of("t")["held"]["fingerprint"].as_str().map(str::to_owned);
        held.filter(|now| *now != third)
    });
    wait_for("a call after the restart", &fourth);
}

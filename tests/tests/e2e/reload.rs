//! A reload takes over the whole new configuration or nothing of it, and costs what did not change nothing.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokend_client::blocking::Client;
use tokend_client::{Error, Options, TokenName, Variant};
use tokend_protocol::{ErrorCode, Reply, State};
use tokend_tests::daemon::Launch;
use tokend_tests::notify::Manager;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Answer, Gate, InProcess, Provider, Scene, TestDir, raw_peer, requirement, secrets, wait};

/// Waits until a token can be had: the reload that brings it is over.
fn wait_for_token(scene: &Scene, name: &str) -> String {
    wait::until(&format!("the token {name}"), || {
        let got = scene.tokenctl().run(&["get", name]);
        (got.code == 0).then(|| got.stdout.trim_end().to_owned())
    })
}

fn reload_failed_at(scene: &Scene) -> Value {
    scene.tokenctl().json(&["status"])["daemon"]["reload_failed_at"].clone()
}

#[test]
fn what_did_not_change_keeps_its_token_and_asks_for_nothing() {
    let scene =
        Scene::start(Provider::start(), &(token_table("kept", "") + &token_table("gone", "scope = \"g\"")));
    let (kept, _gone) = (scene.tokenctl().get("kept"), scene.tokenctl().get("gone"));
    assert_eq!(scene.provider.count(), 2);
    scene.reconfigure(
        "",
        &(token_table("kept", "allow = [\"user:61001\"]") + &token_table("new", "scope = \"n\"")),
    );
    scene.daemon.signal(Signal::SIGHUP);
    let new = wait_for_token(&scene, "new");
    assert_ne!(new, kept);
    assert_eq!(scene.tokenctl().get("kept"), kept);
    scene.tokenctl().run(&["get", "gone"]).expect_code(5);
    let scopes: Vec<Option<String>> =
        scene.provider.requests().iter().map(|request| request.field("scope")).collect();
    assert_eq!(scopes.len(), 3, "one request for the new token, none for the kept: {scopes:?}");
    assert_eq!(scopes[2].as_deref(), Some("n"));
}

#[test]
fn a_changed_credential_is_asked_for_again() {
    let scene = Scene::start(Provider::start(), &token_table("t", "scope = \"one\""));
    let before = scene.tokenctl().get("t");
    scene.reconfigure("", &token_table("t", "scope = \"two\""));
    scene.daemon.signal(Signal::SIGHUP);
    scene.provider.wait_for_requests(2);
    wait::until("the new token", || (scene.tokenctl().get("t") != before).then_some(()));
    assert_eq!(scene.provider.requests()[1].field("scope").as_deref(), Some("two"));
}

#[test]
fn a_bad_configuration_changes_nothing_and_says_why() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let before = scene.tokenctl().get("t");
    assert_eq!(reload_failed_at(&scene), Value::Null);
    let bad = token_table("new", "scope = \"n\"") + &token_table("worse", "scop = \"x\"");
    scene.reconfigure("", &bad);
    scene.daemon.signal(Signal::SIGHUP);
    wait::until("the failure in the status", || (reload_failed_at(&scene) != Value::Null).then_some(()));
    scene.daemon.wait_for_log(&["tokend.toml:", "token.worse.scop"]);
    assert_eq!(scene.tokenctl().get("t"), before, "what was removed is still there");
    scene.tokenctl().run(&["get", "new"]).expect_code(5);
    assert_eq!(scene.provider.count(), 1);

    scene.reconfigure("", &(token_table("t", "") + &token_table("new", "scope = \"n\"")));
    scene.daemon.signal(Signal::SIGHUP);
    wait_for_token(&scene, "new");
    assert_eq!(scene.tokenctl().get("t"), before);
    assert_eq!(reload_failed_at(&scene), Value::Null, "a good reload ends the alarm");
}

#[test]
fn a_configuration_that_is_gone_changes_nothing() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let before = scene.tokenctl().get("t");
    std::fs::remove_file(scene.home.config()).unwrap();
    scene.daemon.signal(Signal::SIGHUP);
    wait::until("the failure in the status", || (reload_failed_at(&scene) != Value::Null).then_some(()));
    assert_eq!(scene.tokenctl().get("t"), before);
}

#[test]
fn many_reloads_in_a_row_lose_nothing() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let before = scene.tokenctl().get("t");
    for round in 0..20 {
        let name = format!("round-{round}");
        scene.reconfigure("", &(token_table("t", "") + &token_table(&name, "")));
        scene.daemon.signal(Signal::SIGHUP);
        assert_eq!(scene.tokenctl().get("t"), before);
    }
    assert_eq!(wait_for_token(&scene, "round-19"), before, "the same credential by another name");
    assert_eq!(scene.provider.count(), 1);
}

#[test]
fn a_configuration_that_hangs_holds_up_nothing_else() {
    if !requirement::root() || !requirement::met("/dev/fuse", Path::new("/dev/fuse").exists()) {
        return;
    }
    // Only this thread and the daemon see the file system that hangs.
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let (home, provider) = (TestDir::new(), Provider::start());
    home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + &token_table("t", "")));
    let manager = Manager::listen(&home.path().join("notify"));
    let mut daemon =
        Launch::new(&home).env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "1000000").start();
    let mut drop_ins = home.config().into_os_string();
    drop_ins.push(".d");
    std::fs::create_dir_all(&drop_ins).unwrap();
    // No request to this file system is ever answered. Closing `server` ends it.
    let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
    let fuse = Some("fuse");
    mount(fuse, Path::new(&drop_ins), fuse, MsFlags::empty(), Some(options.as_str())).unwrap();
    daemon.signal(Signal::SIGHUP);
    let beats = || manager.heard().iter().filter(|line| *line == "WATCHDOG=1").count();
    manager.wait_for("RELOADING=1");
    let before = beats();
    wait::until("three beats during the reload", || (beats() >= before + 3).then_some(()));
    daemon.tokenctl().get("t");
    assert_eq!(manager.heard().iter().filter(|line| *line == "READY=1").count(), 1, "it hangs still");
    drop(server);
    umount2(Path::new(&drop_ins), MntFlags::MNT_DETACH).unwrap();
    assert_eq!(daemon.stop(), 0);
}

/// A daemon in this process with one provider, whose configuration a test changes.
struct Changing {
    daemon: InProcess,
    provider: Provider,
    home: TestDir,
}

impl Changing {
    fn start(provider: Provider, tokens: &str) -> Self {
        let home = TestDir::new();
        home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + tokens));
        let daemon = InProcess::start(&home);
        Self { daemon, provider, home }
    }

    fn reload(&self, tokens: &str) {
        let table = provider_table(&self.home, "p", &self.provider.token_endpoint(), "");
        self.home.configure("", &(table + tokens));
        self.daemon.reload();
    }
}

/// A provider that knows the clients `client` and `client-2` only, and names the scope in the token.
fn knowing_clients() -> Provider {
    Provider::start_answering(|request| {
        let client = request.field("client_id").unwrap_or_default();
        if !["client", "client-2"].contains(&client.as_str()) {
            return Answer::refusal(401, "invalid_client");
        }
        let scope = request.field("scope").unwrap_or_default().replace(' ', "+");
        Answer::this_token(&format!("{client}.{scope}.{}", secrets::invent("token")), 3600)
    })
}

impl Changing {
    /// Reloads with another client.
    fn reload_as(&self, client: &str, tokens: &str) {
        let table = provider_table(&self.home, "p", &self.provider.token_endpoint(), "");
        let table = table.replace("client_id = \"client\"", &format!("client_id = {client:?}"));
        self.home.configure("", &(table + tokens));
        self.daemon.reload();
    }
}

#[test]
fn a_valid_token_survives_a_mistake_in_the_client_until_the_mistake_is_mended() {
    let tokens = token_table("t", "scope = \"one two\"\nvariants = { scope = \"one two\" }");
    let scene = Changing::start(knowing_clients(), &tokens);
    let client = Client::new(Options::new(scene.daemon.socket()).deadline(Duration::from_secs(60)));
    let name: TokenName = "t".parse().unwrap();
    let variant = Variant { scope: vec!["two".to_owned()], ..Variant::default() };
    let narrow = client.variant(&name, variant);
    let token = |client: &Client| client.get(&name).unwrap().token.expose().to_owned();
    let narrow_token = || narrow.get().unwrap().token.expose().to_owned();
    let (before, narrow_before) = (token(&client), narrow_token());

    scene.reload_as("clinet", &tokens);
    scene.provider.wait_for_requests(4);
    wait::until("the refusal in the status", || {
        let reply = client.get(&name).unwrap();
        (reply.info.state == State::Degraded).then_some(())
    });
    assert_eq!((token(&client), narrow_token()), (before.clone(), narrow_before.clone()));

    scene.reload_as("client-2", &tokens);
    wait::until("the token of the new client", || token(&client).starts_with("client-2.").then_some(()));
    wait::until("its variant", || narrow_token().starts_with("client-2.two.").then_some(()));
}

#[test]
fn a_token_goes_at_once_where_another_one_is_asked_for() {
    let scene = Changing::start(knowing_clients(), &token_table("t", "scope = \"one\""));
    let mut peer = scene.daemon.peer();
    assert!(outcome(peer.ask(1, raw_peer::get("t"))).is_ok());
    scene.reload_as("clinet", &token_table("t", "scope = \"two\""));
    assert!(outcome(peer.ask(2, raw_peer::get("t"))).is_err());
}

#[test]
fn a_reload_ends_the_back_off_of_variants_too() {
    let is_mended = Arc::new(AtomicBool::new(false));
    let mended = Arc::clone(&is_mended);
    let provider = Provider::start_answering(move |request| {
        let is_variant = request.field("scope").as_deref() == Some("two");
        if is_variant && !mended.load(Ordering::Relaxed) {
            return Answer::refusal(400, "invalid_scope").with_header("Retry-After", "900");
        }
        Answer::token(3600)
    });
    let tokens = token_table("t", "scope = \"one two\"\nvariants = { scope = \"two\" }");
    let scene = Changing::start(provider, &tokens);
    let client = Client::new(Options::new(scene.daemon.socket()).deadline(Duration::from_secs(60)));
    let name: TokenName = "t".parse().unwrap();
    let variant = client.variant(&name, Variant { scope: vec!["two".to_owned()], ..Variant::default() });
    assert!(variant.get().is_err());
    is_mended.store(true, Ordering::Relaxed);
    assert!(variant.get().is_err(), "the provider is not asked before its Retry-After");
    scene.reload(&tokens);
    wait::until("the variant", || variant.get().is_ok().then_some(()));
}

/// The token, or why there is none.
fn outcome(reply: Reply) -> Result<String, ErrorCode> {
    match reply {
        Reply::Token(reply) => Ok(reply.token.expose().to_owned()),
        Reply::Error(error) => Err(error.code),
        other => unreachable!("neither a token nor a refusal: {other:?}"),
    }
}

#[test]
fn rights_change_at_once_on_open_connections_and_the_token_stays() {
    if !requirement::root() {
        return;
    }
    // The test is root and so is the daemon: without the exception, rules alone decide.
    let deny = "[admin]\nroot = \"deny\"\n";
    let with = |allow: &str| token_table("t", &format!("allow = [{allow}]")) + deny;
    let scene = Changing::start(Provider::start(), &with("\"user:root\""));
    let mut peer = scene.daemon.peer();
    let token = outcome(peer.ask(1, raw_peer::get("t"))).unwrap();
    for (id, allow, is_allowed) in [
        (2, "", false),
        (3, "\"user:61001\"", false),
        (4, "\"group:root\"", true),
        (5, "{ user = \"root\", unit = \"no-such.service\" }", false),
        (6, "\"any\"", true),
    ] {
        scene.reload(&with(allow));
        let expected = if is_allowed { Ok(token.clone()) } else { Err(ErrorCode::NotAllowed) };
        assert_eq!(outcome(peer.ask(id, raw_peer::get("t"))), expected, "{allow}");
    }
    scene.reload(&token_table("t", ""));
    assert_eq!(outcome(peer.ask(7, raw_peer::get("t"))), Ok(token), "root has its exception back");
    assert_eq!(scene.provider.count(), 1, "whoever may have it, the token is the same");
}

#[test]
fn who_waits_for_a_token_that_is_removed_is_told_at_once() {
    let gate = Gate::new();
    let provider = Provider::start();
    provider.always(Answer::token(3600).behind(&gate));
    let scene = Changing::start(provider, &(token_table("t", "") + &token_table("other", "scope = \"o\"")));
    let mut peer = scene.daemon.peer();
    peer.send(1, raw_peer::get("t")).unwrap();
    scene.provider.wait_for_requests(2);
    scene.reload(&token_table("other", "scope = \"o\""));
    // The provider is silent still, and a caller's deadline would come as another code.
    assert_eq!(peer.expect_error(), (1, ErrorCode::UnknownToken));
    gate.open();
    assert!(outcome(peer.ask(2, raw_peer::get("other"))).is_ok(), "the other one's exchange went on");
}

#[test]
fn who_waits_for_a_token_whose_settings_change_gets_the_new_one() {
    let never = Gate::new();
    let provider = Provider::start();
    provider.then(Answer::token(3600).behind(&never));
    provider.always(Answer::token(3600));
    let scene = Changing::start(provider, &token_table("t", "scope = \"one\""));
    let mut peer = scene.daemon.peer();
    peer.send(1, raw_peer::get("t")).unwrap();
    scene.provider.wait_for_requests(1);
    scene.reload(&token_table("t", "scope = \"two\""));
    assert!(outcome(peer.expect_reply(1)).is_ok());
    assert_eq!(scene.provider.requests()[1].field("scope").as_deref(), Some("two"));
}

#[test]
fn who_waits_and_may_not_have_it_any_more_does_not_get_it() {
    if !requirement::root() {
        return;
    }
    let gate = Gate::new();
    let provider = Provider::start();
    provider.always(Answer::token(3600).behind(&gate));
    let deny = "[admin]\nroot = \"deny\"\n";
    let scene = Changing::start(provider, &(token_table("t", "allow = [\"user:root\"]") + deny));
    let mut peer = scene.daemon.peer();
    peer.send(1, raw_peer::get("t")).unwrap();
    scene.provider.wait_for_requests(1);
    scene.reload(&(token_table("t", "") + deny));
    gate.open();
    assert_eq!(peer.expect_error(), (1, ErrorCode::NotAllowed));
    assert_eq!(scene.provider.count(), 1, "the exchange is the token's and not the caller's");
}

#[test]
fn watchers_are_told_of_what_a_reload_changes_and_of_nothing_else() {
    let scene = Changing::start(Provider::start(), &token_table("t", "scope = \"one\""));
    let client = Client::new(Options::new(scene.daemon.socket()).deadline(Duration::from_secs(20)));
    let name: TokenName = "t".parse().unwrap();
    client.get(&name).unwrap();
    let mut watch = client.watch(std::slice::from_ref(&name)).unwrap();
    let before = watch.next().unwrap().unwrap().held.unwrap().fingerprint;
    // The same credential with other rules: there is nothing to tell.
    scene.reload(&token_table("t", "scope = \"one\"\nallow = [\"any\"]"));
    scene.reload(&token_table("t", "scope = \"two\""));
    let renewed = watch.by_ref().find_map(|event| {
        let event = event.expect("the watch goes on");
        event.held.filter(|held| held.fingerprint != before)
    });
    assert!(renewed.is_some());
    scene.reload(&token_table("other", ""));
    let end = watch.find_map(Result::err).expect("the watch ends");
    assert!(matches!(end, Error::UnknownToken { .. }), "{end:?}");
}

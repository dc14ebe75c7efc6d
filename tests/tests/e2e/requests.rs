//! The lists and bytes of requests are bounded, and calls that wait take little memory.

use std::fs;

use nix::sys::signal::Signal;
use tokend_protocol::{CallOptions, ErrorCode, ErrorReply, GetRequest, Reply, Request, TERMS_MAX, Variant};
use tokend_tests::provider::Door;
use tokend_tests::test_support::token_table;
use tokend_tests::{Answer, Provider, RawPeer, Scene, raw_peer, wait};

/// The share of one user, if 16 users together may take 256 MiB.
const SHARE_KIB: usize = 16 * 1024;

/// As many different terms as a request may have, each of so many bytes.
fn terms(length: usize) -> Vec<String> {
    (0..TERMS_MAX).map(|number| format!("{number:0>length$}")).collect()
}

/// A daemon whose token may be asked for with any of the terms.
fn scene(terms: &[String]) -> Scene {
    let variants = format!("variants = {{ scope = {terms:?}, resource = {terms:?}, audience = {terms:?} }}");
    let table = token_table("t", &format!("scope = {terms:?}\nwarm = \"on-demand\"\n{variants}"));
    Scene::quiet(Provider::start(), "", &table)
}

fn get(variant: Variant) -> Request {
    let options = CallOptions { deadline_ms: 600_000, min_ttl_ms: 0 };
    Request::Get(GetRequest { name: "t".parse().unwrap(), options, variant })
}

/// A value of `/proc/PID/status`, in KiB.
fn memory(scene: &Scene, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", scene.daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The refusals that arrive before the answer to one more request, which is answered at once.
fn refusals(peer: &mut RawPeer) -> Vec<ErrorReply> {
    peer.send(u32::MAX, Request::Version).unwrap();
    let mut refusals = Vec::new();
    loop {
        match peer.receive().unwrap().unwrap().unwrap().message {
            Reply::Version(_) => return refusals,
            Reply::Error(error) if error.code == ErrorCode::Overloaded => refusals.push(error),
            // On a slow machine the first calls have waited long enough for the provider to count as silent.
            _ => (),
        }
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "the memory is for readers of the output too")]
fn calls_that_wait_with_full_lists_stay_within_the_share_of_a_user() {
    // Small terms, whose decoded lists take thirty times their bytes; and as large a request as there may be.
    for length in [2, 80] {
        let terms = terms(length);
        let scene = scene(&terms);
        scene.provider.set_door(Door::Silent);
        let full = Variant { scope: terms.clone(), resource: terms.clone(), audience: terms };
        let before = memory(&scene, "VmRSS:");
        let mut peers: Vec<RawPeer> = (0..16).map(|_| RawPeer::connect(scene.socket()).unwrap()).collect();
        let mut refused = Vec::new();
        for peer in &mut peers {
            let wire: Vec<u8> = (1..=64).flat_map(|id| raw_peer::wire(id, get(full.clone()))).collect();
            peer.write(&wire).unwrap();
            refused.extend(refusals(peer));
        }
        let grown = memory(&scene, "VmHWM:") - before;
        let waiting = 1024 - refused.len();
        println!("{waiting} calls wait with {} terms of {length} bytes each: {grown} KiB", 3 * TERMS_MAX);
        assert!(grown < SHARE_KIB, "{grown} KiB for {waiting} calls");
        if length == 2 {
            assert_eq!(refused, []);
        } else {
            assert!(waiting >= 32 && !refused.is_empty(), "{waiting} calls wait");
        }
        for error in refused {
            assert!(error.message.contains("too many bytes"), "{}", error.message);
        }
        RawPeer::connect(scene.socket()).unwrap().assert_alive();
    }
}

#[test]
fn a_call_that_has_waited_gets_the_variant_that_it_asked_for() {
    let terms = terms(8);
    let scene = scene(&terms);
    let [first, .., last] = terms.as_slice() else { unreachable!() };
    let scope = vec![last.clone(), first.clone()];
    let mut peer = RawPeer::connect(scene.socket()).unwrap();
    let reply = peer.ask(1, get(Variant { scope, ..Variant::default() }));
    assert!(matches!(reply, Reply::Token(_)), "{reply:?}");
    assert_eq!(scene.provider.requests()[0].field("scope").unwrap(), format!("{first} {last}"));
    scene.daemon.wait_for_log(&["handed out", &format!("scope={first},{last}")]);
}

#[test]
fn a_list_beyond_the_limit_is_refused_with_the_limit_and_the_connection_goes_on() {
    let scene = scene(&terms(2));
    let mut peer = RawPeer::connect(scene.socket()).unwrap();
    for (count, terms) in [(65, b"\x01a".repeat(65)), (250, b"\x01a".repeat(250)), (2, b"\x01a".repeat(2))] {
        let get = [&[1, 0, 0, 0, 9, 0, 1, b't', 0, 0, count], &terms[..], &[0, 0, 0]].concat();
        peer.write(&u32::try_from(get.len()).unwrap().to_be_bytes()).unwrap();
        peer.write(&get).unwrap();
        let Reply::Error(error) = peer.expect_reply(9) else { panic!("the list is accepted") };
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        let expected = if count == 2 { "in the request twice" } else { "at most 64 scopes" };
        assert!(error.message.contains(expected), "{}", error.message);
        peer.assert_alive();
    }
}

#[test]
fn a_connection_that_repeats_a_get_always_has_the_present_token_and_decision() {
    let table = token_table("t", "");
    let scene = Scene::start(Provider::start(), &table);
    let mut peer = RawPeer::connect(scene.socket()).unwrap();
    // Requests that come together, and that differ in nothing but their ids.
    let mut ask = |ids: std::ops::Range<u32>| -> Vec<Result<String, ErrorCode>> {
        let requests: Vec<u8> = ids.clone().flat_map(|id| raw_peer::wire(id, raw_peer::get("t"))).collect();
        peer.write(&requests).unwrap();
        let answers = ids.map(|id| match peer.expect_reply(id) {
            Reply::Token(reply) => Ok(reply.token.expose().to_owned()),
            Reply::Error(error) => Err(error.code),
            other => panic!("{other:?}"),
        });
        answers.collect()
    };
    let first = scene.tokenctl().get("t");
    assert_eq!(ask(0..50), vec![Ok(first.clone()); 50]);
    scene.tokenctl().run(&["refresh", "t"]).expect_success();
    let second = scene.tokenctl().get("t");
    assert_ne!(first, second);
    assert_eq!(ask(50..60), vec![Ok(second); 10]);
    let status = scene.tokenctl().json(&["status", "t"]);
    assert_eq!(status["hand_outs"], 62, "every one counts: {status}");
    scene.reconfigure("", &token_table("other", ""));
    scene.daemon.signal(Signal::SIGHUP);
    wait::until("the reload", || scene.tokenctl().run(&["get", "other"]).code.eq(&0).then_some(()));
    assert_eq!(ask(60..70), vec![Err(ErrorCode::UnknownToken); 10]);
    scene.reconfigure("", &table);
    scene.daemon.signal(Signal::SIGHUP);
    wait::until("the reload", || scene.tokenctl().run(&["get", "t"]).code.eq(&0).then_some(()));
    assert!(ask(70..80).iter().all(Result::is_ok));
}

#[test]
fn gets_that_come_together_are_told_apart() {
    let tables = [token_table("t", ""), token_table("u", "scope = \"other\"")].concat();
    let scene = Scene::start(Provider::start(), &tables);
    let expected = ["t", "u"].map(|name| scene.tokenctl().get(name));
    assert_ne!(expected[0], expected[1]);
    let mut peer = RawPeer::connect(scene.socket()).unwrap();
    let names = ["t", "u", "u", "t", "t"].into_iter().zip(0..);
    let mut requests: Vec<u8> =
        names.clone().flat_map(|(name, id)| raw_peer::wire(id, raw_peer::get(name))).collect();
    let options = CallOptions { deadline_ms: 600_000, min_ttl_ms: u32::MAX };
    let lasting = GetRequest { name: "t".parse().unwrap(), options, variant: Variant::default() };
    requests.extend(raw_peer::wire(9, Request::Get(lasting)));
    peer.write(&requests).unwrap();
    for (name, id) in names {
        let Reply::Token(reply) = peer.expect_reply(id) else { panic!("{name} is held") };
        assert_eq!(reply.token.expose(), expected[usize::from(name == "u")]);
    }
    let Reply::Error(error) = peer.expect_reply(9) else { panic!("no token lasts that long") };
    assert_eq!(error.code, ErrorCode::MinTtlUnreachable);
}

#[test]
fn a_connection_that_repeats_a_get_has_no_token_that_has_expired() {
    let provider = Provider::start_answering(|_| Answer::token(4));
    let scene = Scene::start(provider, &token_table("t", "refresh_before = \"0s\""));
    let mut peer = RawPeer::connect(scene.socket()).unwrap();
    assert!(matches!(peer.ask(0, raw_peer::get("t")), Reply::Token(_)));
    scene.provider.set_door(Door::Silent);
    let options = CallOptions { deadline_ms: 0, min_ttl_ms: 0 };
    let get = GetRequest { name: "t".parse().unwrap(), options, variant: Variant::default() };
    let mut ids = 1..;
    wait::until("it expires", || {
        let before = tokend_client::now();
        match peer.ask(ids.next().unwrap(), Request::Get(get.clone())) {
            Reply::Token(reply) => {
                assert!(reply.info.expires_at > before, "{:?} at {before:?}", reply.info);
                None
            }
            _ => Some(()),
        }
    });
}

#[test]
fn the_memory_of_many_connections_is_given_back_when_they_close() {
    let scene = Scene::quiet(Provider::start(), "", &token_table("t", ""));
    scene.tokenctl().get("t");
    let (before, locked) = (memory(&scene, "RssAnon:"), memory(&scene, "VmLck:"));
    let peers: Vec<RawPeer> = (0..1000)
        .map(|id| {
            let mut peer = RawPeer::connect(scene.socket()).unwrap();
            assert!(matches!(peer.ask(id, raw_peer::get("t")), Reply::Token(_)));
            peer
        })
        .collect();
    let taken = memory(&scene, "RssAnon:").saturating_sub(before);
    assert!(taken > 100, "{taken} KiB show nothing");
    drop(peers);
    wait::until("the memory", || (memory(&scene, "RssAnon:") < before + taken / 2).then_some(()));
    let is_locked = || (memory(&scene, "VmLck:") > 0) == (locked > 0);
    wait::until("the lock of the memory", || is_locked().then_some(()));
}

//! A hostile user takes no more than its share of the daemon's memory, of the audit trail, and of the programs that run.
//! How long others wait meanwhile is measured by `cargo bench -p tokend-tests --bench attacks`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokend_protocol::{CallOptions, GetRequest, PageRequest, Reply, Request, Variant};
use tokend_tests::bench::headers;
use tokend_tests::test_support::{provider_table, token_of, token_table};
use tokend_tests::tokenctl::User;
use tokend_tests::{
    Answer, Fault, FdDonor, Provider, RawPeer, RealDaemon, Scene, TestDir, audit, memory, raw_peer,
    requirement, wait,
};

use crate::test_users::{ALICE, BOB, SOCKET, scene, user};

/// The most supplementary groups that a process can have.
const GROUPS_MAX: u32 = 65_536;

const MIB: u64 = 1024;

const SCOPES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn peak(scene: &Scene) -> u64 {
    memory::peak_kib(scene.daemon.pid()).unwrap()
}

fn descriptors(scene: &Scene) -> usize {
    fs::read_dir(format!("/proc/{}/fd", scene.daemon.pid())).unwrap().count()
}

#[test]
fn many_groups_of_a_user_are_not_kept_for_each_of_its_connections() {
    if !requirement::root() {
        return;
    }
    let last = SOCKET + GROUPS_MAX - 1;
    let groups: Vec<u32> = (SOCKET..=last).collect();
    let scene = scene(&token_table("t", &format!("allow = [\"group:{last}\", \"user:{BOB}\"]")));
    let alice = User::new(ALICE).with_groups(&groups);
    let connect = || {
        let (donor, mut peer) = FdDonor::start(scene.socket(), &alice);
        assert!(matches!(peer.ask(1, raw_peer::get("t")), Reply::Token(_)), "every group is known");
        (donor, peer)
    };
    let _first = connect();
    let before = peak(&scene);
    let _flood: Vec<_> = (0..40).map(|_| connect()).collect();
    let grown = peak(&scene) - before;
    assert!(grown < 5 * MIB, "{grown} KiB for 40 connections; their groups, each 256 KiB, would be 10 MiB");
    scene.tokenctl().as_user(user(BOB)).get("t");
}

#[test]
fn requests_with_thousands_of_scopes_take_little_memory_whatever_their_answer() {
    let provider = Provider::start();
    provider.always(Answer::token(60).with_fault(Fault::HangBeforeHead));
    let permitted = "scope = \"a b\"\nvariants = { scope = [\"a\", \"b\"] }\nwarm = \"on-demand\"";
    let scene = Scene::quiet(provider, "", &token_table("t", permitted));
    let options = CallOptions { deadline_ms: 600_000, min_ttl_ms: 0 };
    let variant = Variant { scope: vec!["a".to_owned(); 8000], ..Variant::default() };
    let get = Request::Get(GetRequest { name: "t".parse().unwrap(), options, variant });
    let wire = raw_peer::wire(1, get);
    let mut peer = RawPeer::connect(scene.socket()).unwrap();
    peer.assert_alive();
    let before = peak(&scene);
    for _ in 0..256 {
        peer.write(&wire).unwrap();
    }
    RawPeer::connect(scene.socket()).unwrap().assert_alive();
    let grown = peak(&scene) - before;
    assert!(grown < 16 * MIB, "{grown} KiB for 4 MiB of requests");
}

#[test]
fn lists_that_a_user_does_not_read_take_little_memory() {
    let tokens: String =
        (0..400).map(|n| token_table(&format!("{n:0>200}"), "warm = \"on-demand\"")).collect();
    let scene = Scene::quiet(Provider::start(), "", &tokens);
    let wire = raw_peer::wire(1, Request::List(PageRequest { after: None }));
    let mut other = RawPeer::connect(scene.socket()).unwrap();
    other.assert_alive();
    let before = peak(&scene);
    let mut slow: Vec<_> = (0..4).map(|_| RawPeer::connect(scene.socket()).unwrap()).collect();
    for peer in &mut slow {
        peer.write(&wire.repeat(250)).unwrap();
    }
    wait::until("the end of the slow connections", || (scene.daemon.connections() == 1).then_some(()));
    let grown = peak(&scene) - before;
    assert!(grown < 16 * MIB, "{grown} KiB for lists of 80 MiB in all");
    other.assert_alive();
}

#[test]
fn connections_that_are_closed_at_once_leave_nothing_behind() {
    let scene = Scene::quiet(Provider::start(), "", &token_table("t", ""));
    scene.tokenctl().get("t");
    // The daemon may just be about to watch the clock and the network.
    let (open, logged) = (descriptors(&scene) + 2, scene.daemon.log().len());
    for _ in 0..5000 {
        drop(UnixStream::connect(scene.socket()).unwrap());
    }
    scene.tokenctl().get("t");
    wait::until("the end of all connections", || {
        (scene.daemon.connections() == 0 && descriptors(&scene) <= open).then_some(())
    });
    let log = scene.daemon.log();
    let lines = log[logged..].lines().count();
    assert!(lines < 20, "{lines} lines about 5,000 connections that asked for nothing");
}

#[test]
fn hand_outs_that_differ_in_all_that_a_caller_can_vary_are_few_records_and_all_counted() {
    if !requirement::root() {
        return;
    }
    let settings = format!(
        "scope = {:?}\nvariants = {{ scope = {SCOPES:?} }}\nallow = [\"user:{ALICE}\", \"user:{BOB}\"]",
        SCOPES.join(" ")
    );
    let mut scene = scene(&token_table("t", &settings));
    let subset = |chosen: usize| {
        let scopes = SCOPES.iter().enumerate().filter(|(place, _)| chosen & (1 << place) != 0);
        let scope = scopes.map(|(_, scope)| (*scope).to_owned()).collect();
        let options = CallOptions { deadline_ms: 600_000, min_ttl_ms: 0 };
        let variant = Variant { scope, ..Variant::default() };
        Request::Get(GetRequest { name: "t".parse().unwrap(), options, variant })
    };
    let requests: Vec<Request> = (1..1 << SCOPES.len()).map(subset).collect();
    let programs = (0..20).map(|number| format!("caller-{number}"));
    let began = Instant::now();
    let mut flood: Vec<_> =
        programs.map(|program| FdDonor::start_as(scene.socket(), &user(ALICE), &program)).collect();
    for (_, peer) in &mut flood {
        for (id, request) in (1..).zip(&requests) {
            assert!(matches!(peer.ask(id, request.clone()), Reply::Token(_)));
        }
    }
    scene.tokenctl().as_user(user(BOB)).get("t");
    scene.daemon.stop();
    let records = |uid: u32| audit::records(&scene.daemon.log(), "allow", |other| other == uid);
    let of_alice = records(ALICE);
    assert_eq!(of_alice.decisions, 20 * 31);
    let windows = began.elapsed().as_secs() / 10 + 2;
    assert!(of_alice.lines <= 130 * windows, "{of_alice:?} in {windows} windows");
    assert_eq!(records(BOB).decisions, 1);
}

#[test]
fn slow_secret_commands_of_one_user_do_not_hold_up_those_of_another() {
    if !requirement::root() {
        return;
    }
    let provider = Provider::start();
    let home = TestDir::new();
    // A program that reads it waits for a writer, and so until it is killed.
    let pipe = home.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRUSR).unwrap();
    let token = |name: &str, command: &str, uid: u32| {
        let headers = format!("headers = {{ X-Key = {{ command = {command} }} }}");
        token_of("p", name, &format!("{headers}\nallow = [\"user:{uid}\"]"))
    };
    let slow = token("slow", &format!("[\"cat\", {:?}]", pipe.display().to_string()), ALICE);
    let quick = token("quick", "[\"echo\", \"key\"]", BOB);
    let table = provider_table(&home, "p", &provider.token_endpoint(), "");
    home.configure(&format!("socket_group = \"{SOCKET}\""), &(table + &slow + &quick));
    let daemon = RealDaemon::start(&home);
    let (_donor, mut hostile) = FdDonor::start(daemon.socket(), &user(ALICE));
    for id in 0..500 {
        hostile.send(id, headers("slow")).unwrap();
    }
    let (_donor, mut quiet) = FdDonor::start(daemon.socket(), &user(BOB));
    let reply = quiet.ask(1, headers("quick"));
    assert!(matches!(reply, Reply::Headers(_)), "{reply:?}");
}

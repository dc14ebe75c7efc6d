//! A peer that sends nonsense, or nothing, or too much, is told so or dropped; others are served meanwhile.

use std::fs;
use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use nix::libc::linger;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use tokend_protocol::{
    CallOptions, ErrorCode, ErrorReply, GetRequest, LENGTH_BYTES, Reply, Request, Variant,
};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::tokenctl::User;
use tokend_tests::{FdDonor, Provider, RawPeer, Scene, TestDir, raw_peer, requirement, wait};

fn scene() -> Scene {
    Scene::start(Provider::start(), &token_table("t", ""))
}

fn peer(scene: &Scene) -> RawPeer {
    RawPeer::connect(scene.socket()).unwrap()
}

/// A frame with this body.
fn framed(body: &[u8]) -> Vec<u8> {
    let mut wire = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    wire.extend_from_slice(body);
    wire
}

/// The body of a good request, without its length.
fn body(id: u32, request: Request) -> Vec<u8> {
    raw_peer::wire(id, request).split_off(LENGTH_BYTES)
}

/// The body of a request with a name of 300 characters, which no client of ours would write.
fn long_name() -> Vec<u8> {
    let name = "x".repeat(200);
    let mut body = body(7, raw_peer::get(&name));
    let at = body.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    // 200 is one byte of length, 300 a mark and two bytes.
    body.splice(at - 1..at, [251, 44, 1]);
    body.splice(at + 2..at + 2, [b'x'; 100]);
    body
}

#[test]
fn nonsense_in_a_frame_is_refused_by_its_name_and_the_connection_goes_on() {
    let scene = scene();
    let mut unknown_version = body(7, Request::Version);
    unknown_version[0] = 99;
    let mut unknown_request = body(7, Request::Version);
    unknown_request[5] = 200;
    let mut trailing = body(7, Request::Version);
    trailing.extend_from_slice(b"more");
    let mut cut = body(7, raw_peer::get("t"));
    cut.truncate(cut.len() - 3);
    let named = |letter: u8| {
        body(7, raw_peer::get("t-t")).into_iter().map(move |b| if b == b'-' { letter } else { b })
    };
    let cases: [(&str, Vec<u8>, u32, ErrorCode); 10] = [
        ("empty", Vec::new(), 0, ErrorCode::InvalidRequest),
        ("cut header", vec![1, 0, 0], 0, ErrorCode::InvalidRequest),
        ("unknown version", unknown_version, 7, ErrorCode::UnsupportedVersion),
        ("unknown request", unknown_request, 7, ErrorCode::UnknownRequest),
        ("trailing bytes", trailing, 7, ErrorCode::InvalidRequest),
        ("cut body", cut, 7, ErrorCode::InvalidRequest),
        ("a name with a slash", named(b'/').collect(), 7, ErrorCode::InvalidRequest),
        ("a name with NUL", named(0).collect(), 7, ErrorCode::InvalidRequest),
        ("a name with a newline", named(b'\n').collect(), 7, ErrorCode::InvalidRequest),
        ("a name of 300 characters", long_name(), 7, ErrorCode::InvalidRequest),
    ];
    for (what, body, id, code) in cases {
        let mut peer = peer(&scene);
        peer.write(&framed(&body)).unwrap();
        assert_eq!(peer.expect_error(), (id, code), "{what}");
        if code != ErrorCode::UnsupportedVersion {
            peer.assert_alive();
        }
    }
    scene.tokenctl().get("t");
}

#[test]
fn a_frame_that_is_too_long_ends_the_connection_before_it_is_read() {
    let scene = scene();
    for length in [16 * 1024 + 1, 1024 * 1024, u32::MAX] {
        let mut peer = peer(&scene);
        peer.write(&length.to_be_bytes()).unwrap();
        assert_eq!(peer.expect_error(), (0, ErrorCode::InvalidRequest));
        peer.expect_close_with_nothing(Duration::from_secs(60));
    }
    scene.tokenctl().get("t");
}

#[test]
fn a_name_of_any_shape_is_refused_before_it_is_looked_up() {
    let scene = scene();
    for name in ["a/b", "a\nb", "", "../t", "-t", &"x".repeat(300)] {
        let refused = scene.tokenctl().run(&["get", "--", name]);
        assert_eq!(refused.code, 2, "{name:?}: {}", refused.stderr);
        assert!(!refused.stderr.is_empty());
    }
}

#[test]
fn a_peer_that_sends_byte_by_byte_is_understood() {
    let scene = scene();
    let mut peer = peer(&scene);
    for byte in raw_peer::wire(1, Request::Version) {
        peer.write(&[byte]).unwrap();
    }
    assert!(matches!(peer.expect_reply(1), Reply::Version(_)));
}

#[test]
fn two_frames_in_one_write_and_one_frame_in_two_are_understood() {
    let scene = scene();
    let mut peer = peer(&scene);
    let wire = [raw_peer::wire(1, Request::Version), raw_peer::wire(2, Request::Version)].concat();
    let (first, second) = wire.split_at(15);
    peer.write(first).unwrap();
    assert!(matches!(peer.expect_reply(1), Reply::Version(_)));
    peer.write(second).unwrap();
    assert!(matches!(peer.expect_reply(2), Reply::Version(_)));
}

#[test]
fn half_a_frame_and_then_silence_is_dropped_and_a_silent_peer_harms_nobody() {
    let scene = scene();
    let silent = peer(&scene);
    let mut half = peer(&scene);
    half.write(&raw_peer::wire(1, raw_peer::get("t"))[..6]).unwrap();
    scene.tokenctl().get("t");
    half.expect_close_within(wait::PATIENCE);
    scene.tokenctl().get("t");
    drop(silent);
}

#[test]
fn a_peer_that_hangs_up_in_the_middle_harms_nobody() {
    let scene = scene();
    let wire = raw_peer::wire(1, raw_peer::get("t"));
    for length in 0..wire.len() {
        let mut peer = peer(&scene);
        peer.write(&wire[..length]).unwrap();
    }
    let mut peer = peer(&scene);
    peer.write(&wire).unwrap();
    drop(peer);
    scene.tokenctl().get("t");
}

#[test]
fn a_peer_that_never_reads_is_held_up_and_nobody_else_is() {
    let scene = scene();
    scene.tokenctl().get("t");
    let peer = peer(&scene);
    let mut stream: &UnixStream = peer.stream();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let wire = raw_peer::wire(1, raw_peer::get("t"));
    // Ends when the daemon has stopped reading, or has closed.
    let written = (0..1_000_000).take_while(|_| stream.write_all(&wire).is_ok()).count();
    assert!(written < 1_000_000, "the daemon takes requests without end from a peer that reads no answer");
    scene.tokenctl().get("t");
}

#[test]
fn requests_in_flight_are_answered_each_under_its_own_id() {
    let scene = scene();
    scene.tokenctl().get("t");
    let mut peer = peer(&scene);
    for id in 1..=20 {
        peer.send(id, raw_peer::get("t")).unwrap();
    }
    let mut answered: Vec<u32> = (1..=20).map(|_| peer.receive().unwrap().unwrap().unwrap().id).collect();
    answered.sort_unstable();
    assert_eq!(answered, (1..=20).collect::<Vec<u32>>());
}

#[test]
fn a_deadline_of_nothing_is_answered_at_once() {
    let provider = Provider::start();
    provider.always(tokend_tests::Answer::token(60).with_fault(tokend_tests::Fault::HangBeforeHead));
    let scene = Scene::start(provider, &token_table("t", ""));
    let options = CallOptions { deadline_ms: 0, min_ttl_ms: 0 };
    let request = GetRequest { name: "t".parse().unwrap(), options, variant: Variant::default() };
    match peer(&scene).ask(1, Request::Get(request)) {
        Reply::Error(error) => assert_eq!(error.code, ErrorCode::DeadlineExceeded),
        other => panic!("a refusal was expected, not {other:?}"),
    }
}

#[test]
fn two_thousand_connections_of_one_user_leave_room_for_another() {
    if !requirement::root() {
        return;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(4096).min(hard), hard).unwrap();
    let daemon = "socket_group = \"61000\"\n";
    let scene = Scene::start_with(Provider::start(), daemon, &token_table("t", "allow = [\"user:61001\"]"));
    let flood: Vec<(RawPeer, Welcome)> = (0..2000).map(|_| knock(&scene)).collect();
    let served = flood.iter().take_while(|(_, welcome)| *welcome == Welcome::Served).count();
    // The connections with which the harness saw that the daemon was ready may still be counted.
    assert!((1000..=1024).contains(&served), "{served} connections of one user are served");
    let turned_away = flood.iter().filter(|(_, welcome)| *welcome == Welcome::TurnedAway).count();
    assert_eq!(served + turned_away, flood.len(), "once there is no place, there is none");
    let refused = scene.tokenctl().run(&["get", "t"]).expect_code(6);
    assert!(refused.contains("too many"), "{refused}");

    let other = scene.tokenctl().as_user(User::new(61_001).with_groups(&[61_000]));
    other.get("t");
    let mut flood = flood;
    for (peer, _) in &mut flood[..served] {
        peer.assert_alive();
    }
    drop(flood);
    wait::until("places for the first user again", || {
        (scene.tokenctl().run(&["get", "t"]).code == 0).then_some(())
    });
}

/// How a new connection is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Welcome {
    Served,
    TurnedAway,
}

/// Connects, asks something, and sees what comes of it.
fn knock(scene: &Scene) -> (RawPeer, Welcome) {
    let mut peer = peer(scene);
    // One that is turned away may be so before it has asked.
    let _ = peer.send(1, Request::Version);
    let frame = peer.receive().unwrap().expect("a word comes before the end").unwrap();
    if matches!((frame.id, &frame.message), (1, Reply::Version(_))) {
        return (peer, Welcome::Served);
    }
    let turned_away =
        |message| matches!(message, &Reply::Error(ErrorReply { code: ErrorCode::Overloaded, .. }));
    assert!(frame.id == 0 && turned_away(&frame.message), "neither served nor turned away: {frame:?}");
    (peer, Welcome::TurnedAway)
}

#[test]
fn a_daemon_without_descriptors_turns_callers_away_and_serves_those_it_has() {
    let scene = scene();
    let limit = |descriptors| limit_descriptors(&scene, descriptors);
    let mut first = peer(&scene);
    first.assert_alive();
    let open = fs::read_dir(format!("/proc/{}/fd", scene.daemon.pid())).unwrap().count();
    limit(open);
    // There may be gaps to fill before there is none left.
    let flood: Vec<_> = (0..32).map(|_| knock(&scene)).collect();
    assert!(flood.iter().any(|(_, welcome)| *welcome == Welcome::TurnedAway));
    first.assert_alive();
    limit(4096);
    wait::until("room again", || (knock(&scene).1 == Welcome::Served).then_some(()));
    let complaints = scene.daemon.log().matches("connections could not be accepted").count();
    assert_eq!(complaints, 1, "one line for all of them");
}

/// Another thread of the daemon may have taken the descriptor that it keeps to turn callers away with.
#[test]
fn a_daemon_that_lost_even_its_last_descriptor_turns_callers_away_once_it_has_one() {
    let scene = scene();
    let open = fs::read_dir(format!("/proc/{}/fd", scene.daemon.pid())).unwrap().count();
    limit_descriptors(&scene, 3);
    let mut waiting = peer(&scene);
    let _ = waiting.send(1, Request::Version);
    scene.daemon.wait_for_log(&["connections could not be accepted"]);
    limit_descriptors(&scene, open);
    let flood: Vec<_> = (0..32).map(|_| knock(&scene)).collect();
    assert_eq!(flood.last().unwrap().1, Welcome::TurnedAway, "nobody waits for a word");
    assert!(waiting.receive().unwrap().is_some());
}

fn limit_descriptors(scene: &Scene, descriptors: usize) {
    let pid = format!("--pid={}", scene.daemon.pid());
    let limit = format!("--nofile={descriptors}:");
    assert!(Command::new("prlimit").args([pid, limit]).status().unwrap().success());
}

#[test]
fn root_gets_in_with_few_descriptors_however_many_others_connect() {
    if !requirement::root() {
        return;
    }
    let (home, provider) = (TestDir::new(), Provider::start());
    let provider_table = provider_table(&home, "p", &provider.token_endpoint(), "");
    home.configure("socket_group = \"61000\"", &(provider_table + &token_table("t", "")));
    let daemon = Launch::new(&home).through(&["prlimit", "--nofile=40"]).start();
    let _others: Vec<_> = (61_001..61_031)
        .map(|uid| FdDonor::start(daemon.socket(), &User::new(uid).with_groups(&[61_000])))
        .collect();
    daemon.wait_for_log(&["tokend::server::audit", "connect refused", "too many open connections"]);
    daemon.tokenctl().get("t");
    assert!(!daemon.log().contains("could not be accepted"), "descriptors ran out");
}

#[test]
fn places_are_kept_for_operators() {
    if !requirement::root() {
        return;
    }
    let settings = "socket_group = \"61000\"\nmax_connections = 8\nmax_connections_per_uid = 8";
    let scene = Scene::start_with(Provider::start(), settings, &token_table("t", "allow = [\"any\"]"));
    let donors: Vec<_> = (61_001..61_011)
        .map(|uid| FdDonor::start(scene.socket(), &User::new(uid).with_groups(&[61_000])))
        .collect();
    let refused = scene.tokenctl().as_user(User::new(61_020).with_groups(&[61_000])).run(&["get", "t"]);
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    scene.tokenctl().get("t");
    drop(donors);
    scene.daemon.wait_for_log(&["tokend::server::audit", "connect refused", "too many open connections"]);
}

#[test]
fn answers_that_a_user_does_not_read_are_bounded_over_all_of_its_connections() {
    let tokens: String =
        (0..400).map(|n| token_table(&format!("{n:0>200}"), "warm = \"on-demand\"")).collect();
    let scene = Scene::start_with(Provider::start(), "max_unread_bytes_per_uid = 50000", &tokens);
    let wire = raw_peer::wire(1, Request::List(tokend_protocol::PageRequest { after: None }));
    let slow: Vec<RawPeer> = (0..8)
        .map(|_| {
            let mut peer = peer(&scene);
            // Far more answers than a socket takes.
            peer.write(&wire.repeat(64)).unwrap();
            peer
        })
        .collect();
    scene.daemon.wait_for_log(&["tokend::server::audit", "request refused", "too many answers unread"]);
    let mut other = peer(&scene);
    other.assert_alive();
    drop(slow);
}

#[test]
fn a_descriptor_whose_close_takes_an_hour_holds_up_nobody() {
    let scene = scene();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let lingering = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    // With something to say that nobody reads.
    lingering.set_nonblocking(true).unwrap();
    while (&lingering).write(&[0; 4_096]).is_ok() {}
    let linger = |l_onoff| setsockopt(&lingering, sockopt::Linger, &linger { l_onoff, l_linger: 3_600 });
    linger(1).unwrap();
    let hostile = UnixStream::connect(scene.socket()).unwrap();
    let descriptors = [lingering.as_raw_fd()];
    let attached = [ControlMessage::ScmRights(&descriptors)];
    let pieces = [IoSlice::new(b"x")];
    let sent = sendmsg::<()>(hostile.as_raw_fd(), &pieces, &attached, MsgFlags::MSG_NOSIGNAL, None);
    if sent.is_err() {
        // The kernel has refused it, and then it is closed here.
        linger(0).unwrap();
    }
    drop(lingering);
    for _ in 0..2 {
        scene.tokenctl().get("t");
    }
    drop(hostile);
    scene.tokenctl().get("t");
}

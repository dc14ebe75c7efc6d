use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, setsockopt, socket, sockopt,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::access::Facts;
use crate::clock::{Clock, ClockChanges};
use crate::config;
use crate::engine::credential::ActorContext;
use crate::engine::registry::{CredentialFactory, Registry};
use crate::fingerprint::Fingerprinter;
use crate::quota::{Allowances, Quota};
use crate::server::accept::tests::scene;
use crate::server::stream::Descriptors;
use crate::store::Store;

const PROVIDER: &str = "[provider.p]\ntoken_endpoint = \"http://127.0.0.1:1/\"\nclient_id = \"c\"\n\
                        client_secret = { file = \"/nonexistent\" }\n";

/// The state of a daemon with so many tokens, none of which is held.
fn server_state(tokens: usize, quota: Quota) -> Arc<ServerState> {
    let clock = Clock::kernel(ClockChanges::default());
    let actor_context = ActorContext {
        clock: clock.clone(),
        fingerprinter: Arc::new(Fingerprinter::with_key(&[7; 32])),
        roll: || 0.5,
        tasks: tokio_util::task::TaskTracker::new(),
    };
    let token =
        |n: usize| format!("[token.t{n}]\nprovider = \"p\"\nwarm = \"on-demand\"\nallow = [\"user:7\"]\n");
    let text = PROVIDER.to_owned() + &(0..tokens).map(token).collect::<String>();
    let config = config::parse(Path::new("tokend.toml"), &text).unwrap().config;
    let mut factory = CredentialFactory::new(Store::forgetful(clock.clone()), None, actor_context);
    let registry = Registry::build(config, &mut factory, None);
    let mut shared = ServerState::new(registry, factory, clock);
    shared.allowances = Allowances::new(quota);
    Arc::new(shared)
}

/// A connection of root, and its caller's end.
fn connect(shared: &Arc<ServerState>) -> (JoinHandle<std_io::Result<()>>, UnixStream) {
    connect_as(0, 4096, shared)
}

/// A connection of this user, with room for so many bytes of answers, and its caller's end.
fn connect_as(
    uid: u32,
    room: usize,
    shared: &Arc<ServerState>,
) -> (JoinHandle<std_io::Result<()>>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    setsockopt(&ours, sockopt::SndBuf, &room).unwrap();
    let stream = Stream::new(ours.into_std().unwrap().into(), Descriptors::MayCome);
    let peer = Peer::known(Facts { uid, gid: uid, ..Facts::default() });
    let session = Arc::new(Session::new(Arc::clone(shared), peer));
    (tokio::spawn(serve_requests(stream, session)), theirs)
}

/// All that the server answers to these bytes.
async fn answers(shared: &Arc<ServerState>, bytes: &[u8]) -> String {
    let (_, mut caller) = connect(shared);
    // A server that has heard enough closes the connection.
    let _ = caller.write_all(bytes).await;
    let _ = caller.shutdown().await;
    let mut answers = Vec::new();
    let _ = caller.read_to_end(&mut answers).await;
    String::from_utf8(answers).unwrap()
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: any\r\n\r\n").into_bytes()
}

/// How a connection ended.
async fn end(connection: JoinHandle<std_io::Result<()>>) -> std_io::Result<()> {
    timeout(Duration::from_secs(3600), connection).await.expect("the connection ends").unwrap()
}

/// Reads one answer.
async fn read_answer(caller: &mut UnixStream) -> String {
    let mut answer = vec![0; 4096];
    let read = caller.read(&mut answer).await.unwrap();
    String::from_utf8(answer[..read].to_vec()).unwrap()
}

#[tokio::test]
async fn requests_on_one_connection_are_answered_in_order_and_one_that_is_half_closed_too() {
    let shared = server_state(2, Quota::default());
    let pipelined =
        [get("/v1/tokens"), get("/v1/tokens/t0?deadline=0s"), get("/v1/tokens/unknown"), get("/")].concat();
    let answers = answers(&shared, &pipelined).await;
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 4, "{answers}");
    let places = [
        "HTTP/1.1 200 OK",
        "\"t0\",\"state\":\"pending\"",
        "HTTP/1.1 504 ",
        "\"unknown-token\"",
        "no such path",
    ]
    .map(|words| answers.find(words).unwrap_or_else(|| panic!("{words} in {answers}")));
    assert!(places.is_sorted(), "{answers}");
}

#[tokio::test]
async fn the_status_comes_in_pages_and_the_metrics_have_all_of_them() {
    let shared = server_state(200, Quota::default());
    let body = |answer: String| answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    let (mut names, mut target) = (Vec::new(), "/v1/status".to_owned());
    loop {
        let page: serde_json::Value =
            serde_json::from_str(&body(answers(&shared, &get(&target)).await)).unwrap();
        assert_eq!(page["daemon"]["pid"], std::process::id());
        let tokens = page["tokens"].as_array().unwrap();
        names.extend(tokens.iter().map(|token| token["name"].as_str().unwrap().to_owned()));
        if page["more"] == false {
            break;
        }
        target = format!("/v1/status?after={}", names.last().unwrap());
    }
    assert!(names.len() == 200 && names.is_sorted(), "{names:?}");

    let metrics = answers(&shared, &get("/metrics")).await;
    assert!(metrics.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{metrics}");
    assert!(metrics.contains("\ntokend_tokens{provider=\"p\",state=\"pending\"} 200\n"), "{metrics}");
    assert_eq!(metrics.matches("\ntokend_token_hand_outs_total{").count(), 200);
    let accepting = "GET /metrics HTTP/1.1\r\nHost: any\r\nAccept: application/openmetrics-text\r\n\r\n";
    let open = answers(&shared, accepting.as_bytes()).await;
    assert!(open.contains("\r\ncontent-type: application/openmetrics-text; version=1.0.0"), "{open}");

    // Another caller gets none, and the audit has it.
    let (_, mut caller) = connect_as(7, 4096, &shared);
    caller.write_all(&get("/metrics")).await.unwrap();
    let refused = read_answer(&mut caller).await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("only an operator"), "{refused}");
    assert!(!shared.audit.is_empty());
}

#[tokio::test]
async fn a_user_has_at_most_eight_scrapes_in_memory() {
    let shared = server_state(200, Quota::default());
    let allowance = shared.allowances.of(0, shared.clock.now());
    // As many as there are places are held by others.
    let places = allowance.long_answers.acquire_many(8).await.unwrap();
    let (_, mut caller) = connect(&shared);
    caller.write_all(&get("/metrics")).await.unwrap();
    let waiting = timeout(Duration::from_millis(200), caller.readable()).await;
    assert!(waiting.is_err(), "it waits for a place before it reads the status");
    drop(places);
    assert!(read_answer(&mut caller).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_request_with_a_body_is_refused_and_what_follows_is_not_taken_for_a_request() {
    let shared = server_state(1, Quota::default());
    let smuggled = String::from_utf8(get("/v1/tokens")).unwrap();
    let length = smuggled.len();
    for head in [
        format!("POST /v1/tokens/t0/reject HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"),
        format!("GET /v1/tokens HTTP/1.1\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n"),
        "GET /v1/tokens HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        format!("GET /v1/tokens HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"),
        "GET /v1/tokens HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\n".to_owned(),
        "GET /v1/tokens HTTP/1.1\r\nContent-Length: +9\r\n\r\n".to_owned(),
        "GET /v1/tokens HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n".to_owned(),
        "GET /v1/tokens HTTP/1.1\r\nTransfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n".to_owned(),
    ] {
        let answers = answers(&shared, (head.clone() + &smuggled).as_bytes()).await;
        assert!(answers.starts_with("HTTP/1.1 400 "), "{head}{answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{head}{answers}");
    }
}

#[tokio::test]
async fn what_is_not_http_or_too_much_of_it_is_refused_and_ends_the_connection() {
    let shared = server_state(1, Quota::default());
    let long_header = format!("GET /v1/tokens HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000));
    let long_path = format!("GET /v1/tokens/{} HTTP/1.1\r\n\r\n", "x".repeat(9000));
    let many_headers = format!("GET /v1/tokens HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200));
    for (bytes, status) in [
        (long_header.as_str(), "431"),
        (&long_path, "431"),
        (&many_headers, "431"),
        ("\0\0\0\u{10}\u{1}\0\0\0\u{7}\u{7}\0 and so on\r\n\r\n", "400"),
        ("GET /v1/tokens HTTP/1.1\r\nBad header\r\n\r\n", "400"),
        ("GET /v1/tokens HTTP/1.1\r\nX: a\0b\r\n\r\n", "400"),
        ("GET /v1/tokens HTTP/1.1\r\nX : y\r\n\r\n", "400"),
        ("GET /v1/tokens HTTP/9.9\r\n\r\n", "400"),
        ("GET  /v1/tokens\r\n\r\n", "400"),
    ] {
        let answers =
            answers(&shared, (bytes.to_owned() + "GET /v1/tokens HTTP/1.1\r\n\r\n").as_bytes()).await;
        assert!(answers.starts_with(&format!("HTTP/1.1 {status} ")), "{bytes:.60}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{bytes:.60}: {answers}");
    }
    let answers = answers(&shared, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(!answers.contains("200"), "{answers}");
}

#[tokio::test(start_paused = true)]
async fn a_head_has_a_deadline_and_an_idle_connection_has_none() {
    let shared = server_state(1, Quota::default());
    let (silent, _caller) = connect(&shared);
    let began = Instant::now();
    assert!(end(silent).await.is_err());
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    let (slow, mut caller) = connect(&shared);
    for _ in 0..3 {
        caller.write_all(&get("/v1/tokens")).await.unwrap();
        assert!(read_answer(&mut caller).await.starts_with("HTTP/1.1 200 "));
        sleep(Duration::from_secs(3600)).await;
    }
    assert!(!slow.is_finished(), "it is idle");
    let began = Instant::now();
    for byte in b"GET /v1/tokens HTTP/1.1\r\n" {
        if caller.write_all(&[*byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_secs(1)).await;
    }
    assert!(end(slow).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_is_left_after_five_seconds() {
    let shared = server_state(500, Quota::default());
    let (slow, mut caller) = connect(&shared);
    let began = Instant::now();
    caller.write_all(&get("/v1/tokens")).await.unwrap();
    let (other, mut reader) = connect(&shared);
    reader.write_all(&get("/v1/tokens/unknown")).await.unwrap();
    assert!(read_answer(&mut reader).await.starts_with("HTTP/1.1 404 "));
    assert_eq!(began.elapsed(), Duration::ZERO, "one caller waits for the other");
    assert!(end(slow).await.is_err());
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    drop(reader);
    end(other).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_quotas_are_those_of_the_protocol() {
    let shared = server_state(1, Quota { in_flight: 0, ..Quota::default() });
    let answer = answers(&shared, &get("/v1/tokens")).await;
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
    let shared = server_state(1, Quota { unread_bytes: 10, ..Quota::default() });
    assert_eq!(answers(&shared, &get("/v1/tokens")).await, "", "not even the problem may be unread");
    let shared = server_state(200, Quota { unread_bytes: 1000, ..Quota::default() });
    let answer = answers(&shared, &get("/v1/status")).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "more than may be unread: {answer}");
    let shared = server_state(1, Quota { unread_bytes: 1000, ..Quota::default() });
    let many = get("/v1/tokens").repeat(50);
    assert_eq!(
        answers(&shared, &many).await.matches("HTTP/1.1 200 ").count(),
        50,
        "what is read counts no more"
    );
}

#[tokio::test(start_paused = true)]
async fn when_the_daemon_stops_idle_connections_end_and_requests_are_answered() {
    let shared = server_state(1, Quota::default());
    let (idle, mut idle_caller) = connect(&shared);
    idle_caller.write_all(&get("/v1/tokens")).await.unwrap();
    read_answer(&mut idle_caller).await;
    let (busy, mut caller) = connect(&shared);
    caller.write_all(&get("/v1/tokens/t0?deadline=3s")).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    shared.stop.cancel();
    end(idle).await.unwrap();
    assert!(read_answer(&mut caller).await.starts_with("HTTP/1.1 50"));
    end(busy).await.unwrap();
}

#[tokio::test]
async fn a_request_of_a_web_page_is_refused_and_audited() {
    let shared = server_state(1, Quota::default());
    let page = b"GET /v1/tokens HTTP/1.1\r\nOrigin: http://page.example\r\n\r\n";
    assert!(answers(&shared, page).await.starts_with("HTTP/1.1 403 "));
    assert!(!shared.audit.is_empty());
}

#[tokio::test]
async fn a_thousand_callers_that_connect_without_blocking_wait_in_the_queue() {
    let (listener, _shared, path, _folder) = scene(Quota::default());
    let _listener = Listener::new(listener, QUEUE_MAX).unwrap();
    let flags = SockFlag::SOCK_NONBLOCK;
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let caller = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
            connect_to(caller.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
            caller
        })
        .collect();
    assert_eq!(callers.len(), 1000);
}

#[tokio::test]
async fn another_user_has_its_turn_between_requests_that_have_come_at_once() {
    let shared = server_state(1, Quota::default());
    let _users = [0, 8].map(|uid| shared.fair_queue.join(uid));
    let (_, mut flood) = connect_as(0, 1024 * 1024, &shared);
    let (_, mut other) = connect_as(8, 4096, &shared);
    flood.write_all(&get("/v1/tokens/unknown").repeat(64)).await.unwrap();
    other.write_all(&get("/v1/tokens/unknown")).await.unwrap();
    assert!(read_answer(&mut other).await.starts_with("HTTP/1.1 403 "));
    let mut answered = vec![0; 64 * 1024];
    let answered = flood
        .try_read(&mut answered)
        .map_or(String::new(), |read| String::from_utf8(answered[..read].to_vec()).unwrap());
    let answered = answered.matches("HTTP/1.1 404 ").count();
    assert!(answered < 8, "{answered} requests of one user before the first of another");
}

#[test]
fn a_caller_that_is_turned_away_gets_a_whole_answer() {
    let answer = String::from_utf8(refusal(ErrorCode::Overloaded, "too many open connections")).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{head}");
    for line in [
        "content-type: application/problem+json",
        "connection: close",
        &format!("content-length: {}", body.len()),
    ] {
        assert!(head.lines().any(|other| other == line), "{line} in {head}");
    }
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["status"], &body["code"]), (&429.into(), &"overloaded".into()));
}

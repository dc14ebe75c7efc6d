//! The promises of the proxy, between a daemon and an upstream that do what a test tells them to.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "../../tests/fake/mod.rs"]
mod fake;

use std::collections::HashMap;
use std::convert::Infallible;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fake::{FakeDaemon, error, info, name};
use futures_util::stream::poll_fn;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use reqwest::{Client as Caller, RequestBuilder};
use tempfile::TempDir;
use tokend_client::{
    BootInstant, Client, EventReply, Fingerprint, Header, HeadersReply, HeldToken, Options, RejectOutcome,
    RejectedReply, Secret, State, TokenInfo, TokenReply,
};
use tokend_protocol::{ErrorCode, Reply, Request as Asked};
use tokend_proxy::{Connections, Proxy};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(180);

/// A token that lasts five seconds is replaced so often in a day.
const ROTATIONS_OF_A_DAY: u64 = 24 * 60 * 60 / 5;

/// The state that the daemon and the upstream of a test share.
#[derive(Default)]
struct Bank {
    /// The number of the token that the upstream accepts.
    current: Mutex<u64>,
    /// How often the upstream refused a token.
    refused: Mutex<u64>,
    /// The last request that the upstream accepted: its headers.
    seen: Mutex<HashMap<String, String>>,
    /// The daemon's answer to every request, instead of a token.
    failure: Mutex<Option<ErrorCode>>,
    /// Whether the daemon has no other token when one is refused.
    has_no_other: Mutex<bool>,
    /// The parts of the body of `/stream`, one after the other.
    parts: Mutex<Option<mpsc::Receiver<Bytes>>>,
}

struct Scene {
    bank: Arc<Bank>,
    _daemon: FakeDaemon,
    /// The connection over which the daemon tells of tokens, if it had one at the start.
    watch: UnixStream,
    caller: Caller,
    _folder: TempDir,
}

fn secret(number: u64) -> String {
    format!("secret-{number:06}")
}

fn info_of(number: u64) -> TokenInfo {
    let expires_at = BootInstant(tokend_client::now().0 + 3_600_000);
    TokenInfo { expires_at, fingerprint: Fingerprint(number.to_be_bytes()), ..info() }
}

/// The event that brings the token of this number.
fn brings(number: u64) -> Reply {
    let info = info_of(number);
    let TokenInfo { issued_at, expires_at, expires_at_wall, fingerprint, .. } = info;
    let token = Secret::from(secret(number));
    Reply::Event(EventReply {
        index: 0,
        name: name("psb"),
        state: State::Fresh,
        held: Some(HeldToken { issued_at, expires_at, expires_at_wall, fingerprint }),
        last_error: None,
        next_attempt: None,
        token: Some(TokenReply { info, token, token_type: "Bearer".to_owned(), scope: None }),
    })
}

fn headers(number: u64) -> Reply {
    let header = |name: &str, value: String| Header { name: name.to_owned(), value: Secret::from(value) };
    let headers = vec![
        header("Authorization", format!("Bearer {}", secret(number))),
        header("Subscription-Key", "secret-key".to_owned()),
    ];
    Reply::Headers(HeadersReply { info: info_of(number), headers })
}

impl Bank {
    fn current(&self) -> u64 {
        *self.current.lock().unwrap()
    }

    /// The upstream accepts another token.
    fn rotate(&self) -> u64 {
        let mut current = self.current.lock().unwrap();
        *current += 1;
        *current
    }

    /// The reply of the daemon to a request.
    fn answer(&self, asked: &Asked) -> Reply {
        if let Some(code) = *self.failure.lock().unwrap() {
            return Reply::Error(error(code));
        }
        let current = self.current();
        match asked {
            Asked::Headers(_) => headers(current),
            Asked::Reject(_) => {
                let has_no_other = *self.has_no_other.lock().unwrap();
                let outcome = if has_no_other { RejectOutcome::TooSoon } else { RejectOutcome::Superseded };
                Reply::Rejected(RejectedReply { outcome, info: info_of(current) })
            }
            _ => brings(current),
        }
    }

    /// The response of the upstream to a request.
    fn serve(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, hyper::Error>> {
        let whole = |text: Bytes| Full::new(text).map_err(|never| match never {}).boxed();
        let (parts, body) = request.into_parts();
        let expected = format!("Bearer {}", secret(self.current()));
        if parts.headers.get("authorization").is_none_or(|value| *value != *expected) {
            *self.refused.lock().unwrap() += 1;
            let mut response = Response::new(whole(Bytes::from_static(b"refused")));
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            return response;
        }
        let seen =
            parts.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        *self.seen.lock().unwrap() = seen.collect();
        match parts.uri.path() {
            "/echo" => Response::new(body.boxed()),
            "/redirect" => {
                let response =
                    Response::builder().status(302).header("location", "http://127.0.0.1:1/elsewhere");
                response.header("connection", "x-hop").header("x-hop", "1").body(whole(Bytes::new())).unwrap()
            }
            "/stream" => {
                let parts = self.parts.lock().unwrap().take().unwrap();
                Response::new(BodyExt::boxed(body_of(parts).map_err(|never| match never {})))
            }
            _ => Response::new(whole(Bytes::from_static(b"ok"))),
        }
    }
}

/// A body of these parts, one after the other.
fn body_of(
    mut parts: mpsc::Receiver<Bytes>,
) -> impl Body<Data = Bytes, Error = Infallible> + Send + Sync + 'static {
    StreamBody::new(poll_fn(move |context| {
        parts.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(part))))
    }))
}

/// Sends requests to a Unix socket, and follows no redirect.
fn caller(socket: PathBuf) -> Caller {
    // It is never used, but has to be there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let caller = Caller::builder().unix_socket(socket).no_proxy();
    caller.redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

impl Scene {
    async fn new() -> Self {
        Self::with(Bank::default()).await
    }

    async fn with(bank: Bank) -> Self {
        let (folder, bank) = (TempDir::new().unwrap(), Arc::new(bank));
        let daemon_socket = folder.path().join("tokend.sock");
        let daemon = FakeDaemon::answering(&daemon_socket, {
            let bank = Arc::clone(&bank);
            move |asked| bank.answer(asked)
        });
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", upstream.local_addr().unwrap());
        tokio::spawn(serve_upstream(upstream, Arc::clone(&bank)));
        let source = Client::new(Options::new(daemon_socket)).source(&name("psb"));
        let _ = source.token().await;
        let watch = daemon.newest();
        let proxy = Arc::new(Proxy::new(source, url.parse().unwrap(), None).unwrap());
        let socket = folder.path().join("proxy.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let connections = Connections::default();
            let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
            connections.serve(&proxy, accept).await.unwrap();
        });
        let caller = caller(socket);
        Self { bank, _daemon: daemon, watch, caller, _folder: folder }
    }

    /// The status and the text of an answer, which has no token.
    async fn get(&self, path: &str) -> (u16, String) {
        let response = self.caller.get(format!("http://proxy{path}")).send().await.unwrap();
        for (name, value) in response.headers() {
            assert!(!value.to_str().unwrap().contains("secret-"), "{name}: {value:?}");
        }
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        assert!(!text.contains("secret-"), "{text}");
        (status, text)
    }

    /// The daemon tells of the token of this number.
    fn tell(&self, number: u64) {
        FakeDaemon::push_to(&self.watch, 1, brings(number));
    }

    fn refused(&self) -> u64 {
        *self.bank.refused.lock().unwrap()
    }
}

async fn serve_upstream(listener: TcpListener, bank: Arc<Bank>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let bank = Arc::clone(&bank);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let bank = Arc::clone(&bank);
                async move { Ok::<_, Infallible>(bank.serve(request)) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_refusal_reaches_the_caller_in_a_day_of_tokens_of_five_seconds() {
    let scene = Scene::new().await;
    assert_eq!(scene.get("/").await, (200, "ok".to_owned()));
    for rotation in 0..ROTATIONS_OF_A_DAY {
        let current = scene.bank.rotate();
        // The daemon tells before the caller asks, or after the upstream has refused the old token.
        let before = scene.refused();
        let (asked, ()) = tokio::join!(scene.get("/"), async {
            while rotation % 3 == 0 && scene.refused() == before {
                sleep(Duration::from_millis(1)).await;
            }
            scene.tell(current);
        });
        assert_eq!(asked, (200, "ok".to_owned()), "rotation {rotation}");
    }
    assert!(scene.refused() >= ROTATIONS_OF_A_DAY / 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_headers_of_the_token_replace_those_of_the_caller() {
    let scene = Scene::new().await;
    let request =
        scene.caller.get("http://proxy/a").header("Authorization", "Bearer mine").header("X-Mine", "1");
    let request =
        request.header("Subscription-Key", "mine").header("Connection", "x-hop").header("X-Hop", "1");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let seen = scene.bank.seen.lock().unwrap().clone();
    assert_eq!((&*seen["subscription-key"], &*seen["x-mine"]), ("secret-key", "1"));
    assert!(!seen.contains_key("x-hop") && seen["host"].starts_with("127.0.0.1:"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_sent_once_more_if_it_is_short_and_streamed_if_it_is_long() {
    let scene = Scene::new().await;
    assert_eq!(scene.get("/").await.0, 200);
    let post = |body: Vec<u8>| scene.caller.post("http://proxy/echo").body(body).send();
    // Longer than what is kept.
    let long: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_be_bytes).collect();
    let answered = post(long.clone()).await.unwrap();
    assert_eq!((answered.status().as_u16(), answered.bytes().await.unwrap() == long), (200, true));
    // The daemon brings the next token only after the old one is refused.
    let current = scene.bank.rotate();
    let short = post(b"a short body".to_vec());
    let (answered, ()) = tokio::join!(short, async {
        while scene.refused() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        scene.tell(current);
    });
    let answered = answered.unwrap();
    assert_eq!(
        (answered.status().as_u16(), answered.text().await.unwrap()),
        (200, "a short body".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_no_other_token_ends_is_the_caller_s() {
    let scene = Scene::new().await;
    assert_eq!(scene.get("/").await.0, 200);
    // The daemon holds what the upstream refuses, and has no other.
    scene.bank.rotate();
    *scene.bank.has_no_other.lock().unwrap() = true;
    assert_eq!(scene.get("/").await, (401, "refused".to_owned()));
    assert_eq!(scene.refused(), 1, "the request is not repeated with the same token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_is_passed_on_as_it_comes() {
    let scene = Scene::new().await;
    let (send, receive) = mpsc::channel(1);
    *scene.bank.parts.lock().unwrap() = Some(receive);
    pass_on(scene.caller.get("http://proxy/stream"), send).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_passed_on_as_it_comes() {
    let scene = Scene::new().await;
    let (send, receive) = mpsc::channel(1);
    let body = reqwest::Body::wrap(body_of(receive));
    pass_on(scene.caller.post("http://proxy/echo").body(body), send).await;
}

/// Sends a request whose response has the parts of a channel.
async fn pass_on(request: RequestBuilder, send: mpsc::Sender<Bytes>) {
    let mut response = timeout(PATIENCE, request.send()).await.unwrap().unwrap();
    for part in ["one", "two", "three"] {
        send.send(Bytes::from(part)).await.unwrap();
        // Before the next part exists.
        let got = timeout(PATIENCE, response.chunk()).await.unwrap().unwrap();
        assert_eq!(got.unwrap(), part);
    }
    drop(send);
    assert!(response.chunk().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_the_caller_s_and_headers_of_a_connection_stay_on_it() {
    let scene = Scene::new().await;
    let response = scene.caller.get("http://proxy/redirect").send().await.unwrap();
    assert_eq!(response.status(), 302);
    assert_eq!(response.headers()["location"], "http://127.0.0.1:1/elsewhere");
    assert!(!response.headers().contains_key("x-hop"), "{:?}", response.headers());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_forwarded_is_refused_with_a_reason() {
    let scene = Scene::new().await;
    for (header, value, status, words) in [
        ("Upgrade", "websocket", 501, "web sockets"),
        ("Origin", "http://page.example", 403, "web pages"),
        ("Sec-Fetch-Site", "cross-site", 403, "web pages"),
    ] {
        let request = scene.caller.get("http://proxy/").header(header, value);
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{header}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let text = response.text().await.unwrap();
        assert!(text.contains(words), "{text}");
    }
    assert!(scene.bank.seen.lock().unwrap().is_empty(), "the upstream was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_or_an_upstream_the_caller_is_told_why() {
    let scene = Scene::with(Bank { failure: Some(ErrorCode::NotAllowed).into(), ..Bank::default() }).await;
    let (status, text) = scene.get("/").await;
    assert!(status == 403 && text.contains("there is no token: the daemon's words"), "{status} {text}");
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("tokend.sock");
    let _daemon = FakeDaemon::answering(&socket, |asked| match asked {
        Asked::Headers(_) => headers(1),
        _ => brings(1),
    });
    let source = Client::new(Options::new(socket)).source(&name("psb"));
    // A port on which nobody listens.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let proxy = Arc::new(Proxy::new(source, url.parse().unwrap(), None).unwrap());
    let path = folder.path().join("proxy.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
        Connections::default().serve(&proxy, accept).await.unwrap();
    });
    let response = caller(path).get("http://proxy/").send().await.unwrap();
    assert_eq!(response.status(), 502);
    let text = response.text().await.unwrap();
    assert!(text.contains("no connection to the upstream") && !text.contains("secret-"), "{text}");
}

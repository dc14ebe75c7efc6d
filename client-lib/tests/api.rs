//! Calls of an HTTP API with the features `reqwest` and `tower`, and what the sources log. The daemon is that of the feature
//! `testing`.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use tokend_client::testing::FakeDaemon;
use tokend_client::{ApiClient, ApiError, CallerHeaders, Client, Error, TokenLayer, TokenSource, blocking};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_layer::Layer;
use tower_service::Service;

const HOUR: Duration = Duration::from_secs(3600);

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with one token, and another one for who rejects it.
fn daemon() -> FakeDaemon {
    let daemon = FakeDaemon::start().unwrap();
    daemon.set("psb", "first", HOUR);
    daemon.set_after_reject("psb", "second", HOUR);
    daemon
}

fn source(daemon: &FakeDaemon) -> TokenSource {
    Client::new(daemon.options()).token("psb").unwrap().source()
}

/// A request in lower case: its head, and its body if that is a stream.
fn read_request(connection: &mut TcpStream) -> String {
    let (mut request, mut part) = (String::new(), [0; 1024]);
    loop {
        let is_stream = request.contains("\r\ntransfer-encoding: chunked\r\n");
        if request.contains("\r\n\r\n") && (!is_stream || request.ends_with("\r\n0\r\n\r\n")) {
            return request;
        }
        let read = connection.read(&mut part).unwrap();
        assert_ne!(read, 0, "it ends too early: {request}");
        request.push_str(&String::from_utf8_lossy(part.get(..read).unwrap()).to_lowercase());
    }
}

/// An API on loopback. Answers each request, which is that of [`read_request`], and keeps it.
fn api(answer: impl Fn(&str) -> String + Send + 'static) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let requests = Arc::clone(&seen);
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let request = read_request(&mut connection);
            let answer = answer(&request);
            requests.lock().unwrap().push(request);
            let head = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            connection.write_all(head.as_bytes()).unwrap();
        }
    });
    (address, seen)
}

fn api_client(source: TokenSource) -> ApiClient {
    let _ = rustls::crypto::ring::default_provider().install_default();
    ApiClient::new(source, reqwest::Client::builder()).unwrap()
}

#[tokio::test]
async fn after_a_401_the_request_is_repeated_once_with_another_token() {
    let daemon = daemon();
    let (address, seen) =
        api(|head| if head.contains("bearer second") { "200 OK" } else { "401 Unauthorized" }.to_owned());
    let caller = CallerHeaders::new().supply("Requestor-ID", "4711");
    let api = api_client(source(&daemon).with_caller_headers(caller));
    let request =
        || api.http().get(format!("http://{address}/")).header(AUTHORIZATION, "replaced").build().unwrap();
    assert_eq!(api.execute(request()).await.unwrap().status(), 200);
    assert_eq!(api.execute(request()).await.unwrap().status(), 200);
    let tokens: Vec<_> =
        seen.lock().unwrap().iter().map(|head| head.matches("bearer second").count()).collect();
    assert_eq!(tokens, [0, 1, 1], "one repetition, and the second request has the newer token");
    for head in &*seen.lock().unwrap() {
        assert!(head.contains("requestor-id: 4711\r\n") && !head.contains("replaced"), "{head}");
        assert_eq!(head.matches("authorization: ").count(), 1, "{head}");
    }
    assert_eq!(daemon.rejected().len(), 1);
}

#[tokio::test]
async fn after_a_401_of_a_stream_the_next_request_has_another_token() {
    let daemon = daemon();
    let (address, seen) =
        api(|head| if head.contains("bearer second") { "200 OK" } else { "401 Unauthorized" }.to_owned());
    let api = api_client(source(&daemon));
    for status in [401, 200] {
        let stream = reqwest::Body::from(reqwest::Response::from(Response::new("a body")));
        let request = api.http().post(format!("http://{address}/")).body(stream).build().unwrap();
        assert!(request.try_clone().is_none(), "it cannot be repeated");
        assert_eq!(api.execute(request).await.unwrap().status(), status);
    }
    assert_eq!(seen.lock().unwrap().len(), 2);
    assert!(seen.lock().unwrap().iter().all(|request| request.contains("a body")));
}

#[tokio::test]
async fn a_request_is_repeated_by_an_api_that_serves_one_connection() {
    let daemon = daemon();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = thread::spawn(move || {
        let (mut first, _) = listener.accept().unwrap();
        read_request(&mut first);
        first.write_all(b"HTTP/1.1 401 Unauthorized\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        // Its body ends only when nobody reads it any more.
        while first.write_all(format!("1000\r\n{}\r\n", "x".repeat(0x1000)).as_bytes()).is_ok() {}
        let (mut second, _) = listener.accept().unwrap();
        read_request(&mut second);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        second.write_all(answer).unwrap();
    });
    let api = api_client(source(&daemon));
    let request = api.http().get(format!("http://{address}/")).build().unwrap();
    let response = tokio::time::timeout(PATIENCE, api.execute(request)).await.expect("it is repeated");
    assert_eq!(response.unwrap().status(), 200);
    serving.join().unwrap();
}

#[tokio::test]
async fn a_401_that_no_other_token_can_mend_reaches_the_caller_after_one_request() {
    let daemon = FakeDaemon::start().unwrap();
    daemon.set("psb", "first", HOUR);
    let (address, seen) = api(|_| "401 Unauthorized".to_owned());
    let api = api_client(source(&daemon));
    let response = api.execute(api.http().get(format!("http://{address}/")).build().unwrap()).await.unwrap();
    assert_eq!((response.status().as_u16(), seen.lock().unwrap().len()), (401, 1));
}

#[tokio::test]
async fn no_other_server_gets_the_headers_by_a_redirect() {
    let (daemon, (elsewhere, other)) = (daemon(), api(|_| "200 OK".to_owned()));
    let (address, seen) = api(move |head| {
        if head.starts_with("get /moved ") {
            "204 No Content".to_owned()
        } else if head.starts_with("get /inside ") {
            "302 Found\r\nLocation: /moved".to_owned()
        } else {
            format!("302 Found\r\nLocation: http://{elsewhere}/")
        }
    });
    let api = api_client(source(&daemon));
    let get = |path: &str| api.http().get(format!("http://{address}{path}")).build().unwrap();
    assert_eq!(api.execute(get("/inside")).await.unwrap().status(), 204);
    assert!(seen.lock().unwrap().iter().all(|head| head.contains("bearer first")));
    assert_eq!(api.execute(get("/outside")).await.unwrap().status(), 302);
    assert_eq!(other.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn without_a_token_no_request_is_sent() {
    let daemon = FakeDaemon::start().unwrap();
    let (address, seen) = api(|_| "200 OK".to_owned());
    let api = api_client(source(&daemon));
    let request = api.http().get(format!("http://{address}/")).build().unwrap();
    match api.execute(request).await {
        Err(ApiError::Token(Error::NotAllowed { .. })) => (),
        other => panic!("{other:?}"),
    }
    assert!(seen.lock().unwrap().is_empty());
}

/// A service that accepts one token only, and keeps the values of `Authorization`.
#[derive(Clone, Default)]
struct Accepting(Arc<Mutex<Vec<String>>>);

impl Service<Request<String>> for Accepting {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let authorization = request.headers()[AUTHORIZATION].clone();
        let value = authorization.to_str().unwrap().to_owned();
        let mut response = Response::new(request.into_body());
        if !authorization.is_sensitive() || value != "Bearer second" {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        self.0.lock().unwrap().push(value);
        std::future::ready(Ok(response))
    }
}

#[tokio::test]
async fn the_layer_repeats_a_request_with_its_body() {
    let (daemon, api) = (daemon(), Accepting::default());
    let mut service = TokenLayer::new(source(&daemon)).layer(api.clone());
    let response = service.call(Request::new("a body".to_owned())).await.unwrap();
    assert_eq!((response.status().as_u16(), response.body().as_str()), (200, "a body"));
    assert_eq!(*api.0.lock().unwrap(), ["Bearer first", "Bearer second"]);
    daemon.refuse("psb");
    let source = source(&daemon);
    let refused =
        TokenLayer::new(source).layer(api.clone()).call(Request::new(String::new())).await.unwrap_err();
    assert!(refused.is::<Error>(), "{refused}");
    assert_eq!(api.0.lock().unwrap().len(), 2);
}

/// A service with room for one request, which ends with its response.
struct OneAtATime(Arc<Semaphore>, Option<OwnedSemaphorePermit>);

impl Clone for OneAtATime {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0), None)
    }
}

impl Service<Request<String>> for OneAtATime {
    type Response = Response<OwnedSemaphorePermit>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.1 = Arc::clone(&self.0).try_acquire_owned().ok();
        if self.1.is_some() {
            return Poll::Ready(Ok(()));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let mut response = Response::new(self.1.take().unwrap());
        if request.headers()[AUTHORIZATION] != "Bearer second" {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        std::future::ready(Ok(response))
    }
}

#[tokio::test]
async fn the_layer_repeats_a_request_to_a_service_that_has_room_for_one() {
    let (daemon, api) = (daemon(), OneAtATime(Arc::new(Semaphore::new(1)), None));
    let mut service = TokenLayer::new(source(&daemon)).layer(api);
    std::future::poll_fn(|context| service.poll_ready(context)).await.unwrap();
    let call = service.call(Request::new(String::new()));
    let response = tokio::time::timeout(PATIENCE, call).await.expect("it is repeated").unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_handle_has_its_name_its_lifetime_and_its_variant() {
    let daemon = daemon();
    daemon.set("psb", "short", Duration::from_secs(5));
    let client = Client::new(daemon.options());
    let token = client.token("psb").unwrap();
    assert_eq!(token.name().as_str(), "psb");
    let value = token.header_value().await.unwrap();
    assert!(value == "Bearer short" && value.is_sensitive());
    let of_other_client = blocking::Client::new(daemon.options()).token("psb").unwrap();
    assert_eq!(of_other_client.header_value().unwrap(), value);
    match client.token("a name with spaces") {
        Err(Error::InvalidRequest { message }) => assert!(message.contains("letters"), "{message}"),
        other => panic!("{other:?}"),
    }
}

/// Where the events of a test go.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_happens_to_a_source_is_logged_and_no_token_is() {
    let log = Log::default();
    let writer = {
        let log = log.clone();
        move || log.clone()
    };
    tracing_subscriber::fmt().with_writer(writer).with_ansi(false).init();
    // A name and tokens of its own: the sources of the other tests write to the same log.
    let daemon = FakeDaemon::start().unwrap();
    daemon.set("logged", "s3cr3t-1", HOUR);
    daemon.set_after_reject("logged", "s3cr3t-2", HOUR);
    let source = blocking::Client::new(daemon.options()).token("logged").unwrap().source();
    let fingerprint = source.token().unwrap().fingerprint();
    let newer = source.reject(fingerprint).unwrap().unwrap();
    // Each new connection brings the same token again.
    for _ in 0..3 {
        let seen = source.changed(0, Duration::ZERO);
        daemon.disconnect();
        assert!(after_changes(&source, seen, 2));
    }
    daemon.refuse("logged");
    let seen = source.changed(0, HOUR);
    while source.try_token().is_ok() {
        source.changed(seen, Duration::from_millis(10));
    }
    let socket = daemon.socket();
    drop(daemon);
    // Some attempts to connect.
    assert!(after_changes(&source, source.changed(0, Duration::ZERO), 4));
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for part in [
        &format!("a new token token=logged fingerprint={fingerprint} lifetime="),
        &format!("a new token token=logged fingerprint={} lifetime=", newer.fingerprint()),
        &format!("an API refused the token fingerprint={fingerprint} outcome=Replaced"),
        "the daemon ended the watch token=logged error=not allowed, or no such token",
        &format!(
            "the daemon is away token=logged error=the daemon cannot be reached at {}: No such file",
            socket.display()
        ),
    ] {
        assert_eq!(log.matches(part).count(), 1, "{part} in {log}");
    }
    for secret in ["first", "second", "s3cr3t"] {
        assert!(!log.contains(secret), "{log}");
    }
}

/// Waits until the source has changed this many times.
fn after_changes(source: &blocking::TokenSource, mut seen: u64, count: u64) -> bool {
    let end = seen + count;
    while seen < end {
        let now = source.changed(seen, PATIENCE);
        if now == seen {
            return false;
        }
        seen = now;
    }
    true
}

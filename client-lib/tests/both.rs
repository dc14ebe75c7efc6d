//! The promises of both clients. Each test runs once with the blocking and once with the async client.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

mod fake;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use fake::{
    Answer, FakeDaemon, TOKEN, daemon_status, error, explained, fingerprint, held, info, name, token,
    token_status,
};
use tempfile::TempDir;
use tokend_client::{
    CallerHeaders, Client, Error, ErrorClass, EventReply, ExplainedReply, Fingerprint, HEADERS_MAX, Header,
    HeadersReply, ListEntry, Options, RefreshedReply, RejectOutcome, RejectedReply, Secret, State, Status,
    Subject, TokenName, TokenReply, TokenStatus, Variant, VersionReply, WATCHED_TOKENS_MAX, Watch, blocking,
};
use tokend_protocol::{
    CallOptions, ErrorCode, ErrorReply, ListReply, Reply, Request, StatusReply, Timestamp,
};
use tokio::runtime::Runtime;

/// Either client.
trait Calls: Send + Sync {
    /// Makes each call about a variant once.
    fn about(&self, name: &TokenName, variant: Variant);
    fn status_of(&self, name: &TokenName) -> Result<TokenStatus, Error>;
    fn get(&self, name: &TokenName) -> Result<TokenReply, Error>;
    fn headers(&self, name: &TokenName, caller: &CallerHeaders) -> Result<HeadersReply, Error>;
    fn list(&self) -> Result<Vec<ListEntry>, Error>;
    fn status(&self) -> Result<Status, Error>;
    fn refresh(&self, name: &TokenName) -> Result<RefreshedReply, Error>;
    fn reject(&self, name: &TokenName, fingerprint: Fingerprint) -> Result<RejectedReply, Error>;
    fn explain(&self, name: &TokenName, subject: &Subject) -> Result<ExplainedReply, Error>;
    fn version(&self) -> Result<VersionReply, Error>;
    fn watch(&self, names: &[TokenName]) -> Result<Events, Error>;
}

type Events = Box<dyn Iterator<Item = Result<EventReply, Error>>>;

impl Calls for blocking::Client {
    fn about(&self, name: &TokenName, variant: Variant) {
        let about = self.variant(name, variant);
        about.get().unwrap();
        about.headers(&CallerHeaders::new()).unwrap();
        about.refresh().unwrap();
        about.reject(fingerprint()).unwrap();
        about.explain(&Subject::Caller).unwrap();
    }
    fn status_of(&self, name: &TokenName) -> Result<TokenStatus, Error> {
        self.status_of(name)
    }
    fn get(&self, name: &TokenName) -> Result<TokenReply, Error> {
        self.get(name)
    }
    fn headers(&self, name: &TokenName, caller: &CallerHeaders) -> Result<HeadersReply, Error> {
        self.headers(name, caller)
    }
    fn list(&self) -> Result<Vec<ListEntry>, Error> {
        self.list()
    }
    fn status(&self) -> Result<Status, Error> {
        self.status()
    }
    fn refresh(&self, name: &TokenName) -> Result<RefreshedReply, Error> {
        self.refresh(name)
    }
    fn reject(&self, name: &TokenName, fingerprint: Fingerprint) -> Result<RejectedReply, Error> {
        self.reject(name, fingerprint)
    }
    fn explain(&self, name: &TokenName, subject: &Subject) -> Result<ExplainedReply, Error> {
        self.explain(name, subject)
    }
    fn version(&self) -> Result<VersionReply, Error> {
        self.version()
    }
    fn watch(&self, names: &[TokenName]) -> Result<Events, Error> {
        Ok(Box::new(self.watch(names)?))
    }
}

/// The async client on a runtime.
struct OnTokio(Client, Arc<Runtime>);

impl Calls for OnTokio {
    fn about(&self, name: &TokenName, variant: Variant) {
        let about = self.0.variant(name, variant);
        self.1.block_on(async {
            about.get().await.unwrap();
            about.headers(&CallerHeaders::new()).await.unwrap();
            about.refresh().await.unwrap();
            about.reject(fingerprint()).await.unwrap();
            about.explain(&Subject::Caller).await.unwrap();
        });
    }
    fn status_of(&self, name: &TokenName) -> Result<TokenStatus, Error> {
        self.1.block_on(self.0.status_of(name))
    }
    fn get(&self, name: &TokenName) -> Result<TokenReply, Error> {
        self.1.block_on(self.0.get(name))
    }
    fn headers(&self, name: &TokenName, caller: &CallerHeaders) -> Result<HeadersReply, Error> {
        self.1.block_on(self.0.headers(name, caller))
    }
    fn list(&self) -> Result<Vec<ListEntry>, Error> {
        self.1.block_on(self.0.list())
    }
    fn status(&self) -> Result<Status, Error> {
        self.1.block_on(self.0.status())
    }
    fn refresh(&self, name: &TokenName) -> Result<RefreshedReply, Error> {
        self.1.block_on(self.0.refresh(name))
    }
    fn reject(&self, name: &TokenName, fingerprint: Fingerprint) -> Result<RejectedReply, Error> {
        self.1.block_on(self.0.reject(name, fingerprint))
    }
    fn explain(&self, name: &TokenName, subject: &Subject) -> Result<ExplainedReply, Error> {
        self.1.block_on(self.0.explain(name, subject))
    }
    fn version(&self) -> Result<VersionReply, Error> {
        self.1.block_on(self.0.version())
    }
    fn watch(&self, names: &[TokenName]) -> Result<Events, Error> {
        let watch = self.1.block_on(self.0.watch(names))?;
        Ok(Box::new(WatchOnTokio(watch, Arc::clone(&self.1))))
    }
}

struct WatchOnTokio(Watch, Arc<Runtime>);

impl Iterator for WatchOnTokio {
    type Item = Result<EventReply, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.1.block_on(self.0.next())
    }
}

type Open = fn(Options) -> Box<dyn Calls>;

fn open_blocking(options: Options) -> Box<dyn Calls> {
    Box::new(blocking::Client::new(options))
}

fn open_tokio(options: Options) -> Box<dyn Calls> {
    Box::new(OnTokio(Client::new(options), Arc::new(Runtime::new().unwrap())))
}

/// Makes one test of each function and client.
macro_rules! with_both_clients {
    ($($test:ident)*) => {
        mod blocking_client { $(#[test] fn $test() { super::$test(super::open_blocking) })* }
        mod tokio_client { $(#[test] fn $test() { super::$test(super::open_tokio) })* }
    };
}

with_both_clients! {
    every_call_gives_its_answer
    what_the_caller_sets_reaches_the_daemon
    every_error_code_has_its_error
    an_error_leaves_the_connection_in_use
    listings_follow_their_pages
    a_listing_without_end_is_an_error
    a_silent_daemon_costs_no_more_than_the_deadline
    a_daemon_that_stops_within_a_reply_is_asked_again
    a_full_queue_costs_no_more_than_the_deadline
    a_restart_between_calls_is_not_seen
    a_restart_that_takes_a_moment_is_not_seen
    a_daemon_that_always_dies_is_asked_twice
    a_stopping_daemon_gives_way_to_its_successor
    a_daemon_that_only_ever_stops_is_asked_twice
    without_a_daemon_that_is_said_at_once
    an_answer_that_is_no_message_is_an_error_of_the_protocol
    replies_under_other_ids_are_passed_over
    a_reply_too_late_does_not_disturb_the_next_call
    a_word_to_nobody_in_particular_is_heard
    a_refusal_at_the_door_is_heard
    an_idle_connection_closed_with_a_word_is_replaced
    calls_do_not_wait_for_each_other
    a_request_too_large_is_refused_here
    lists_beyond_the_limits_are_refused_here
    each_call_about_a_variant_names_it
    a_watch_tells_events_and_goes_on_over_a_restart
    a_watch_that_is_refused_says_so
    nothing_secret_is_shown
}

/// A place for a socket.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("tokend.sock")
    }

    fn options(&self) -> Options {
        Options::new(self.socket())
    }
}

fn event(text: &str, state: State) -> EventReply {
    EventReply {
        index: 0,
        name: name(text),
        state,
        held: Some(held()),
        last_error: None,
        next_attempt: None,
        token: None,
    }
}

fn headers() -> HeadersReply {
    let header =
        |name: &str, value: &str| Header { name: name.into(), value: Secret::from(value.to_owned()) };
    let headers = vec![header("Authorization", &format!("Bearer {TOKEN}")), header("Requestor-ID", "1")];
    HeadersReply { info: info(), headers }
}

fn version() -> VersionReply {
    VersionReply { daemon: "9.8.7".to_owned(), oldest: 1, newest: 1, highest_request: 8 }
}

/// The right answer to each request.
fn happy_reply(request: &Request) -> Reply {
    match request {
        Request::Get(_) => token(),
        Request::Headers(_) => Reply::Headers(headers()),
        Request::List(_) => {
            let tokens = vec![ListEntry { name: name("psb"), state: State::Degraded }];
            Reply::List(ListReply { tokens, more: false })
        }
        Request::Status(_) => Reply::Status(StatusReply {
            daemon: daemon_status(),
            tokens: vec![token_status("psb")],
            more: false,
        }),
        Request::Refresh(_) => Reply::Refreshed(RefreshedReply { info: info(), changed: true }),
        Request::Reject(_) => {
            Reply::Rejected(RejectedReply { outcome: RejectOutcome::TooSoon, info: info() })
        }
        Request::Watch(_) => Reply::Event(event("psb", State::Fresh)),
        Request::Version => Reply::Version(version()),
        Request::Explain(_) => Reply::Explained(explained()),
    }
}

fn every_call_gives_its_answer(open: Open) {
    let place = Place::new();
    let _daemon = FakeDaemon::answering(&place.socket(), happy_reply);
    let client = open(place.options());
    let psb = name("psb");
    let reply = client.get(&psb).unwrap();
    assert_eq!((reply.token.expose(), reply.info), (TOKEN, info()));
    assert_eq!(client.headers(&psb, &CallerHeaders::new()).unwrap(), headers());
    assert_eq!(client.list().unwrap(), [ListEntry { name: psb.clone(), state: State::Degraded }]);
    assert_eq!(
        client.status().unwrap(),
        Status { daemon: daemon_status(), tokens: vec![token_status("psb")] }
    );
    assert_eq!(client.status_of(&psb).unwrap(), token_status("psb"));
    assert_eq!(client.refresh(&psb).unwrap(), RefreshedReply { info: info(), changed: true });
    assert_eq!(client.reject(&psb, fingerprint()).unwrap().outcome, RejectOutcome::TooSoon);
    assert_eq!(client.explain(&psb, &Subject::Process(4711)).unwrap(), explained());
    assert_eq!(client.version().unwrap(), version());
    assert_eq!(client.watch(&[psb]).unwrap().next().unwrap().unwrap(), event("psb", State::Fresh));
}

fn what_the_caller_sets_reaches_the_daemon(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), happy_reply);
    let options = place.options().deadline(Duration::from_secs(7)).min_ttl(Duration::from_secs(90));
    let client = open(options);
    client.get(&name("psb")).unwrap();
    let caller = CallerHeaders::new().supply("Requestor-ID", "4711").omit("X-Other");
    client.headers(&name("bnp"), &caller).unwrap();
    client.reject(&name("psb"), fingerprint()).unwrap();
    let [Request::Get(get), Request::Headers(headers), Request::Reject(reject)] = &daemon.requests()[..]
    else {
        panic!("{:?}", daemon.requests())
    };
    let CallOptions { deadline_ms, min_ttl_ms } = get.options;
    assert!((1..=7_000).contains(&deadline_ms), "{deadline_ms}");
    assert_eq!((get.name.as_str(), min_ttl_ms), ("psb", 90_000));
    assert_eq!((headers.name.as_str(), headers.options.min_ttl_ms), ("bnp", 90_000));
    let supplied: Vec<_> = headers.supplied.iter().map(|h| (h.name.as_str(), h.value.as_str())).collect();
    assert_eq!(supplied, [("Requestor-ID", "4711")]);
    assert_eq!(headers.omitted, ["X-Other"]);
    assert_eq!(reject.fingerprint, fingerprint());
}

fn each_call_about_a_variant_names_it(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), happy_reply);
    let variant = Variant { scope: vec!["aisp".to_owned()], ..Variant::default() };
    open(place.options()).about(&name("psb"), variant.clone());
    let asked: Vec<_> = daemon
        .requests()
        .into_iter()
        .map(|request| match request {
            Request::Get(asked) => asked.variant,
            Request::Headers(asked) => asked.variant,
            Request::Refresh(asked) => asked.variant,
            Request::Reject(asked) => asked.variant,
            Request::Explain(asked) => asked.variant,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(asked, vec![variant; 5]);
}

fn every_error_code_has_its_error(open: Open) {
    let place = Place::new();
    let code = Arc::new(Mutex::new(ErrorCode::NotAllowed));
    let now = Arc::clone(&code);
    let _daemon = FakeDaemon::answering(&place.socket(), move |_| {
        Reply::Error(ErrorReply {
            class: Some(ErrorClass::Throttled),
            next_attempt: Some(Timestamp(5_000)),
            best_ttl_ms: Some(60_000),
            ..error(*now.lock().unwrap())
        })
    });
    let client = open(place.options());
    let next = Some(Timestamp(5_000).to_system_time());
    for (sent, retryable) in [
        (ErrorCode::NotAllowed, false),
        (ErrorCode::UnknownToken, false),
        (ErrorCode::Unavailable, true),
        (ErrorCode::NeedsOperator, false),
        (ErrorCode::DeadlineExceeded, true),
        (ErrorCode::InvalidRequest, false),
        (ErrorCode::UnsupportedVersion, false),
        (ErrorCode::Overloaded, true),
        (ErrorCode::MinTtlUnreachable, false),
        (ErrorCode::ShuttingDown, true),
        (ErrorCode::UnknownRequest, false),
    ] {
        *code.lock().unwrap() = sent;
        let error = client.get(&name("psb")).unwrap_err();
        assert_eq!(error.to_string(), "the daemon's words");
        assert_eq!(error.is_retryable(), retryable, "{error:?}");
        let matches = match (sent, &error) {
            (ErrorCode::NotAllowed, Error::NotAllowed { .. })
            | (ErrorCode::UnknownToken, Error::UnknownToken { .. })
            | (ErrorCode::DeadlineExceeded, Error::DeadlineExceeded { .. })
            | (ErrorCode::InvalidRequest, Error::InvalidRequest { .. })
            | (ErrorCode::UnsupportedVersion, Error::UnsupportedVersion { .. })
            | (ErrorCode::UnknownRequest, Error::UnknownRequest { .. })
            | (ErrorCode::ShuttingDown, Error::ShuttingDown { .. }) => error.next_attempt().is_none(),
            (ErrorCode::Unavailable, Error::Unavailable { class, .. })
            | (ErrorCode::NeedsOperator, Error::NeedsOperator { class, .. }) => {
                *class == Some(ErrorClass::Throttled) && error.next_attempt() == next
            }
            (ErrorCode::Overloaded, Error::Overloaded { .. }) => error.next_attempt() == next,
            (ErrorCode::MinTtlUnreachable, Error::MinTtlUnreachable { best, .. }) => {
                *best == Some(Duration::from_secs(60))
            }
            _ => false,
        };
        assert!(matches, "{sent:?} became {error:?}");
    }
}

fn an_error_leaves_the_connection_in_use(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), |request| match request {
        Request::Get(_) => Reply::Error(error(ErrorCode::NotAllowed)),
        other => happy_reply(other),
    });
    let client = open(place.options());
    assert!(client.get(&name("psb")).is_err());
    client.version().unwrap();
    client.list().unwrap();
    assert_eq!(daemon.connections(), 1);
}

/// Three pages of two, two and one.
fn paged(request: &Request) -> Reply {
    let names = ["a", "b", "c", "d", "e"];
    let page = |after: &Option<TokenName>| {
        let rest: Vec<_> =
            names.iter().filter(|n| after.as_ref().is_none_or(|after| **n > after.as_str())).collect();
        (rest.iter().take(2).map(|text| (**text).to_owned()).collect::<Vec<_>>(), rest.len() > 2)
    };
    match request {
        Request::List(ask) => {
            let (names, more) = page(&ask.after);
            let tokens =
                names.iter().map(|text| ListEntry { name: name(text), state: State::Fresh }).collect();
            Reply::List(ListReply { tokens, more })
        }
        Request::Status(ask) => {
            let (names, more) = page(&ask.after);
            let tokens = names.iter().map(|text| token_status(text)).collect();
            Reply::Status(StatusReply { daemon: daemon_status(), tokens, more })
        }
        other => happy_reply(other),
    }
}

fn listings_follow_their_pages(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), paged);
    let client = open(place.options());
    let listed: Vec<_> = client.list().unwrap().iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(listed, ["a", "b", "c", "d", "e"]);
    let seen: Vec<_> = client.status().unwrap().tokens.iter().map(|token| token.name.to_string()).collect();
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    assert_eq!(daemon.requests().len(), 6);
}

fn a_listing_without_end_is_an_error(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), |_| {
        let tokens = vec![ListEntry { name: name("psb"), state: State::Fresh }];
        Reply::List(ListReply { tokens, more: true })
    });
    assert!(matches!(open(place.options()).list(), Err(Error::Protocol { .. })));
    assert_eq!(daemon.requests().len(), 2);
}

fn a_silent_daemon_costs_no_more_than_the_deadline(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::start(&place.socket(), |_| Vec::new());
    let client = open(place.options().deadline(Duration::from_millis(20)));
    assert!(matches!(client.get(&name("psb")), Err(Error::DeadlineExceeded { .. })));
    assert!(matches!(client.list(), Err(Error::DeadlineExceeded { .. })));
    assert!(matches!(client.watch(&[name("psb")]).map(|_| ()), Err(Error::DeadlineExceeded { .. })));
    // What went unanswered is not asked twice.
    assert_eq!(daemon.requests().len(), 3);
}

fn a_daemon_that_stops_within_a_reply_is_asked_again(open: Open) {
    let place = Place::new();
    let first = Mutex::new(true);
    let daemon = FakeDaemon::start(&place.socket(), move |frame| {
        if std::mem::take(&mut *first.lock().unwrap()) {
            let cut = fake::frame(frame.id, token())[..20].to_vec();
            return vec![Answer::Raw(cut), Answer::HangUp];
        }
        vec![Answer::Reply(token())]
    });
    assert_eq!(open(place.options()).get(&name("psb")).unwrap().token.expose(), TOKEN);
    assert_eq!((daemon.requests().len(), daemon.connections()), (2, 2));
}

fn a_full_queue_costs_no_more_than_the_deadline(open: Open) {
    use nix::sys::socket;
    let place = Place::new();
    let (family, kind) = (socket::AddressFamily::Unix, socket::SockType::Stream);
    let listener = socket::socket(family, kind, socket::SockFlag::SOCK_CLOEXEC, None).unwrap();
    socket::bind(
        std::os::fd::AsRawFd::as_raw_fd(&listener),
        &socket::UnixAddr::new(&place.socket()).unwrap(),
    )
    .unwrap();
    socket::listen(&listener, socket::Backlog::new(0).unwrap()).unwrap();
    let _queued = std::os::unix::net::UnixStream::connect(place.socket()).unwrap();
    let client = open(place.options().deadline(Duration::from_millis(20)));
    // More calls than the blocking client has helpers.
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let error = client.get(&name("psb")).unwrap_err();
                assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error:?}");
            });
        }
    });
}

fn a_restart_between_calls_is_not_seen(open: Open) {
    let place = Place::new();
    let client = open(place.options());
    let daemon = FakeDaemon::answering(&place.socket(), happy_reply);
    client.get(&name("psb")).unwrap();
    drop(daemon);
    let daemon = FakeDaemon::answering(&place.socket(), happy_reply);
    client.get(&name("psb")).unwrap();
    client.get(&name("psb")).unwrap();
    assert_eq!((daemon.requests().len(), daemon.connections()), (2, 1));
}

fn a_restart_that_takes_a_moment_is_not_seen(open: Open) {
    let place = Place::new();
    let client = open(place.options());
    let daemon = FakeDaemon::answering(&place.socket(), happy_reply);
    client.get(&name("psb")).unwrap();
    drop(daemon);
    let socket = place.socket();
    let successor = thread::spawn(move || {
        thread::sleep(Duration::from_millis(60));
        FakeDaemon::answering(&socket, happy_reply)
    });
    client.get(&name("psb")).unwrap();
    drop(successor.join().unwrap());
    // And a daemon that stays away is reported.
    assert!(matches!(client.get(&name("psb")), Err(Error::NotReachable { .. })));
}

fn a_daemon_that_always_dies_is_asked_twice(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::start(&place.socket(), |_| vec![Answer::HangUp]);
    let error = open(place.options()).get(&name("psb")).unwrap_err();
    assert!(matches!(&error, Error::NotReachable { socket, .. } if *socket == place.socket()), "{error:?}");
    assert_eq!(daemon.requests().len(), 2);
}

fn a_stopping_daemon_gives_way_to_its_successor(open: Open) {
    let place = Place::new();
    let stopping = Mutex::new(true);
    let daemon = FakeDaemon::answering(&place.socket(), move |request| {
        if std::mem::take(&mut *stopping.lock().unwrap()) {
            return Reply::Error(error(ErrorCode::ShuttingDown));
        }
        happy_reply(request)
    });
    open(place.options()).get(&name("psb")).unwrap();
    assert_eq!(daemon.connections(), 2);
}

fn a_daemon_that_only_ever_stops_is_asked_twice(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), |_| Reply::Error(error(ErrorCode::ShuttingDown)));
    let client = open(place.options());
    assert!(matches!(client.get(&name("psb")), Err(Error::ShuttingDown { .. })));
    assert_eq!(daemon.requests().len(), 2);
}

fn without_a_daemon_that_is_said_at_once(open: Open) {
    let place = Place::new();
    // The deadline is longer than any test may take.
    let client = open(place.options().deadline(Duration::from_secs(3600)));
    for kind in [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused] {
        let error = client.get(&name("psb")).unwrap_err();
        let Error::NotReachable { socket, cause } = &error else { panic!("{error:?}") };
        assert_eq!((socket, cause.kind()), (&place.socket(), kind));
        assert_eq!(error.to_string().matches(&cause.to_string()).count(), 1, "{error}");
        assert!(std::error::Error::source(&error).is_none(), "the text has the cause already");
        assert!(error.to_string().contains(&place.socket().display().to_string()), "{error}");
        // A socket that a dead daemon left behind.
        drop(UnixListener::bind(place.socket()));
    }
}

fn an_answer_that_is_no_message_is_an_error_of_the_protocol(open: Open) {
    let place = Place::new();
    let next = Arc::new(Mutex::new(Vec::new()));
    let raw = Arc::clone(&next);
    let _daemon =
        FakeDaemon::start(&place.socket(), move |_| match std::mem::take(&mut *raw.lock().unwrap()) {
            bytes if bytes.is_empty() => vec![Answer::Reply(token())],
            bytes => vec![Answer::Raw(bytes)],
        });
    let client = open(place.options());
    let unknown_variant = vec![0, 0, 0, 6, 1, 0, 0, 0, 1, 99];
    let empty = vec![0, 0, 0, 0];
    let trailing = vec![0, 0, 0, 12, 1, 0, 0, 0, 1, 7, 1, b'x', 1, 1, 9, 9];
    let oversized = vec![0xff; 64];
    for bytes in [unknown_variant, empty, trailing, oversized] {
        next.lock().unwrap().clone_from(&bytes);
        let error = client.get(&name("psb")).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{bytes:?}: {error:?}");
        client.get(&name("psb")).unwrap();
    }
    *next.lock().unwrap() = vec![0, 0, 0, 6, 77, 0, 0, 0, 1, 7];
    assert!(matches!(client.get(&name("psb")), Err(Error::UnsupportedVersion { .. })));
    *next.lock().unwrap() = fake::frame(1, Reply::Version(version()));
    let other = open(place.options());
    assert!(matches!(other.get(&name("psb")), Err(Error::Protocol { .. })));
}

fn replies_under_other_ids_are_passed_over(open: Open) {
    let place = Place::new();
    let _daemon = FakeDaemon::start(&place.socket(), |frame| {
        let other = Reply::Error(error(ErrorCode::NotAllowed));
        vec![Answer::Under(frame.id + 100, other), Answer::Reply(token())]
    });
    open(place.options()).get(&name("psb")).unwrap();
}

fn a_reply_too_late_does_not_disturb_the_next_call(open: Open) {
    let place = Place::new();
    let abandoned = Mutex::new(0);
    let _daemon = FakeDaemon::start(&place.socket(), move |frame| match &frame.message {
        Request::Get(_) => {
            *abandoned.lock().unwrap() = frame.id;
            Vec::new()
        }
        // A client that opens a new connection counts from the beginning.
        _ if *abandoned.lock().unwrap() == frame.id => vec![Answer::Reply(happy_reply(&frame.message))],
        _ => vec![
            Answer::Under(*abandoned.lock().unwrap(), token()),
            Answer::Reply(happy_reply(&frame.message)),
        ],
    });
    let client = open(place.options().deadline(Duration::from_millis(500)));
    assert!(matches!(client.get(&name("psb")), Err(Error::DeadlineExceeded { .. })));
    for _ in 0..3 {
        assert_eq!(client.version().unwrap(), version());
    }
}

fn a_word_to_nobody_in_particular_is_heard(open: Open) {
    let place = Place::new();
    let _daemon = FakeDaemon::start(&place.socket(), |_| {
        vec![Answer::Under(0, Reply::Error(error(ErrorCode::Overloaded))), Answer::HangUp]
    });
    assert!(matches!(open(place.options()).get(&name("psb")), Err(Error::Overloaded { .. })));
}

fn a_refusal_at_the_door_is_heard(open: Open) {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let door = thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let refusal = fake::frame(0, Reply::Error(error(ErrorCode::Overloaded)));
            io::Write::write_all(&mut stream, &refusal).unwrap();
        }
    });
    assert!(matches!(open(place.options()).get(&name("psb")), Err(Error::Overloaded { .. })));
    door.join().unwrap();
}

fn an_idle_connection_closed_with_a_word_is_replaced(open: Open) {
    let place = Place::new();
    let first = Mutex::new(true);
    let daemon = FakeDaemon::start(&place.socket(), move |frame| {
        let mut answers = vec![Answer::Reply(happy_reply(&frame.message))];
        if std::mem::take(&mut *first.lock().unwrap()) {
            answers.push(Answer::Under(0, Reply::Error(error(ErrorCode::Overloaded))));
            answers.push(Answer::HangUp);
        }
        answers
    });
    let client = open(place.options());
    client.version().unwrap();
    client.version().unwrap();
    assert_eq!(daemon.connections(), 2);
}

fn calls_do_not_wait_for_each_other(open: Open) {
    const CALLS: usize = 20;
    let place = Place::new();
    // Nobody is answered before everybody has asked.
    let all_here = Barrier::new(CALLS);
    let _daemon = FakeDaemon::answering(&place.socket(), move |request| {
        all_here.wait();
        happy_reply(request)
    });
    let client = open(place.options());
    thread::scope(|scope| {
        for _ in 0..CALLS {
            scope.spawn(|| client.get(&name("psb")).unwrap());
        }
    });
}

fn a_request_too_large_is_refused_here(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), happy_reply);
    let client = open(place.options());
    let caller = CallerHeaders::new().supply("Requestor-ID", "x".repeat(20_000));
    let error = client.headers(&name("psb"), &caller).unwrap_err();
    assert!(matches!(error, Error::InvalidRequest { .. }), "{error:?}");
    client.version().unwrap();
    assert_eq!(daemon.requests(), [Request::Version]);
}

fn lists_beyond_the_limits_are_refused_here(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), happy_reply);
    let client = open(place.options());
    let refused = |error: Error, expected: &str| {
        assert!(matches!(error, Error::InvalidRequest { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let supply = |caller: CallerHeaders, n: usize| caller.supply(format!("X-{n}"), "x");
    let headers = |caller| client.headers(&name("psb"), &caller).unwrap_err();
    refused(headers((0..=HEADERS_MAX).fold(CallerHeaders::new(), supply)), "at most 64 supplied headers");
    refused(headers(CallerHeaders::new().omit("X-A").omit("x-a")), "twice");
    let names: Vec<TokenName> = (0..=WATCHED_TOKENS_MAX).map(|n| name(&format!("t{n}"))).collect();
    refused(client.watch(&names).map(drop).unwrap_err(), "at most 256 tokens");
    refused(client.watch(&[name("psb"), name("psb")]).map(drop).unwrap_err(), "twice");
    assert_eq!(daemon.requests(), []);
}

fn a_watch_tells_events_and_goes_on_over_a_restart(open: Open) {
    let place = Place::new();
    let client = open(place.options());
    let states = |states: &'static [State]| {
        move |_| states.iter().map(|state| Answer::Reply(Reply::Event(event("psb", *state)))).collect()
    };
    let daemon = FakeDaemon::start(&place.socket(), states(&[State::Pending, State::Fresh]));
    let mut watch = client.watch(&[name("psb")]).unwrap();
    assert_eq!(watch.next().unwrap().unwrap().state, State::Pending);
    assert_eq!(watch.next().unwrap().unwrap().state, State::Fresh);
    drop(daemon);
    let daemon = FakeDaemon::start(&place.socket(), states(&[State::Refreshing]));
    assert_eq!(watch.next().unwrap().unwrap().state, State::Refreshing);
    drop(daemon);
    assert!(matches!(watch.next().unwrap(), Err(Error::NotReachable { .. })));
    assert!(watch.next().is_none());
}

/// The async client has `tokio::time::timeout` for it.
#[test]
fn a_blocking_watch_waits_no_longer_than_it_is_told() {
    let place = Place::new();
    let answer = || vec![Answer::Reply(Reply::Event(event("psb", State::Pending)))];
    let daemon = FakeDaemon::start(&place.socket(), move |_| answer());
    let mut watch = blocking::Client::new(place.options()).watch(&[name("psb")]).unwrap();
    // Held already, so no time is needed.
    assert_eq!(watch.next_within(Duration::ZERO).unwrap().unwrap().state, State::Pending);
    drop(daemon);
    let daemon = FakeDaemon::start(&place.socket(), move |_| answer());
    assert_eq!(watch.next_within(Duration::from_secs(60)).unwrap().unwrap().state, State::Pending);
    let error = watch.next_within(Duration::from_millis(10)).unwrap().unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error:?}");
    assert!(watch.next_within(Duration::from_secs(60)).is_none() && watch.next().is_none());
    drop(daemon);
}

fn a_watch_that_is_refused_says_so(open: Open) {
    let place = Place::new();
    let _daemon = FakeDaemon::answering(&place.socket(), |_| Reply::Error(error(ErrorCode::NotAllowed)));
    let client = open(place.options());
    assert!(matches!(client.watch(&[name("psb")]).map(|_| ()), Err(Error::NotAllowed { .. })));
    assert!(matches!(client.watch(&[]).map(|_| ()), Err(Error::InvalidRequest { .. })));
}

fn nothing_secret_is_shown(open: Open) {
    let place = Place::new();
    let _daemon = FakeDaemon::answering(&place.socket(), happy_reply);
    let client = open(place.options());
    let shown =
        format!("{:?} {:?}", client.get(&name("psb")), client.headers(&name("psb"), &CallerHeaders::new()));
    assert!(!shown.contains(TOKEN), "{shown}");
    // A token where none is expected must not find its way into the error.
    let place = Place::new();
    let _daemon = FakeDaemon::answering(&place.socket(), |_| token());
    let error = open(place.options()).list().unwrap_err();
    assert!(!format!("{error} {error:?}").contains(TOKEN), "{error:?}");
}

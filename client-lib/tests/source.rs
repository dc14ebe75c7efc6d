//! The promises of a source. Each test runs once with the blocking and once with the async client.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

mod fake;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use fake::{Answer, FakeDaemon, error, info, name};
use tempfile::TempDir;
use tokend_client::{
    BootInstant, CallerHeaders, Client, Error, EventReply, Fingerprint, Header, HeadersReply, HeldToken,
    Options, RejectOutcome, RejectedReply, Secret, SourceHeaders, SourceToken, State, TokenInfo, TokenReply,
    TokenSource, Variant, blocking,
};
use tokend_protocol::{ErrorCode, Reply, Request};
use tokio::runtime::Runtime;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A source of either client. The clones share it.
#[derive(Clone, Debug)]
enum Source {
    Blocking(blocking::TokenSource),
    OnTokio(TokenSource, Arc<Runtime>),
}

impl Source {
    fn token(&self) -> Result<Arc<SourceToken>, Error> {
        match self {
            Self::Blocking(source) => source.token(),
            Self::OnTokio(source, runtime) => runtime.block_on(source.token()),
        }
    }

    fn try_token(&self) -> Result<Arc<SourceToken>, Error> {
        match self {
            Self::Blocking(source) => source.try_token(),
            Self::OnTokio(source, _) => source.try_token(),
        }
    }

    fn changed(&self, seen: u64) -> u64 {
        match self {
            Self::Blocking(source) => source.changed(seen, PATIENCE),
            Self::OnTokio(source, runtime) => runtime.block_on(source.changed(seen)),
        }
    }

    fn headers(&self) -> Result<Arc<SourceHeaders>, Error> {
        match self {
            Self::Blocking(source) => source.headers(),
            Self::OnTokio(source, runtime) => runtime.block_on(source.headers()),
        }
    }

    fn reject(&self, refused: Fingerprint) -> Result<Option<Arc<SourceToken>>, Error> {
        match self {
            Self::Blocking(source) => source.reject(refused),
            Self::OnTokio(source, runtime) => runtime.block_on(source.reject(refused)),
        }
    }

    fn with_caller_headers(&self, caller: CallerHeaders) -> Self {
        match self {
            Self::Blocking(source) => Self::Blocking(source.with_caller_headers(caller)),
            Self::OnTokio(source, runtime) => {
                Self::OnTokio(source.with_caller_headers(caller), Arc::clone(runtime))
            }
        }
    }

    fn text(&self) -> String {
        self.token().unwrap().reply.token.expose().to_owned()
    }

    /// Waits until the present token has this text.
    fn wait_for(&self, text: &str) {
        eventually(text, || self.try_token().is_ok_and(|token| token.reply.token.expose() == text));
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Sources of one client, one for each scope. An empty scope is the configured token.
type Open = fn(Options, &[&str]) -> Vec<Source>;

fn variant(scope: &str) -> Variant {
    let scope = scope.split_whitespace().map(str::to_owned).collect();
    Variant { scope, ..Variant::default() }
}

fn open_blocking(options: Options, scopes: &[&str]) -> Vec<Source> {
    let client = blocking::Client::new(options);
    let source = |scope: &&str| Source::Blocking(client.variant(&name("psb"), variant(scope)).source());
    scopes.iter().map(source).collect()
}

fn open_tokio(options: Options, scopes: &[&str]) -> Vec<Source> {
    let (client, runtime) = (Client::new(options), Arc::new(Runtime::new().unwrap()));
    let _entered = runtime.enter();
    let source = |scope: &&str| client.variant(&name("psb"), variant(scope)).source();
    scopes.iter().map(|scope| Source::OnTokio(source(scope), Arc::clone(&runtime))).collect()
}

/// Makes one test of each function and client.
macro_rules! with_both_clients {
    ($($test:ident)*) => {
        mod blocking_client { $(#[test] fn $test() { super::$test(super::open_blocking) })* }
        mod tokio_client { $(#[test] fn $test() { super::$test(super::open_tokio) })* }
    };
}

with_both_clients! {
    a_new_token_is_read_without_a_request
    an_expired_token_is_never_handed_out
    a_token_that_the_daemon_dropped_is_not_handed_out
    the_last_token_is_used_while_the_daemon_is_away
    a_reader_can_wait_for_each_change
    a_daemon_that_ends_each_connection_is_asked_ever_more_rarely
    a_reader_waits_for_a_daemon_that_starts_later
    a_refusal_drops_the_token_at_once
    an_outage_of_the_provider_is_a_typed_error
    a_token_that_lasts_too_short_is_not_handed_out
    rejections_at_the_same_time_make_one_request
    a_rejection_that_brings_no_other_token_returns_none
    the_headers_are_asked_for_once_for_each_token
    a_caller_that_waited_for_another_one_has_only_the_rest_of_its_time
    the_caller_s_part_of_the_headers_is_sent
    sources_share_a_connection_and_are_told_apart
    the_last_source_ends_the_connection
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
        Options::new(self.socket()).deadline(PATIENCE)
    }

    fn source(&self, open: Open) -> Source {
        open(self.options(), &[""]).remove(0)
    }
}

fn fingerprint(text: &str) -> Fingerprint {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    Fingerprint(bytes)
}

fn info_of(text: &str, lasts: Duration) -> TokenInfo {
    let expires_at = BootInstant(tokend_client::now().0 + u64::try_from(lasts.as_millis()).unwrap());
    TokenInfo { expires_at, fingerprint: fingerprint(text), ..info() }
}

/// The event that brings this token.
fn brings(text: &str, lasts: Duration) -> Reply {
    let TokenInfo { issued_at, expires_at, expires_at_wall, fingerprint, .. } = info_of(text, lasts);
    Reply::Event(EventReply {
        index: 0,
        name: name("psb"),
        state: State::Fresh,
        held: Some(HeldToken { issued_at, expires_at, expires_at_wall, fingerprint }),
        last_error: None,
        next_attempt: None,
        token: Some(token_of(text, lasts)),
    })
}

fn token_of(text: &str, lasts: Duration) -> TokenReply {
    let token = Secret::from(text.to_owned());
    TokenReply { info: info_of(text, lasts), token, token_type: "Bearer".to_owned(), scope: None }
}

/// The event that the daemon holds no token.
fn without_token(state: State) -> Reply {
    let last_error = (state != State::Pending).then_some(tokend_client::ErrorClass::Server);
    let (index, name) = (0, name("psb"));
    Reply::Event(EventReply { index, name, state, held: None, last_error, next_attempt: None, token: None })
}

/// A daemon that brings one token to each watch.
fn bringing(place: &Place, text: &'static str) -> FakeDaemon {
    FakeDaemon::answering(&place.socket(), move |_| brings(text, PATIENCE))
}

fn a_new_token_is_read_without_a_request(open: Open) {
    let place = Place::new();
    let daemon = bringing(&place, "first");
    let source = place.source(open);
    let before = source.token().unwrap();
    assert_eq!(before.reply.token.expose(), "first");
    assert_eq!(before.header_value, "Bearer first");
    assert!(before.header_value.is_sensitive());
    daemon.push(1, brings("second", PATIENCE));
    source.wait_for("second");
    assert_eq!(daemon.requests().len(), 1, "{:?}", daemon.requests());
    assert_eq!(before.reply.token.expose(), "first", "a token that was handed out stays as it was");
}

fn an_expired_token_is_never_handed_out(open: Open) {
    let place = Place::new();
    let lasts = Duration::from_millis(300);
    let daemon = FakeDaemon::answering(&place.socket(), move |_| brings("short", lasts));
    let source = open(place.options().deadline(Duration::from_millis(50)), &[""]).remove(0);
    source.wait_for("short");
    eventually("it expires", || match source.try_token() {
        Ok(token) => {
            assert!(!token.reply.info.remaining(tokend_client::now()).is_zero() || expired_meanwhile(&token));
            false
        }
        Err(_) => true,
    });
    assert!(matches!(source.token(), Err(Error::Unavailable { .. })));
    daemon.push(1, brings("next", PATIENCE));
    source.wait_for("next");
}

/// Whether the token expired at most since the read, on a machine that is busy.
fn expired_meanwhile(token: &SourceToken) -> bool {
    tokend_client::now().since(token.reply.info.expires_at) < Duration::from_secs(5)
}

fn a_token_that_the_daemon_dropped_is_not_handed_out(open: Open) {
    let place = Place::new();
    // It lasts longer than the test waits.
    let daemon = FakeDaemon::answering(&place.socket(), |_| brings("old", 10 * PATIENCE));
    let source = place.source(open);
    source.wait_for("old");
    daemon.push(1, without_token(State::Pending));
    eventually("the token is dropped", || source.try_token().is_err());
    daemon.push(1, brings("new", PATIENCE));
    assert_eq!(source.text(), "new", "a reader waits for it");
}

fn the_last_token_is_used_while_the_daemon_is_away(open: Open) {
    let place = Place::new();
    let daemon = bringing(&place, "first");
    let source = place.source(open);
    source.wait_for("first");
    drop(daemon);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(source.text(), "first");
    let daemon = bringing(&place, "second");
    source.wait_for("second");
    assert_eq!(daemon.connections(), 1);
    // A connection that ends is replaced, and so is one that ends with a word to all.
    for ending in [Vec::new(), fake::frame(0, Reply::Error(error(ErrorCode::ShuttingDown)))] {
        let before = daemon.connections();
        daemon.end_newest(&ending);
        eventually("another connection", || daemon.connections() > before);
        assert_eq!(source.text(), "second");
    }
}

fn a_reader_can_wait_for_each_change(open: Open) {
    let place = Place::new();
    let daemon = bringing(&place, "first");
    let source = place.source(open);
    let first = source.changed(0);
    assert_eq!(source.try_token().unwrap().reply.token.expose(), "first");
    let waiting = thread::spawn({
        let source = source.clone();
        move || source.changed(first)
    });
    daemon.push(1, brings("second", PATIENCE));
    let second = waiting.join().unwrap();
    assert_eq!(source.try_token().unwrap().reply.token.expose(), "second");
    assert_eq!(source.changed(first), second, "a change before the call counts");
    drop(daemon);
    assert_ne!(source.changed(second), second, "the daemon is away");
    assert_eq!(source.text(), "second");
}

fn a_daemon_that_ends_each_connection_is_asked_ever_more_rarely(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::start(&place.socket(), |_| {
        vec![Answer::Reply(brings("first", PATIENCE)), Answer::HangUp]
    });
    let source = place.source(open);
    source.wait_for("first");
    thread::sleep(Duration::from_millis(500));
    let connections = daemon.connections();
    assert!(connections <= 16, "{connections}");
    assert_eq!(source.text(), "first");
}

fn a_reader_waits_for_a_daemon_that_starts_later(open: Open) {
    let place = Place::new();
    let source = place.source(open);
    eventually("it is away", || matches!(source.try_token(), Err(Error::NotReachable { .. })));
    let hurried = open(place.options().deadline(Duration::from_millis(50)), &[""]).remove(0);
    eventually("it is away", || matches!(hurried.token(), Err(Error::NotReachable { .. })));
    let waiting = thread::spawn({
        let source = source.clone();
        move || source.text()
    });
    let _daemon = bringing(&place, "late");
    assert_eq!(waiting.join().unwrap(), "late");
}

fn a_refusal_drops_the_token_at_once(open: Open) {
    let codes = [ErrorCode::NotAllowed, ErrorCode::UnknownToken, ErrorCode::InvalidRequest];
    for code in codes {
        let place = Place::new();
        let daemon = bringing(&place, "held");
        let source = place.source(open);
        source.wait_for("held");
        daemon.push(1, Reply::Error(error(code)));
        eventually("the token is dropped", || source.try_token().is_err());
        let refused = source.token().unwrap_err();
        let is_typed = match code {
            ErrorCode::NotAllowed => matches!(refused, Error::NotAllowed { .. }),
            ErrorCode::UnknownToken => matches!(refused, Error::UnknownToken { .. }),
            _ => matches!(refused, Error::InvalidRequest { .. }),
        };
        assert!(is_typed, "{refused:?}");
        assert_eq!(daemon.connections(), 1, "it is not asked again at once");
    }
    let place = Place::new();
    let daemon = bringing(&place, "held");
    let source = place.source(open);
    source.wait_for("held");
    daemon.push(1, Reply::Error(error(ErrorCode::Overloaded)));
    thread::sleep(Duration::from_millis(50));
    assert_eq!(source.text(), "held", "that is no refusal of the token");
}

fn an_outage_of_the_provider_is_a_typed_error(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), |_| without_token(State::NeedsOperator));
    let source = place.source(open);
    assert!(matches!(source.token(), Err(Error::NeedsOperator { class: Some(_), .. })));
    daemon.push(1, without_token(State::Unavailable));
    eventually("the state changes", || {
        matches!(source.try_token(), Err(Error::Unavailable { class: Some(_), .. }))
    });
}

fn a_token_that_lasts_too_short_is_not_handed_out(open: Open) {
    let place = Place::new();
    let renews = Arc::new(AtomicBool::new(false));
    let daemon = FakeDaemon::answering(&place.socket(), {
        let renews = Arc::clone(&renews);
        move |request| match request {
            Request::Get(get) if renews.load(Ordering::SeqCst) => {
                assert_eq!(u128::from(get.options.min_ttl_ms), 2 * PATIENCE.as_millis());
                Reply::Token(token_of("asked", 3 * PATIENCE))
            }
            Request::Get(_) => Reply::Error(error(ErrorCode::MinTtlUnreachable)),
            _ => brings("short", PATIENCE),
        }
    });
    let source = open(place.options().min_ttl(2 * PATIENCE), &[""]).remove(0);
    eventually(
        "the token has come",
        || matches!(source.try_token(), Err(Error::MinTtlUnreachable { best: Some(best), .. }) if best <= PATIENCE),
    );
    let to_source = daemon.newest();
    assert!(matches!(source.token(), Err(Error::MinTtlUnreachable { .. })));
    renews.store(true, Ordering::SeqCst);
    assert_eq!(source.text(), "asked", "the daemon renews it for a caller");
    FakeDaemon::push_to(&to_source, 1, brings("long", 3 * PATIENCE));
    source.wait_for("long");
}

fn rejecting(place: &Place, outcome: RejectOutcome) -> FakeDaemon {
    FakeDaemon::answering(&place.socket(), move |request| match request {
        Request::Reject(_) => {
            // Long enough for all callers to begin.
            thread::sleep(Duration::from_millis(200));
            Reply::Rejected(RejectedReply { outcome, info: info() })
        }
        _ => brings("refused", PATIENCE),
    })
}

fn count_rejections(daemon: &FakeDaemon) -> usize {
    daemon.requests().iter().filter(|request| matches!(request, Request::Reject(_))).count()
}

/// Rejects the token in eight threads at once.
fn reject_together(source: &Source) -> Vec<Option<String>> {
    let began = Barrier::new(8);
    thread::scope(|scope| {
        let reject = || {
            began.wait();
            let newer = source.reject(fingerprint("refused")).unwrap();
            newer.map(|token| token.reply.token.expose().to_owned())
        };
        let callers: Vec<_> = (0..8).map(|_| scope.spawn(reject)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    })
}

fn rejections_at_the_same_time_make_one_request(open: Open) {
    let place = Place::new();
    let socket = place.socket();
    let rejected = Arc::new(Barrier::new(2));
    let daemon = FakeDaemon::answering(&socket, {
        let rejected = Arc::clone(&rejected);
        move |request| match request {
            Request::Reject(reject) => {
                assert_eq!(reject.fingerprint, fingerprint("refused"));
                thread::sleep(Duration::from_millis(200));
                rejected.wait();
                let outcome = RejectOutcome::Replaced;
                Reply::Rejected(RejectedReply { outcome, info: info_of("newer", PATIENCE) })
            }
            _ => brings("refused", PATIENCE),
        }
    });
    let source = place.source(open);
    source.wait_for("refused");
    let to_source = daemon.newest();
    let push = thread::spawn(move || {
        rejected.wait();
        // The event comes after the answer.
        thread::sleep(Duration::from_millis(50));
        FakeDaemon::push_to(&to_source, 1, brings("newer", PATIENCE));
    });
    let newer = reject_together(&source);
    assert_eq!(newer, vec![Some("newer".to_owned()); 8]);
    push.join().unwrap();
    assert_eq!(count_rejections(&daemon), 1);
    let again = source.reject(fingerprint("refused")).unwrap().unwrap();
    assert_eq!(again.fingerprint(), fingerprint("newer"));
    assert_eq!(count_rejections(&daemon), 1, "there is another token already");
}

fn a_rejection_that_brings_no_other_token_returns_none(open: Open) {
    for outcome in [RejectOutcome::Unchanged, RejectOutcome::TooSoon] {
        let place = Place::new();
        let daemon = rejecting(&place, outcome);
        let source = place.source(open);
        source.wait_for("refused");
        assert_eq!(reject_together(&source), vec![None; 8]);
        assert_eq!(count_rejections(&daemon), 1);
        assert!(source.reject(fingerprint("refused")).unwrap().is_none());
        assert_eq!(count_rejections(&daemon), 2, "a later rejection is another one");
        assert_eq!(source.text(), "refused", "it is valid");
    }
}

/// A daemon whose headers have the token that it brought last.
fn with_headers(place: &Place) -> FakeDaemon {
    let tokens = AtomicUsize::new(0);
    FakeDaemon::answering(&place.socket(), move |request| match request {
        Request::Headers(_) => {
            let text = ["first", "second"].get(tokens.fetch_add(1, Ordering::SeqCst)).unwrap();
            let header =
                |name: &str, value: String| Header { name: name.to_owned(), value: Secret::from(value) };
            let headers =
                vec![header("Authorization", format!("Bearer {text}")), header("X-Key", "k3y".to_owned())];
            Reply::Headers(HeadersReply { info: info_of(text, PATIENCE), headers })
        }
        _ => brings("first", PATIENCE),
    })
}

fn count_headers(daemon: &FakeDaemon) -> usize {
    daemon.requests().iter().filter(|request| matches!(request, Request::Headers(_))).count()
}

fn the_headers_are_asked_for_once_for_each_token(open: Open) {
    let place = Place::new();
    let daemon = with_headers(&place);
    let source = place.source(open);
    source.wait_for("first");
    let to_source = daemon.newest();
    for (count, text) in [(1, "first"), (2, "second")] {
        if count == 2 {
            FakeDaemon::push_to(&to_source, 1, brings("second", PATIENCE));
            source.wait_for("second");
        }
        for _ in 0..3 {
            let headers = source.headers().unwrap();
            assert_eq!(headers.map.len(), 2);
            assert_eq!(headers.map.get("authorization").unwrap(), &format!("Bearer {text}"));
            assert_eq!(headers.map.get("x-key").unwrap(), "k3y");
            assert!(headers.map.values().all(http::HeaderValue::is_sensitive));
            assert_eq!(headers.info.fingerprint, fingerprint(text));
            assert_eq!(count_headers(&daemon), count);
        }
    }
    // A third request would fail: the last headers are used while the daemon is away.
    FakeDaemon::push_to(&to_source, 1, brings("third", PATIENCE));
    source.wait_for("third");
    drop(daemon);
    assert_eq!(source.headers().unwrap().info.fingerprint, fingerprint("second"));
    let third = source.reject(fingerprint("second")).unwrap().unwrap();
    assert_eq!(third.fingerprint(), fingerprint("third"));
    assert!(source.headers().is_err(), "an API refused the token of the last headers");
}

fn a_caller_that_waited_for_another_one_has_only_the_rest_of_its_time(open: Open) {
    const WAIT: Duration = Duration::from_millis(200);
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), |request| match request {
        Request::Headers(_) | Request::Reject(_) => {
            thread::sleep(WAIT);
            Reply::Error(error(ErrorCode::Overloaded))
        }
        _ => brings("first", PATIENCE),
    });
    let source = place.source(open);
    source.wait_for("first");
    let headers = |source: &Source| assert!(source.headers().is_err());
    let reject = |source: &Source| assert!(source.reject(fingerprint("first")).is_err());
    let calls: [&(dyn Fn(&Source) + Sync); 2] = [&headers, &reject];
    for call in calls {
        // Tried again if the second caller began too late to wait.
        eventually("a call with less time", || {
            let began = Barrier::new(2);
            let before = daemon.requests().len();
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        began.wait();
                        call(&source);
                    });
                }
            });
            let all = daemon.requests();
            let left = all.iter().skip(before).map(|request| match request {
                Request::Headers(headers) => headers.options.deadline_ms,
                Request::Reject(reject) => reject.deadline_ms,
                other => panic!("{other:?}"),
            });
            left.min().is_some_and(|left| u128::from(left) + WAIT.as_millis() / 2 < PATIENCE.as_millis())
        });
    }
}

fn the_caller_s_part_of_the_headers_is_sent(open: Open) {
    let place = Place::new();
    let daemon = with_headers(&place);
    let source = place.source(open);
    let with_part = source.with_caller_headers(CallerHeaders::new().supply("X-Key", "k3y").omit("X-Trace"));
    with_part.headers().unwrap();
    let asked = daemon.requests().into_iter().find_map(|request| match request {
        Request::Headers(request) => Some((request.supplied, request.omitted)),
        _ => None,
    });
    let (supplied, omitted) = asked.unwrap();
    assert_eq!((supplied.len(), omitted), (1, vec!["X-Trace".to_owned()]));
    let watches = daemon.requests().iter().filter(|request| matches!(request, Request::Watch(_))).count();
    assert_eq!(watches, 1, "the two share the token");
}

fn sources_share_a_connection_and_are_told_apart(open: Open) {
    let place = Place::new();
    let daemon = FakeDaemon::answering(&place.socket(), |request| {
        let Request::Watch(watch) = request else { panic!("{request:?}") };
        assert!(watch.with_tokens);
        let [watched] = &watch.tokens[..] else { panic!("{watch:?}") };
        let scope = watched.variant.scope.concat();
        brings(if scope.is_empty() { "all" } else { &scope }, PATIENCE)
    });
    let mut sources = open(place.options(), &["", "read", "write"]);
    let texts: Vec<_> = sources.iter().map(Source::text).collect();
    assert_eq!(texts, ["all", "read", "write"]);
    assert_eq!(daemon.open_connections(), 1);
    // One that is dropped is not watched any more, and the others go on.
    let watches = daemon.requests().len();
    drop(sources.remove(1));
    eventually("the others are watched again", || daemon.requests().len() == watches + 2);
    eventually("one connection", || daemon.open_connections() == 1);
    // Sent again until it comes after the daemon's own answer.
    eventually("the newer token", || {
        daemon.push(2, brings("newer", PATIENCE));
        sources[1].try_token().unwrap().reply.token.expose() == "newer"
    });
    assert_eq!(sources[0].text(), "all");
}

fn the_last_source_ends_the_connection(open: Open) {
    let place = Place::new();
    let daemon = bringing(&place, "first");
    let source = place.source(open);
    let clone = source.clone();
    source.wait_for("first");
    drop(source);
    assert_eq!(clone.text(), "first");
    assert_eq!(daemon.open_connections(), 1);
    let runtime = match &clone {
        Source::Blocking(_) => None,
        Source::OnTokio(_, runtime) => Some(Arc::clone(runtime)),
    };
    drop(clone);
    eventually("the connection ends", || daemon.open_connections() == 0);
    drop(runtime);
    assert_eq!(daemon.connections(), 1);
}

fn nothing_secret_is_shown(open: Open) {
    let place = Place::new();
    let _daemon = bringing(&place, "s3cr3t");
    let source = place.source(open);
    let shown = format!("{:?} {source:?}", source.token().unwrap());
    assert!(shown.contains("psb") && !shown.contains("s3cr3t"), "{shown}");
}

#[test]
fn the_thread_ends_with_the_last_source() {
    let place = Place::new();
    let _daemon = bringing(&place, "first");
    // The only thread of this name is that of this test: names are cut to fifteen bytes.
    let is_running = |id: &str| std::path::Path::new(&format!("/proc/self/task/{id}")).exists();
    let ids = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
        let named = tasks.filter(|task| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "tokend-source")
        });
        named.map(|task| task.file_name().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let before = ids();
    let source = place.source(open_blocking);
    source.wait_for("first");
    let new: Vec<_> = ids().into_iter().filter(|id| !before.contains(id)).collect();
    assert!(!new.is_empty());
    drop(source);
    // Threads of other tests may have begun meanwhile, and end with their sources.
    eventually("the thread has ended", || new.iter().any(|id| !is_running(id)));
}

#[test]
fn a_source_outlives_its_runtime() {
    let place = Place::new();
    let lasts = Duration::from_millis(500);
    let daemon = FakeDaemon::answering(&place.socket(), move |_| brings("short", lasts));
    let client = Client::new(place.options());
    // Made outside of any runtime.
    let source = client.source(&name("psb"));
    for count in 1..=2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(source.token()).unwrap();
        assert_eq!(daemon.connections(), count);
        drop(runtime);
        eventually("it expires", || source.try_token().is_err());
    }
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    eventually("another token", || source.try_token().is_ok());
}

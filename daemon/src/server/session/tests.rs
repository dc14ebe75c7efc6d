use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use tokend_protocol::{
    CallOptions, ErrorClass, ErrorReply, GetRequest, HeadersRequest, PageRequest, RefreshRequest,
    RejectRequest, State, StatusRequest, WATCHED_TOKENS_MAX, WatchRequest, WatchedToken,
};
use tokio_util::task::TaskTracker;

use super::*;
use crate::access::{Condition, Facts, Id, Names, Principal};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::engine::credential::{ActorContext, Credential, Unobtainable};
use crate::engine::registry::CredentialFactory;
use crate::fingerprint::Fingerprinter;
use crate::quota::{Allowances, Quota, Resource};
use crate::store::Store;

mod authorize;
mod explain;
mod held;
mod list;
mod quota;
mod reload;

const OWN_UID: u32 = 900;
const ALICE: u32 = 1001;

/// A session of a user whom nothing but a rule lets in. No provider is ever reached.
struct Scene {
    session: Arc<Session>,
}

impl Scene {
    fn new(uid: u32, names: Names, tokens: &str) -> Self {
        Self::with_quota(uid, names, tokens, Quota::default())
    }

    fn with_quota(uid: u32, names: Names, tokens: &str, quota: Quota) -> Self {
        let clock = Clock::simulated();
        let actor_context = ActorContext {
            clock: clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::with_key(&[7; 32])),
            roll: || 0.5,
            tasks: TaskTracker::new(),
        };
        let mut factory = CredentialFactory::new(Store::forgetful(clock.clone()), None, actor_context);
        let registry = Registry::build(config(tokens), &mut factory, None);
        names.resolve_now(registry.names_in_rules.clone());
        let mut shared = ServerState::new(registry, factory, clock.clone());
        shared.allowances = Allowances::new(quota);
        shared.names = Arc::new(names);
        shared.own_uid = OWN_UID;
        let peer = Peer::known(Facts { uid, gid: uid, ..Facts::default() });
        let shared = Arc::new(shared);
        Self { session: Arc::new(Session::new(shared, peer)) }
    }

    fn reload(&self, tokens: &str) {
        let previous = self.session.shared.registry.borrow().clone();
        let mut factory = self.session.shared.credential_factory.lock().unwrap();
        let next = Registry::build(config(tokens), &mut factory, Some(&previous));
        let next = Arc::new(next);
        self.session.shared.names.resolve_now(next.names_in_rules.clone());
        self.session.shared.registry.send_replace(Arc::clone(&next));
        previous.discard_all_but(&next);
    }

    /// The error of a `get`: no token is held.
    async fn get(&self, name: &str) -> ErrorCode {
        let request = GetRequest { name: name.parse().unwrap(), options: HELD, variant: Variant::default() };
        code(self.session.answer(Request::Get(request)).await)
    }

    async fn list(&self) -> Vec<String> {
        match self.session.answer(Request::List(PageRequest { after: None })).await {
            Reply::List(list) => list.tokens.iter().map(|token| token.name.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Watches variants of `t` with these scopes.
    async fn watch_variants(&self, scopes: &[&[&str]], with_tokens: bool) -> Result<Watch, ErrorReply> {
        let watched = |scope: &&[&str]| {
            let scope = scope.iter().map(|term| (*term).to_owned()).collect();
            WatchedToken { name: "t".parse().unwrap(), variant: Variant { scope, ..Variant::default() } }
        };
        let tokens = scopes.iter().map(watched).collect();
        Arc::clone(&self.session).watch(WatchRequest { tokens, with_tokens }).await
    }

    async fn watch(&self, names: &[&str]) -> Result<Watch, ErrorReply> {
        let name = |name: &&str| name.parse::<TokenName>().unwrap();
        let tokens = names.iter().map(|text| name(text).into()).collect();
        Arc::clone(&self.session).watch(WatchRequest { tokens, with_tokens: false }).await
    }
}

const HELD: CallOptions = CallOptions { deadline_ms: 0, min_ttl_ms: 0 };

fn config(tokens: &str) -> Config {
    let text = format!(
        "[provider.p]\ntoken_endpoint = \"http://127.0.0.1:9/\"\nclient_id = \"c\"\n\
         client_secret = {{ command = [\"sleep\", \"600\"] }}\n{tokens}"
    );
    config::parse("tokend.toml".as_ref(), &text).unwrap().config
}

fn token(name: &str, more: &str) -> String {
    format!("[token.{name}]\nprovider = \"p\"\n{more}\n")
}

/// A host with these users and no others.
fn host_with(users: &[(&str, u32)]) -> Names {
    let user = |name: &str| Condition::User(Principal::Name(name.to_owned()));
    let users: HashMap<Condition, Id> =
        users.iter().map(|(name, uid)| (user(name), Id::Number(*uid))).collect();
    Names::resolved_by(move |name| Ok(users.get(name).copied()))
}

/// A host with the user alice.
fn host() -> Names {
    host_with(&[("alice", ALICE)])
}

/// A name service whose answer about every user changes with each look-up; `None` for no answer.
fn changing(answers: &'static [Option<u32>]) -> Names {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    Names::resolved_by(move |_| {
        let answer = answers[asked.fetch_add(1, Ordering::SeqCst)];
        answer.map(|uid| Some(Id::Number(uid))).ok_or_else(|| std::io::ErrorKind::TimedOut.into())
    })
}

fn code(reply: Reply) -> ErrorCode {
    match reply {
        Reply::Error(error) => error.code,
        other => panic!("{other:?}"),
    }
}

const ALLOWED: &str = "allow = [\"user:alice\"]";
const FORBIDDEN: &str = "allow = [\"user:bob\"]";

fn resolve_again(scene: &Scene) {
    scene.session.shared.names.resolve_now(scene.session.registry().names_in_rules.clone());
}

#[tokio::test]
async fn a_decision_on_an_open_connection_changes_with_the_names() {
    let names = changing(&[None, Some(ALICE), None, Some(7)]);
    let scene = Scene::new(ALICE, names, &token("t", ALLOWED));
    assert_eq!(scene.get("t").await, ErrorCode::NotAllowed, "a name without an answer matches nobody");
    resolve_again(&scene);
    assert_eq!(scene.get("t").await, ErrorCode::DeadlineExceeded, "it is let in");
    resolve_again(&scene);
    assert_eq!(scene.get("t").await, ErrorCode::DeadlineExceeded, "the earlier answer stands");
    resolve_again(&scene);
    assert_eq!(scene.get("t").await, ErrorCode::NotAllowed, "the name is another user's now");
}

#[tokio::test]
async fn an_operator_by_name_is_one_as_soon_as_the_name_is_resolved() {
    let scene = Scene::new(ALICE, changing(&[None, Some(ALICE)]), "[admin]\nallow = [\"user:alice\"]");
    assert_eq!(scene.get("absent").await, ErrorCode::NotAllowed);
    resolve_again(&scene);
    assert_eq!(scene.get("absent").await, ErrorCode::UnknownToken);
}

#[tokio::test]
async fn a_watch_ends_when_the_name_of_the_rule_becomes_another_user() {
    let scene = Scene::new(ALICE, changing(&[Some(ALICE), Some(7)]), &token("t", ALLOWED));
    let mut watch = scene.watch(&["t"]).await.unwrap();
    watch.next().await.unwrap();
    resolve_again(&scene);
    assert_eq!(watch.next().await.unwrap_err().code, ErrorCode::NotAllowed);
}

#[tokio::test]
async fn a_listing_shows_what_is_allowed() {
    let tokens = token("a", ALLOWED) + &token("b", FORBIDDEN) + &token("c", ALLOWED);
    let scene = Scene::new(ALICE, host(), &tokens);
    assert_eq!(scene.list().await, ["a", "c"]);
}

#[tokio::test]
async fn only_an_operator_is_told_about_the_process() {
    let mut told = Vec::new();
    for uid in [ALICE, OWN_UID] {
        let scene = Scene::new(uid, host(), &token("t", ALLOWED));
        let shared = &scene.session.shared;
        let _open = [(); 7].map(|()| shared.connections.token());
        shared.reload_failed_at.send_replace(Some(shared.started_at));
        match scene.session.answer(Request::Status(StatusRequest { name: None, after: None })).await {
            Reply::Status(status) => {
                let daemon = status.daemon;
                assert_eq!(daemon.version, env!("CARGO_PKG_VERSION"));
                told.push((daemon.pid, daemon.connections, daemon.reload_failed_at.is_some()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, [(0, 0, false), (std::process::id(), 7, true)]);
}

#[tokio::test]
async fn a_watch_takes_as_many_names_as_a_request_may_have_and_not_none() {
    let names: Vec<String> = (0..WATCHED_TOKENS_MAX).map(|n| format!("t{n}")).collect();
    let tokens: String = names.iter().map(|name| token(name, ALLOWED)).collect();
    let scene = Scene::new(ALICE, host(), &tokens);
    assert_eq!(scene.watch(&[]).await.map(drop).unwrap_err().code, ErrorCode::InvalidRequest);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut watch = scene.watch(&names).await.unwrap();
    let mut told = HashSet::new();
    for _ in &names {
        told.insert(watch.next().await.unwrap().name);
    }
    assert_eq!(told.len(), WATCHED_TOKENS_MAX, "one event of each token");
}

#[tokio::test]
async fn a_watch_tells_each_token_once_and_ends_when_a_reload_takes_one_away() {
    let both = token("a", ALLOWED) + &token("b", ALLOWED);
    let scene = Scene::new(ALICE, host(), &both);
    let mut watch = scene.watch(&["b", "a"]).await.unwrap();
    let mut told = [watch.next().await.unwrap().name, watch.next().await.unwrap().name];
    told.sort_unstable();
    assert_eq!(told.map(|name| name.to_string()), ["a", "b"]);
    assert!(watch.next().now_or_never().is_none(), "there is nothing more to tell");

    let mut watch = scene.watch(&["a", "b"]).await.unwrap();
    watch.next().await.unwrap();
    watch.next().await.unwrap();
    scene.reload(&both);
    scene.reload(&token("a", ALLOWED));
    assert_eq!(watch.next().await.unwrap_err().code, ErrorCode::NotAllowed);
}

#[tokio::test]
async fn secrets_of_headers_that_hang_end_with_the_deadline() {
    let headers = "headers = { Key = { command = [\"sleep\", \"600\"] } }";
    let scene = Scene::new(OWN_UID, host(), &token("t", headers));
    let request = |deadline_ms| {
        let options = CallOptions { deadline_ms, min_ttl_ms: 0 };
        let name = "t".parse().unwrap();
        Request::Headers(HeadersRequest {
            name,
            options,
            supplied: vec![],
            omitted: vec![],
            variant: Variant::default(),
        })
    };
    tokio::time::pause();
    for (deadline_ms, lasts) in [(250, 250), (0, 1000)] {
        let before = tokio::time::Instant::now();
        let reply = scene.session.answer(request(deadline_ms)).await;
        let Reply::Error(error) = reply else { panic!("{reply:?}") };
        assert_eq!(error.code, ErrorCode::DeadlineExceeded);
        assert!(error.message.contains("secrets of the header set"), "{}", error.message);
        // Timers have a grain of a millisecond.
        assert!((lasts..lasts + 5).contains(&before.elapsed().as_millis()), "{:?}", before.elapsed());
    }
}

#[tokio::test]
async fn a_reload_does_not_extend_the_time_for_the_secrets_of_headers() {
    let tokens = token("t", "headers = { Key = { command = [\"sh\", \"-c\", \"sleep 0.7; echo x\"] } }");
    let scene = Scene::new(OWN_UID, host(), &tokens);
    let request = Request::Headers(HeadersRequest {
        name: "t".parse().unwrap(),
        options: HELD,
        supplied: vec![],
        omitted: vec![],
        variant: Variant::default(),
    });
    let mut answer = Box::pin(scene.session.answer(request));
    assert!((&mut answer).now_or_never().is_none());
    // The secret is read again under the new registry, for which the rest of the second is too short.
    scene.reload(&tokens);
    let reply = answer.await;
    let Reply::Error(error) = reply else { panic!("{reply:?}") };
    assert!(error.message.contains("secrets of the header set"), "{}", error.message);
}

#[tokio::test]
async fn secrets_of_headers_that_cannot_be_read_are_logged_once_a_minute() {
    let scene =
        Scene::new(OWN_UID, host(), &token("t", "headers = { Key = { file = \"/no-such-secret\" } }"));
    for _ in 0..3 {
        let request = Request::Headers(HeadersRequest {
            name: "t".parse().unwrap(),
            options: HELD,
            supplied: vec![],
            omitted: vec![],
            variant: Variant::default(),
        });
        assert_eq!(code(scene.session.answer(request).await), ErrorCode::NeedsOperator);
    }
    let shared = &scene.session.shared;
    let a_minute_later = shared.clock.now().after(Duration::from_secs(60));
    let unlogged = shared.header_failures.lock().unwrap().record(a_minute_later);
    assert_eq!(unlogged, Some(3), "two of the three, and this one");
}

#[tokio::test]
async fn a_missing_secret_is_no_refusal_of_the_provider_and_operators_are_told_which_one() {
    let headers = format!("{ALLOWED}\nheaders = {{ Key = {{ file = \"/no-such-secret\" }} }}");
    let request = || {
        Request::Headers(HeadersRequest {
            name: "t".parse().unwrap(),
            options: HELD,
            supplied: vec![],
            omitted: vec![],
            variant: Variant::default(),
        })
    };
    for (uid, is_told) in [(ALICE, false), (OWN_UID, true), (0, true)] {
        let scene = Scene::new(uid, host(), &token("t", &headers));
        let Reply::Error(error) = scene.session.answer(request()).await else { panic!() };
        assert_eq!(error.class, Some(ErrorClass::Secret));
        assert!(error.message.starts_with("a secret of the header set cannot be read on this host"));
        assert_eq!(error.message.contains("/no-such-secret"), is_told, "{uid}: {}", error.message);
        assert_eq!(error.message.contains("an operator of this host"), !is_told, "{uid}: {}", error.message);
    }
}

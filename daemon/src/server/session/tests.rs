use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use nix::errno::Errno;
use tokend_protocol::{
    HeadersRequest, PageRequest, RefreshRequest, RejectRequest, StatusRequest, Variant, WatchRequest,
};
use tokio_util::task::TaskTracker;

use super::*;
use crate::access::Facts;
use crate::access::Named;
use crate::access::directory::Directory;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::engine::credential::{ActorContext, Unobtainable};
use crate::engine::registry::{CredentialFactory, Registry};
use crate::fingerprint::Fingerprinter;
use crate::quota::Allowances;
use crate::quota::Quota;

mod entitlement;
mod explain;
mod listing;
mod quota;
mod reload;

const OWN_UID: u32 = 900;
const ALICE: u32 = 1001;

/// A session of a user whom nothing but a rule lets in. No provider is ever reached.
struct Scene {
    session: Arc<Session>,
}

impl Scene {
    fn new(uid: u32, directory: Directory, tokens: &str) -> Self {
        Self::with_quota(uid, directory, tokens, Quota::default())
    }

    fn with_quota(uid: u32, directory: Directory, tokens: &str, quota: Quota) -> Self {
        let clock = Clock::simulated();
        let actor_context = ActorContext {
            clock: clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::generate().unwrap()),
            roll: || 0.5,
            tasks: TaskTracker::new(),
        };
        let mut origins = CredentialFactory::new(actor_context);
        let registry = Registry::build(&config(tokens), &mut origins, None);
        let mut shared = ServerState::new(registry, origins, clock.clone());
        shared.allowances = Allowances::new(quota);
        shared.directory = directory;
        shared.own_uid = OWN_UID;
        let peer = Peer::known(Facts { uid, gid: uid, ..Facts::default() });
        let shared = Arc::new(shared);
        let served = Arc::clone(&shared);
        tokio::spawn(async move { served.turns.keep().await });
        Self { session: Arc::new(Session::new(shared, peer)) }
    }

    fn reload(&self, tokens: &str) {
        let previous = self.session.shared.registry.borrow().clone();
        let mut origins = self.session.shared.origins.lock().unwrap();
        let next = Registry::build(&config(tokens), &mut origins, Some(&previous));
        let next = Arc::new(next);
        self.session.shared.registry.send_replace(Arc::clone(&next));
        previous.discard_all_but(&next);
    }

    /// What a `get` of what is held comes to, of which there is nothing.
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

    async fn watch(&self, names: &[&str]) -> Result<Watch, ErrorReply> {
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        Arc::clone(&self.session).watch(WatchRequest { names }).await
    }

    fn remembered(&self) -> usize {
        self.session.allowed.lock().unwrap().len()
    }
}

/// A name service that knows nobody, and how often it was asked.
fn counting() -> (Directory, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let directory = Directory::asking(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(None)
    });
    (directory, asked)
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

/// A directory in which alice is known.
fn directory() -> Directory {
    Directory::asking(|asked| Ok((*asked == Named::User("alice".into())).then_some(ALICE)))
}

fn code(reply: Reply) -> ErrorCode {
    match reply {
        Reply::Error(error) => error.code,
        other => panic!("{other:?}"),
    }
}

const ALLOWED: &str = "allow = [\"user:alice\"]";
const FORBIDDEN: &str = "allow = [\"user:bob\"]";

#[tokio::test]
async fn a_refusal_for_want_of_an_answer_ends_with_the_want() {
    let asked = AtomicUsize::new(0);
    let failing_once = Directory::asking(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Err(Errno::EIO),
        _ => Ok(Some(ALICE)),
    });
    let scene = Scene::new(ALICE, failing_once, &token("t", ALLOWED));
    assert_eq!(scene.get("t").await, ErrorCode::NotAllowed);
    assert_eq!(scene.get("t").await, ErrorCode::DeadlineExceeded, "the same connection is let in");
}

#[tokio::test]
async fn an_operator_becomes_one_as_soon_as_its_name_is_known() {
    let asked = AtomicUsize::new(0);
    let failing_once = Directory::asking(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Err(Errno::EIO),
        _ => Ok(Some(ALICE)),
    });
    let scene = Scene::new(ALICE, failing_once, "[admin]\nallow = [\"user:alice\"]");
    assert_eq!(scene.get("absent").await, ErrorCode::NotAllowed);
    assert_eq!(scene.get("absent").await, ErrorCode::UnknownToken);
}

#[tokio::test]
async fn root_and_the_daemon_s_own_user_do_not_wait_for_names() {
    for uid in [0, OWN_UID] {
        let unasked = Directory::asking(|name| panic!("asked about {name}"));
        let scene = Scene::new(uid, unasked, &(token("t", ALLOWED) + "[admin]\nallow = [\"user:alice\"]"));
        assert_eq!(scene.get("t").await, ErrorCode::DeadlineExceeded);
        assert_eq!(scene.get("absent").await, ErrorCode::UnknownToken);
        assert_eq!(scene.list().await, ["t"]);
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_costs_the_lookups_of_one_that_does() {
    let lookups = async |name: &str| {
        let (counting, asked) = counting();
        let tokens = token("hidden", FORBIDDEN) + "[admin]\nallow = [\"user:carol\"]";
        let scene = Scene::new(ALICE, counting, &tokens);
        assert_eq!(scene.get(name).await, ErrorCode::NotAllowed);
        asked.load(Ordering::SeqCst)
    };
    assert_eq!(lookups("hidden").await, 2);
    for absent in ["absent", "zzz"] {
        assert_eq!(lookups(absent).await, 2, "{absent}");
    }
}

#[tokio::test]
async fn a_listing_shows_what_is_allowed_and_remembers_nothing() {
    let tokens = token("a", ALLOWED) + &token("b", FORBIDDEN) + &token("c", ALLOWED);
    let scene = Scene::new(ALICE, directory(), &tokens);
    assert_eq!(scene.list().await, ["a", "c"]);
    assert_eq!(scene.remembered(), 0);
    scene.get("a").await;
    assert_eq!(scene.remembered(), 1);
}

#[tokio::test]
async fn a_listing_waits_for_a_service_that_hangs_once_and_not_for_each_token() {
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let hanging = Directory::asking(move |_| {
        let _ = gate.lock().unwrap().recv();
        Err(Errno::EIO)
    });
    let tokens: String =
        (0..100).map(|n| token(&format!("t{n}"), &format!("allow = [\"user:u{n}\"]"))).collect();
    let scene = Scene::new(ALICE, hanging, &tokens);
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    assert!(scene.list().await.is_empty());
    assert_eq!(before.elapsed().as_secs(), 2);
    drop(open);
}

#[tokio::test]
async fn only_an_operator_is_told_about_the_process() {
    let mut told = Vec::new();
    for uid in [ALICE, OWN_UID] {
        let scene = Scene::new(uid, directory(), &token("t", ALLOWED));
        let shared = &scene.session.shared;
        shared.connections.store(7, Ordering::Relaxed);
        shared.set_reload_failed_at(Some(shared.started_at));
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
async fn a_watch_takes_each_name_once_and_not_too_many() {
    let tokens: String = (0..=WATCHED_MAX).map(|n| token(&format!("t{n}"), ALLOWED)).collect();
    let scene = Scene::new(ALICE, directory(), &tokens);
    assert_eq!(scene.watch(&[]).await.unwrap_err().code, ErrorCode::InvalidRequest);
    assert!(scene.watch(&vec!["t0"; WATCHED_MAX + 1]).await.is_ok(), "a name is counted once");
    let names: Vec<String> = (0..=WATCHED_MAX).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(scene.watch(&names[1..]).await.is_ok());
    let refused = scene.watch(&names).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidRequest);
    assert!(refused.message.contains("257"), "{}", refused.message);
}

#[tokio::test]
async fn a_watch_tells_each_token_once_and_ends_when_a_reload_takes_one_away() {
    let both = token("a", ALLOWED) + &token("b", ALLOWED);
    let scene = Scene::new(ALICE, directory(), &both);
    let mut watch = scene.watch(&["b", "a", "b"]).await.unwrap();
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
    let scene = Scene::new(OWN_UID, directory(), &token("t", headers));
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

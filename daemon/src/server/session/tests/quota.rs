//! What one user may have of everything.

use std::pin::pin;

use super::*;

fn get(name: &str, deadline_ms: u32, scope: &[&str]) -> Request {
    let scope = scope.iter().map(|term| (*term).to_owned()).collect();
    Request::Get(GetRequest {
        name: name.parse().unwrap(),
        options: CallOptions { deadline_ms, min_ttl_ms: 0 },
        variant: Variant { scope, ..Variant::default() },
    })
}

fn error(reply: Reply) -> ErrorReply {
    match reply {
        Reply::Error(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn calls_that_wait_for_a_provider_are_limited_and_those_that_do_not_are_not() {
    let tokens = token("a", ALLOWED) + &token("b", &format!("scope = \"b\"\n{ALLOWED}"));
    let quota = Quota { waiting: 1, ..Quota::default() };
    let scene = Scene::with_quota(ALICE, host(), &tokens, quota);
    let mut waiting = Box::pin(scene.session.answer(get("a", 60_000, &[])));
    assert!((&mut waiting).now_or_never().is_none());
    assert!(scene.session.allowance.take(Resource::Waiting, 1).is_err());
    assert_eq!(code(scene.session.answer(get("b", 60_000, &[])).await), ErrorCode::Overloaded);
    assert_eq!(scene.get("b").await, ErrorCode::DeadlineExceeded, "it does not wait");
    drop(waiting);
    let mut waiting = pin!(scene.session.answer(get("b", 60_000, &[])));
    assert!((&mut waiting).now_or_never().is_none(), "who gives up makes room");
}

#[tokio::test]
async fn calls_that_may_cost_a_provider_a_request_are_counted() {
    let quota = Quota { provider_calls_per_minute: 1, ..Quota::default() };
    let scene = Scene::with_quota(OWN_UID, host(), &token("t", ""), quota);
    let refresh = || {
        Request::Refresh(RefreshRequest {
            name: "t".parse().unwrap(),
            deadline_ms: 0,
            variant: Variant::default(),
        })
    };
    assert_eq!(code(scene.session.answer(refresh()).await), ErrorCode::DeadlineExceeded);
    let refused = error(scene.session.answer(refresh()).await);
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(
        refused.next_attempt.is_some() && refused.message.contains("there is room again in"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn watches_and_what_they_watch_are_limited_over_all_of_them() {
    let tokens = token("a", ALLOWED) + &token("b", ALLOWED);
    let few_watches = Quota { watches: 1, ..Quota::default() };
    let few_tokens = Quota { watched_tokens: 2, ..Quota::default() };
    for (quota, first) in [(few_watches, &["a"][..]), (few_tokens, &["a", "b"])] {
        let scene = Scene::with_quota(ALICE, host(), &tokens, quota);
        let watch = scene.watch(first).await.unwrap();
        assert_eq!(scene.watch(&["a"]).await.map(drop).unwrap_err().code, ErrorCode::Overloaded);
        drop(watch);
        scene.watch(&["a"]).await.unwrap();
    }
}

#[tokio::test]
async fn a_watch_that_needs_a_token_counts_as_a_caller_that_waits() {
    let scene =
        Scene::with_quota(ALICE, host(), &token("t", ALLOWED), Quota { waiting: 1, ..Quota::default() });
    let mut watch = scene.watch_variants(&[&[]], true).await.unwrap();
    assert_eq!(watch.next().await.unwrap().state, State::Pending);
    let refused = scene.watch_variants(&[&[]], true).await.map(drop).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    scene.watch(&["t"]).await.unwrap();
    drop(watch);
    scene.watch_variants(&[&[]], true).await.unwrap();
}

#[tokio::test]
async fn a_watched_variant_is_never_evicted() {
    let scene = with_many_variants();
    let mut watch = scene.watch_variants(&[&["s0"], &[], &["s1"]], false).await.unwrap();
    let mut indices = Vec::new();
    for _ in 0..3 {
        indices.push(watch.next().await.unwrap().index);
    }
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2], "one event of each variant");
    let variants = || {
        let registry = scene.session.registry();
        let snapshots = registry.find("t").unwrap().variants.as_ref().unwrap().snapshots();
        snapshots.into_iter().map(|(variant, _)| variant.scope.concat()).collect::<Vec<_>>()
    };
    for n in 2..40 {
        scene.session.answer(get("t", 0, &[&format!("s{n}")])).await;
    }
    assert!(["s0", "s1"].iter().all(|watched| variants().contains(&(*watched).to_owned())));
    drop(watch);
    for n in 2..40 {
        scene.session.answer(get("t", 0, &[&format!("s{n}")])).await;
    }
    assert!(!variants().contains(&"s0".to_owned()), "it is evicted once nobody watches it");
}

#[tokio::test]
async fn variants_are_limited_over_all_tokens() {
    let forms = "scope = \"a b c\"\nvariants = { scope = [\"a\", \"b\", \"c\"] }";
    let quota = Quota { variants: 2, ..Quota::default() };
    let scene = Scene::with_quota(OWN_UID, host(), &token("t", forms), quota);
    for scope in [&["a"][..], &["b"], &["a"]] {
        assert_eq!(code(scene.session.answer(get("t", 0, scope)).await), ErrorCode::DeadlineExceeded);
    }
    assert_eq!(code(scene.session.answer(get("t", 0, &["c"])).await), ErrorCode::Overloaded);
}

/// A token with more variants than are held at a time, and a user who may have them all.
fn with_many_variants() -> Scene {
    let forms: Vec<String> = (0..40).map(|n| format!("\"s{n}\"")).collect();
    let forms = format!("scope = \"all\"\nvariants = {{ scope = [{}] }}", forms.join(", "));
    let quota = Quota { variants: 100, waiting: 100, provider_calls_per_minute: 1000, ..Quota::default() };
    Scene::with_quota(OWN_UID, host(), &token("t", &forms), quota)
}

#[tokio::test]
async fn a_variant_that_a_caller_waits_for_is_never_evicted() {
    let scene = with_many_variants();
    let mut waiting = pin!(scene.session.answer(get("t", 60_000, &["s0"])));
    assert!((&mut waiting).now_or_never().is_none());
    for n in 1..40 {
        let idle = scene.session.answer(get("t", 0, &[&format!("s{n}")])).await;
        assert_eq!(code(idle), ErrorCode::DeadlineExceeded, "s{n}: nothing is held, and it may be asked for");
        tokio::task::yield_now().await;
        assert!(
            (&mut waiting).now_or_never().is_none(),
            "who waits for s0 is sent away for the sake of s{n}"
        );
    }
}

#[tokio::test]
async fn a_user_s_variants_are_evicted_for_that_user_s_others_only() {
    let forms: Vec<String> = (0..40).map(|n| format!("\"s{n}\"")).collect();
    let forms = format!("scope = \"all\"\nvariants = {{ scope = [{}] }}\n{ALLOWED}", forms.join(", "));
    let quota = Quota { variants: 100, ..Quota::default() };
    let scene = Scene::with_quota(OWN_UID, host(), &token("t", &forms), quota);
    let facts = Facts { uid: ALICE, gid: ALICE, ..Facts::default() };
    let alice = Session::new(Arc::clone(&scene.session.shared), Peer::known(facts));
    // Hers is the one that was not used for longest.
    assert_eq!(code(alice.answer(get("t", 0, &["s0"])).await), ErrorCode::DeadlineExceeded);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    for n in 1..40 {
        let asked = scene.session.answer(get("t", 0, &[&format!("s{n}")])).await;
        assert_eq!(code(asked), ErrorCode::DeadlineExceeded, "s{n}: it may be asked for");
    }
    assert!(alice.allowance.take(Resource::Variants, 100).is_err(), "hers is held still");
    assert!(scene.session.allowance.take(Resource::Variants, 68).is_ok(), "of the other user's 32");
}

#[tokio::test]
async fn with_all_variants_in_use_another_one_is_overloaded() {
    let scene = with_many_variants();
    let scopes: Vec<String> = (0..40).map(|n| format!("s{n}")).collect();
    let mut waiting = Vec::new();
    for scope in &scopes[..32] {
        let mut asked = Box::pin(scene.session.answer(get("t", 60_000, &[scope])));
        assert!((&mut asked).now_or_never().is_none());
        waiting.push(asked);
    }
    let refused = error(scene.session.answer(get("t", 0, &["s39"])).await);
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.message.contains("other variants of the token are in use"), "{}", refused.message);
    let facts = Facts { uid: 0, ..Facts::default() };
    let other = Session::new(Arc::clone(&scene.session.shared), Peer::known(facts));
    let of_other = error(other.answer(get("t", 0, &["s39"])).await);
    assert_eq!(of_other.code, ErrorCode::DeadlineExceeded, "there is room for another user");
    tokio::task::yield_now().await;
    assert!(waiting.iter_mut().all(|asked| asked.now_or_never().is_none()));
}

#[tokio::test]
async fn headers_are_checked_before_a_variant_is_started() {
    let rules = "scope = \"a b\"\nvariants = { scope = [\"a\", \"b\"] }\ncaller_headers = [\"X\"]";
    let quota = Quota { variants: 1, ..Quota::default() };
    let scene = Scene::with_quota(OWN_UID, host(), &token("t", rules), quota);
    let headers = |scope: &str, omitted: &[&str]| {
        Request::Headers(HeadersRequest {
            name: "t".parse().unwrap(),
            options: HELD,
            supplied: vec![],
            omitted: omitted.iter().map(|name| (*name).to_owned()).collect(),
            variant: Variant { scope: vec![scope.to_owned()], ..Variant::default() },
        })
    };
    let refused = error(scene.session.answer(headers("a", &[])).await);
    assert!(refused.message.starts_with("the header X is missing"), "{}", refused.message);
    assert!(scene.session.allowance.take(Resource::Variants, 1).is_ok(), "no variant was started");
    assert_eq!(code(scene.session.answer(headers("a", &["X"])).await), ErrorCode::DeadlineExceeded);
    let refused = error(scene.session.answer(headers("b", &[])).await);
    assert_eq!(refused.code, ErrorCode::InvalidRequest, "it names the header although the quota is used up");
}

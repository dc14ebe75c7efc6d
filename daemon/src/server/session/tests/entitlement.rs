//! Who is given what, over all ways to ask.

use std::collections::HashSet;

use tokend_protocol::{ExplainRequest, Frame, Subject, encode};

use super::*;

fn scope(terms: &[&str]) -> Variant {
    Variant { scope: terms.iter().map(|term| (*term).to_owned()).collect(), ..Variant::default() }
}

/// What a `get` of a form comes to; `DeadlineExceeded` is a grant, because nothing is held.
async fn get(scene: &Scene, name: &str, variant: Variant) -> ErrorReply {
    let request = GetRequest { name: name.parse().unwrap(), options: HELD, variant };
    match scene.session.answer(Request::Get(request)).await {
        Reply::Error(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn root_that_is_switched_off_is_given_what_rules_give_it_and_operates_nothing() {
    const DENY: &str = "[admin]\nroot = \"deny\"\n";
    let tokens =
        token("none", "") + &token("named", "allow = [\"user:0\"]") + &token("any", "allow = [\"any\"]");
    let scene = Scene::new(0, directory(), &(tokens.clone() + DENY));
    assert_eq!(scene.get("none").await, ErrorCode::NotAllowed);
    assert_eq!(scene.get("absent").await, ErrorCode::NotAllowed);
    assert_eq!(scene.get("named").await, ErrorCode::DeadlineExceeded);
    assert_eq!(scene.list().await, ["any", "named"]);
    let refresh = Request::Refresh(RefreshRequest {
        name: "named".parse().unwrap(),
        deadline_ms: 0,
        variant: Variant::default(),
    });
    assert_eq!(code(scene.session.answer(refresh.clone()).await), ErrorCode::NotAllowed);

    // The open connection has it back with a reload, and loses it with the next.
    scene.reload(&tokens);
    assert_eq!(scene.get("none").await, ErrorCode::DeadlineExceeded);
    assert_eq!(scene.get("absent").await, ErrorCode::UnknownToken);
    scene.reload(&(tokens.clone() + DENY));
    assert_eq!(scene.get("none").await, ErrorCode::NotAllowed);
    assert_eq!(scene.get("absent").await, ErrorCode::NotAllowed);

    let named = "allow = [\"user:0\"]\n";
    let scene = Scene::new(0, directory(), &(tokens + DENY + named));
    assert_eq!(scene.get("absent").await, ErrorCode::UnknownToken, "a rule makes it an operator again");
    assert_eq!(code(scene.session.answer(refresh).await), ErrorCode::DeadlineExceeded);
}

/// A token whose scope `b` is for bob alone.
fn with_ruled_scope(configured: &str) -> String {
    let terms = "[\"a\", { term = \"b\", allow = [\"user:bob\"] }]";
    token("t", &format!("{ALLOWED}\nscope = \"{configured}\"\nvariants.scope = {terms}"))
}

#[tokio::test]
async fn a_term_with_rules_of_its_own_is_refused_in_whatever_form_it_is_asked_for() {
    let scene = Scene::new(ALICE, directory(), &with_ruled_scope("a"));
    for (variant, expected) in [
        (Variant::default(), ErrorCode::DeadlineExceeded),
        (scope(&["a"]), ErrorCode::DeadlineExceeded),
        (scope(&["b"]), ErrorCode::NotAllowed),
        (scope(&["a", "b"]), ErrorCode::NotAllowed),
        (scope(&["c"]), ErrorCode::InvalidRequest),
    ] {
        assert_eq!(get(&scene, "t", variant.clone()).await.code, expected, "{variant:?}");
    }
    let scene = Scene::new(ALICE, directory(), &with_ruled_scope("a b"));
    assert_eq!(scene.get("t").await, ErrorCode::NotAllowed, "the configured form holds it too");
    assert_eq!(get(&scene, "t", scope(&["a"])).await.code, ErrorCode::DeadlineExceeded);
    assert!(get(&scene, "t", scope(&["b"])).await.message.contains("in this form"));
    assert!(scene.watch(&["t"]).await.is_err(), "what is watched is the configured form");
    assert_eq!(scene.list().await, ["t"]);
}

#[tokio::test]
async fn the_rules_of_a_term_narrow_those_of_the_token() {
    let bob = |asked: &Named| Ok((*asked == Named::User("bob".into())).then_some(ALICE));
    let scene = Scene::new(ALICE, Directory::asking(bob), &with_ruled_scope("a"));
    assert_eq!(get(&scene, "t", scope(&["b"])).await.code, ErrorCode::NotAllowed);
    let scene = Scene::new(ALICE, Directory::asking(|_| Ok(Some(ALICE))), &with_ruled_scope("a"));
    assert_eq!(get(&scene, "t", scope(&["b"])).await.code, ErrorCode::DeadlineExceeded);
}

#[tokio::test]
async fn a_token_of_which_no_form_may_be_had_looks_as_if_it_did_not_exist() {
    let terms = "variants.scope = [{ term = \"b\", allow = [\"user:bob\"] }]";
    let scene = Scene::new(ALICE, directory(), &token("t", &format!("{ALLOWED}\nscope = \"b\"\n{terms}")));
    assert!(scene.list().await.is_empty());
    for variant in [Variant::default(), scope(&["b"]), scope(&["c"])] {
        let refused = get(&scene, "t", variant.clone()).await;
        assert_eq!(refused, get(&scene, "absent", variant).await);
        assert_eq!(refused.code, ErrorCode::NotAllowed);
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_costs_the_lookups_of_a_token_with_rules_for_its_terms() {
    let lookups = async |name: &str| {
        let (counting, asked) = counting();
        let admin = "[admin]\nallow = [\"user:carol\"]";
        let scene = Scene::new(ALICE, counting, &(with_ruled_scope("a") + admin));
        assert_eq!(get(&scene, name, scope(&["b"])).await.code, ErrorCode::NotAllowed);
        asked.load(Ordering::SeqCst)
    };
    assert_eq!(lookups("t").await, 3);
    assert_eq!(lookups("absent").await, 3);
}

/// Every way to ask for one token that has one answer.
fn every_request(name: &TokenName) -> Vec<Request> {
    let variants = [Variant::default(), scope(&["a"]), scope(&["b"]), scope(&["unknown"])];
    let mut requests = Vec::new();
    for variant in variants {
        let (name, fingerprint) = (name.clone(), tokend_protocol::Fingerprint([0; 8]));
        let explain = |subject| {
            Request::Explain(ExplainRequest { name: name.clone(), variant: variant.clone(), subject })
        };
        requests.extend([
            Request::Get(GetRequest { name: name.clone(), options: HELD, variant: variant.clone() }),
            Request::Headers(HeadersRequest {
                name: name.clone(),
                supplied: vec![],
                omitted: vec!["X-Unknown".to_owned()],
                options: HELD,
                variant: variant.clone(),
            }),
            Request::Refresh(RefreshRequest {
                name: name.clone(),
                deadline_ms: 0,
                variant: Variant::default(),
            }),
            explain(Subject::Caller),
            explain(Subject::User("root".to_owned())),
            explain(Subject::Process(1)),
            Request::Reject(RejectRequest { name, fingerprint, deadline_ms: 0, variant }),
        ]);
    }
    requests
}

/// All answers about a name as they go over the socket.
async fn answers(scene: &Scene, name: &str) -> Vec<Vec<u8>> {
    let mut replies = Vec::new();
    for request in every_request(&name.parse().unwrap()) {
        replies.push(scene.session.answer(request).await);
    }
    replies.push(Reply::Error(scene.watch(&[name]).await.map(drop).unwrap_err()));
    let mut wires = Vec::new();
    for message in replies {
        let mut wire = Vec::new();
        encode(&Frame { id: 1, message }, &mut wire).unwrap();
        wires.push(wire);
    }
    wires
}

#[tokio::test]
async fn no_request_tells_what_is_forbidden_from_what_does_not_exist() {
    let terms = "scope = \"a\"\nvariants.scope = [\"a\", { term = \"b\", allow = [\"any\"] }]";
    for hidden in [FORBIDDEN.to_owned(), format!("{FORBIDDEN}\n{terms}"), String::new()] {
        let scene = Scene::new(ALICE, directory(), &token("hidden", &hidden));
        let forbidden = answers(&scene, "hidden").await;
        assert_eq!(forbidden, answers(&scene, "absent").await, "{hidden}");
        // In an empty registry there is nothing to compare with, and still the same answer.
        scene.reload("");
        assert_eq!(forbidden, answers(&scene, "hidden").await, "{hidden}");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_decided_about_by_the_rules_of_some_token_always_the_same() {
    let tokens: String = (0..8).map(|n| token(&format!("t{n}"), ALLOWED)).collect();
    let scene = Scene::new(ALICE, directory(), &tokens);
    let registry = scene.session.registry();
    let decoy = |name: &str| Arc::as_ptr(registry.decoy(&name.parse().unwrap()).unwrap());
    let chosen: HashSet<_> = (0..500).map(|n| decoy(&format!("absent-{n}"))).collect();
    let all: HashSet<_> = registry.after(None).map(|(_, entry)| Arc::as_ptr(entry)).collect();
    assert_eq!(chosen, all, "each of them is chosen for some names");
    assert_eq!(decoy("absent-1"), decoy("absent-1"));
    scene.reload("");
    assert!(scene.session.registry().decoy(&"absent".parse().unwrap()).is_none());
}

//! Who is given what, over all ways to ask.

use tokend_protocol::{ExplainRequest, Frame, Subject, encode};

use super::*;

fn scope(terms: &[&str]) -> Variant {
    Variant { scope: terms.iter().map(|term| (*term).to_owned()).collect(), ..Variant::default() }
}

/// The reply to a `get` of a variant; `DeadlineExceeded` means allowed, because nothing is held.
async fn get(scene: &Scene, name: &str, variant: Variant) -> ErrorReply {
    let request = GetRequest { name: name.parse().unwrap(), options: HELD, variant };
    match scene.session.answer(Request::Get(request)).await {
        Reply::Error(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn root_that_is_switched_off_needs_rules_and_is_no_operator() {
    const DENY: &str = "[admin]\nroot = \"deny\"\n";
    let tokens =
        token("none", "") + &token("named", "allow = [\"user:0\"]") + &token("any", "allow = [\"any\"]");
    let scene = Scene::new(0, host(), &(tokens.clone() + DENY));
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
    let scene = Scene::new(0, host(), &(tokens + DENY + named));
    assert_eq!(scene.get("absent").await, ErrorCode::UnknownToken, "a rule makes it an operator again");
    assert_eq!(code(scene.session.answer(refresh).await), ErrorCode::DeadlineExceeded);
}

/// A token whose scope `b` is for bob alone.
fn with_ruled_scope(configured: &str) -> String {
    let terms = "[\"a\", { term = \"b\", allow = [\"user:bob\"] }]";
    token("t", &format!("{ALLOWED}\nscope = \"{configured}\"\nvariants.scope = {terms}"))
}

#[tokio::test]
async fn a_term_with_rules_of_its_own_is_refused_in_every_variant() {
    let scene = Scene::new(ALICE, host(), &with_ruled_scope("a"));
    for (variant, expected) in [
        (Variant::default(), ErrorCode::DeadlineExceeded),
        (scope(&["a"]), ErrorCode::DeadlineExceeded),
        (scope(&["b"]), ErrorCode::NotAllowed),
        (scope(&["a", "b"]), ErrorCode::NotAllowed),
        (scope(&["c"]), ErrorCode::InvalidRequest),
    ] {
        assert_eq!(get(&scene, "t", variant.clone()).await.code, expected, "{variant:?}");
    }
    let scene = Scene::new(ALICE, host(), &with_ruled_scope("a b"));
    assert_eq!(scene.get("t").await, ErrorCode::NotAllowed, "the configured variant has it too");
    assert_eq!(get(&scene, "t", scope(&["a"])).await.code, ErrorCode::DeadlineExceeded);
    assert!(get(&scene, "t", scope(&["b"])).await.message.contains("this variant"));
    assert!(scene.watch(&["t"]).await.is_err(), "the configured variant is watched");
    assert_eq!(scene.list().await, ["t"]);
}

#[tokio::test]
async fn the_rules_of_a_term_narrow_those_of_the_token() {
    let scene = Scene::new(ALICE, host_with(&[("bob", ALICE)]), &with_ruled_scope("a"));
    assert_eq!(get(&scene, "t", scope(&["b"])).await.code, ErrorCode::NotAllowed);
    let both = host_with(&[("alice", ALICE), ("bob", ALICE)]);
    let scene = Scene::new(ALICE, both, &with_ruled_scope("a"));
    assert_eq!(get(&scene, "t", scope(&["b"])).await.code, ErrorCode::DeadlineExceeded);
}

#[tokio::test]
async fn a_token_without_an_allowed_variant_looks_as_if_it_did_not_exist() {
    let terms = "variants.scope = [{ term = \"b\", allow = [\"user:bob\"] }]";
    let scene = Scene::new(ALICE, host(), &token("t", &format!("{ALLOWED}\nscope = \"b\"\n{terms}")));
    assert!(scene.list().await.is_empty());
    for variant in [Variant::default(), scope(&["b"]), scope(&["c"])] {
        let refused = get(&scene, "t", variant.clone()).await;
        assert_eq!(refused, get(&scene, "absent", variant).await);
        assert_eq!(refused.code, ErrorCode::NotAllowed);
    }
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
async fn no_reply_tells_a_forbidden_token_from_one_that_does_not_exist() {
    let terms = "scope = \"a\"\nvariants.scope = [\"a\", { term = \"b\", allow = [\"any\"] }]";
    for hidden in [FORBIDDEN.to_owned(), format!("{FORBIDDEN}\n{terms}"), String::new()] {
        let scene = Scene::new(ALICE, host(), &token("hidden", &hidden));
        let forbidden = answers(&scene, "hidden").await;
        assert_eq!(forbidden, answers(&scene, "absent").await, "{hidden}");
        // In an empty registry there is nothing to compare with, and still the same answer.
        scene.reload("");
        assert_eq!(forbidden, answers(&scene, "hidden").await, "{hidden}");
    }
}

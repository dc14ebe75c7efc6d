//! Who is given what, over all ways to ask.

use super::*;

fn scope(terms: &[&str]) -> Variant {
    Variant { scope: terms.iter().map(|term| (*term).to_owned()).collect(), ..Variant::default() }
}

/// What a `get` of a form comes to; `DeadlineExceeded` is a grant, because nothing is held.
async fn get(scene: &Scene, name: &str, variant: Variant) -> ErrorReply {
    let request = GetRequest { name: name.parse().unwrap(), terms: HELD, variant };
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
    let refresh = Request::Refresh(RefreshRequest { name: "named".parse().unwrap(), deadline_ms: 0 });
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
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let counting = Directory::asking(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(None)
        });
        let admin = "[admin]\nallow = [\"user:carol\"]";
        let scene = Scene::new(ALICE, counting, &(with_ruled_scope("a") + admin));
        assert_eq!(get(&scene, name, scope(&["b"])).await.code, ErrorCode::NotAllowed);
        asked.load(Ordering::SeqCst)
    };
    assert_eq!(lookups("t").await, 3);
    assert_eq!(lookups("absent").await, 3);
}

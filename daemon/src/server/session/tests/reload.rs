//! Tests of reloads: connections, tokens and watches that stay or go.

use super::*;

/// The credential of `t`, or of a variant of it.
fn credential(scene: &Scene, scope: &[&str]) -> Arc<Credential> {
    let scope = scope.iter().map(|term| (*term).to_owned()).collect();
    let variant = Variant { scope, ..Variant::default() };
    let registry = scene.session.registry();
    let entry = registry.find("t").unwrap();
    let (user, factory) = (&scene.session.allowance, &scene.session.shared.credential_factory);
    entry.variant(&variant, user, factory, || true).unwrap()
}

fn is_same(one: &Arc<Credential>, other: &Arc<Credential>) -> bool {
    Arc::ptr_eq(one, other)
}

/// One provider and its token `t`, with what stands for a part of either.
fn tables(provider: &[(&str, &str)], token: &[(&str, &str)]) -> String {
    let table = |defaults: &[(&str, &str)], given: &[(&str, &str)]| {
        let mut keys: std::collections::BTreeMap<_, _> = defaults.iter().copied().collect();
        keys.extend(given.iter().copied());
        keys.iter().map(|(key, value)| [*key, " = ", *value, "\n"].concat()).collect::<Vec<_>>().concat()
    };
    let own = [
        ("token_endpoint", "\"http://127.0.0.1:9/\""),
        ("client_id", "\"c\""),
        ("client_secret", "{ command = [\"sleep\", \"600\"] }"),
    ];
    let named = [("provider", "\"own\""), ("scope", "\"a b\""), ("variants", "{ scope = \"a b\" }")];
    format!("[provider.own]\n{}[token.t]\n{}", table(&own, provider), table(&named, token))
}

#[tokio::test]
async fn a_change_of_anything_in_the_token_request_makes_another_credential() {
    const TLS: (&str, &str) = ("token_endpoint", "\"https://id.example/\"");
    let changes: [(&[_], &[_]); 14] = [
        (&[("token_endpoint", "\"http://127.0.0.1:10/\"")], &[]),
        (&[("client_id", "\"d\"")], &[]),
        (&[("client_secret", "{ env = \"OTHER\" }")], &[]),
        (&[("token_endpoint_auth_method", "\"client_secret_post\"")], &[]),
        (&[("client_secret_basic_encoding", "\"raw\"")], &[]),
        (&[("ca_file", "\"/etc/ssl/other.pem\"")], &[]),
        (&[TLS, ("proxy", "\"http://proxy.example:3128\"")], &[]),
        (&[("accept", "\"application/xml\"")], &[]),
        (&[], &[("scope", "\"a\"")]),
        (&[], &[("resource", "\"r\"")]),
        (&[], &[("audience", "\"r\"")]),
        (&[], &[("params", "{ x = \"y\" }")]),
        (&[], &[("default_lifetime", "\"1h\"")]),
        (&[], &[("grant_type", "\"password\""), ("username", "\"u\""), ("password", "{ env = \"OTHER\" }")]),
    ];
    for (provider, token) in changes {
        let scene = Scene::new(OWN_UID, host(), &tables(&[], &[]));
        let (before, form) = (credential(&scene, &[]), credential(&scene, &["b"]));
        scene.reload(&tables(provider, token));
        let change = format!("{provider:?} {token:?}");
        assert!(!is_same(&before, &credential(&scene, &[])), "{change}");
        assert!(!is_same(&form, &credential(&scene, &["b"])), "{change}");
        let deadline = scene.session.shared.clock.now().after(Duration::from_secs(1));
        for ended in [before, form] {
            let reason = ended.obtain(Duration::ZERO, deadline).await.map(drop);
            assert_eq!(reason, Err(Unobtainable::Ended), "{change}");
        }
    }
}

#[tokio::test]
async fn no_variant_is_started_for_a_registry_that_a_reload_has_replaced() {
    let scene = Scene::new(OWN_UID, host(), &tables(&[], &[]));
    let registry = scene.session.registry();
    let entry = registry.find("t").unwrap();
    let (name, scope) = ("t".parse().unwrap(), vec!["b".to_owned()]);
    let variant = Variant { scope, ..Variant::default() };
    let asked = Asked { operation: Operation::Get, name: &name, variant: &variant };
    scene.reload(&tables(&[("client_secret", "{ env = \"OTHER\" }")], &[]));
    assert!(scene.session.credential(asked, &registry, entry).unwrap().is_none());
    assert!(entry.variants.as_ref().unwrap().credentials().is_empty());
    let (_, _, current) = scene.session.authorized(asked, Session::authorize).unwrap();
    assert!(is_same(&current, &credential(&scene, &["b"])));
}

#[tokio::test]
async fn any_other_change_keeps_the_credential_and_its_variants() {
    let changes: [&[_]; 7] = [
        &[],
        &[("allow", "[\"user:alice\"]")],
        &[("headers", "{ X = \"y\" }")],
        &[("caller_headers", "[\"X\"]")],
        &[("refresh_before", "\"5m\"")],
        &[("warm", "\"on-demand\"")],
        &[("variants", "{ scope = [\"a\", { term = \"b\", allow = [\"user:alice\"] }, \"c\"] }")],
    ];
    let scene = Scene::new(OWN_UID, host(), &tables(&[], &[]));
    let (before, form) = (credential(&scene, &[]), credential(&scene, &["b"]));
    for token in changes {
        scene.reload(&(tables(&[], token) + "[admin]\nallow = [\"user:alice\"]\n"));
        assert!(is_same(&before, &credential(&scene, &[])), "{token:?}");
        assert!(is_same(&form, &credential(&scene, &["b"])), "{token:?}");
    }
}

#[tokio::test]
async fn a_variant_that_is_not_permitted_any_more_is_dropped_and_the_others_are_kept() {
    let scene = Scene::new(OWN_UID, host(), &tables(&[], &[]));
    let (a, b) = (credential(&scene, &["a"]), credential(&scene, &["b"]));
    scene.reload(&tables(&[], &[("variants", "{ scope = \"a\" }")]));
    assert!(is_same(&a, &credential(&scene, &["a"])));
    let deadline = scene.session.shared.clock.now().after(Duration::from_secs(1));
    assert_eq!(b.obtain(Duration::ZERO, deadline).await.map(drop), Err(Unobtainable::Ended));
}

#[tokio::test]
async fn an_idle_connection_keeps_no_former_registry_alive() {
    let scene = Scene::new(OWN_UID, host(), &token("t", ""));
    scene.get("t").await;
    let former = Arc::downgrade(&scene.session.registry());
    scene.reload(&token("t", ALLOWED));
    assert!(former.upgrade().is_none());
}

#[tokio::test]
async fn a_reload_makes_and_unmakes_operators_on_open_connections() {
    let admin = "[admin]\nallow = [\"user:alice\"]";
    let scene = Scene::new(ALICE, host(), admin);
    assert_eq!(scene.get("absent").await, ErrorCode::UnknownToken);
    scene.reload("");
    assert_eq!(scene.get("absent").await, ErrorCode::NotAllowed);
    scene.reload(admin);
    assert_eq!(scene.get("absent").await, ErrorCode::UnknownToken);
}

#[tokio::test]
async fn a_caller_that_is_no_operator_any_more_after_a_look_up_is_told_nothing() {
    let explain = tokend_protocol::ExplainRequest {
        name: "t".parse().unwrap(),
        variant: Variant::default(),
        subject: tokend_protocol::Subject::User("root".to_owned()),
    };
    let operator = "[admin]\nallow = [\"user:1001\"]";
    let scene = Scene::new(ALICE, host(), &(token("t", FORBIDDEN) + operator));
    let held_up = scene.session.shared.names.hold_explanations();
    let mut answer = Box::pin(scene.session.answer(Request::Explain(explain)));
    assert!((&mut answer).now_or_never().is_none(), "the account is looked up");
    scene.reload(&token("t", FORBIDDEN));
    drop(held_up);
    assert_eq!(code(answer.await), ErrorCode::NotAllowed);
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_name_becomes_another_user_while_it_waits_is_refused() {
    let scene = Scene::new(ALICE, changing(&[Some(ALICE), Some(7)]), &token("t", ALLOWED));
    let options = CallOptions { deadline_ms: 60_000, min_ttl_ms: 0 };
    let request = GetRequest { name: "t".parse().unwrap(), options, variant: Variant::default() };
    let mut answer = Box::pin(scene.session.answer(Request::Get(request)));
    assert!((&mut answer).now_or_never().is_none(), "it waits for the provider");
    resolve_again(&scene);
    assert_eq!(code(answer.await), ErrorCode::NotAllowed);
}

#[tokio::test]
async fn a_caller_that_loses_the_token_during_a_refresh_or_reject_is_told_nothing() {
    let (name, fingerprint): (TokenName, _) = ("t".parse().unwrap(), tokend_protocol::Fingerprint([0; 8]));
    let variant = Variant::default();
    let refresh = RefreshRequest { name: name.clone(), deadline_ms: 60_000, variant: Variant::default() };
    let reject = RejectRequest { name, fingerprint, deadline_ms: 60_000, variant };
    let admin = "[admin]\nallow = [\"user:alice\"]";
    for request in [Request::Refresh(refresh), Request::Reject(reject)] {
        let scene = Scene::new(ALICE, host(), &(token("t", ALLOWED) + admin));
        let mut answer = Box::pin(scene.session.answer(request));
        // The provider's secret never comes.
        assert!((&mut answer).now_or_never().is_none());
        scene.reload(&token("t", &format!("scope = \"other\"\n{FORBIDDEN}")));
        assert_eq!(code(answer.await), ErrorCode::NotAllowed);
    }
}

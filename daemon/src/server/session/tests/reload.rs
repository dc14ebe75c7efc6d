//! What a reload keeps, and what it lets go.

use std::sync::mpsc;

use super::*;

/// The credential of `t`, or of a form of it.
fn credential(scene: &Scene, scope: &[&str]) -> Arc<Credential> {
    let scope = scope.iter().map(|term| (*term).to_owned()).collect();
    let variant = Variant { scope, ..Variant::default() };
    let registry = scene.session.registry();
    let entry = registry.find(&"t".parse().unwrap()).unwrap();
    entry.variant(&variant, &scene.session.allowance, &scene.session.shared.origins).unwrap()
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
async fn whatever_a_token_request_is_made_of_makes_another_credential() {
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
        let scene = Scene::new(OWN_UID, directory(), &tables(&[], &[]));
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
async fn whatever_else_changes_keeps_the_credential_and_its_forms() {
    let changes: [&[_]; 7] = [
        &[],
        &[("allow", "[\"user:alice\"]")],
        &[("headers", "{ X = \"y\" }")],
        &[("caller_headers", "[\"X\"]")],
        &[("refresh_before", "\"5m\"")],
        &[("warm", "\"on-demand\"")],
        &[("variants", "{ scope = [\"a\", { term = \"b\", allow = [\"user:alice\"] }, \"c\"] }")],
    ];
    let scene = Scene::new(OWN_UID, directory(), &tables(&[], &[]));
    let (before, form) = (credential(&scene, &[]), credential(&scene, &["b"]));
    for token in changes {
        scene.reload(&(tables(&[], token) + "[admin]\nallow = [\"user:alice\"]\n"));
        assert!(is_same(&before, &credential(&scene, &[])), "{token:?}");
        assert!(is_same(&form, &credential(&scene, &["b"])), "{token:?}");
    }
}

#[tokio::test]
async fn a_form_that_may_not_be_asked_for_any_more_is_let_go_and_the_others_are_kept() {
    let scene = Scene::new(OWN_UID, directory(), &tables(&[], &[]));
    let (a, b) = (credential(&scene, &["a"]), credential(&scene, &["b"]));
    scene.reload(&tables(&[], &[("variants", "{ scope = \"a\" }")]));
    assert!(is_same(&a, &credential(&scene, &["a"])));
    let deadline = scene.session.shared.clock.now().after(Duration::from_secs(1));
    assert_eq!(b.obtain(Duration::ZERO, deadline).await.map(drop), Err(Unobtainable::Ended));
}

#[tokio::test]
async fn an_idle_connection_keeps_nothing_of_a_former_configuration() {
    let scene = Scene::new(OWN_UID, directory(), &token("t", ""));
    scene.get("t").await;
    assert_eq!(scene.remembered(), 1);
    let former = Arc::downgrade(&scene.session.registry());
    scene.reload(&token("t", ALLOWED));
    assert!(former.upgrade().is_none());
}

#[tokio::test]
async fn an_operator_is_one_only_as_long_as_the_configuration_says_so() {
    let admin = "[admin]\nallow = [\"user:alice\"]";
    let scene = Scene::new(ALICE, directory(), admin);
    assert_eq!(scene.get("absent").await, ErrorCode::UnknownToken);
    scene.reload("");
    assert_eq!(scene.get("absent").await, ErrorCode::NotAllowed);
    scene.reload(admin);
    assert_eq!(scene.get("absent").await, ErrorCode::UnknownToken);
}

/// A directory that answers that everybody is alice, as often as it is let.
fn gated() -> (Directory, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    (
        Directory::asking(move |_| gate.lock().unwrap().recv().map(|()| Some(ALICE)).map_err(|_| Errno::EIO)),
        open,
    )
}

#[tokio::test]
async fn a_form_that_is_removed_while_a_name_is_looked_up_is_not_started() {
    let allow = ("allow", "[\"user:alice\"]");
    let name: TokenName = "t".parse().unwrap();
    let variant = Variant { scope: vec!["b".to_owned()], ..Variant::default() };
    let options = CallOptions { deadline_ms: 60_000, min_ttl_ms: 0 };
    let fingerprint = tokend_protocol::Fingerprint([0; 8]);
    let (get, headers, reject) = (
        GetRequest { name: name.clone(), options, variant: variant.clone() },
        HeadersRequest {
            name: name.clone(),
            options,
            supplied: vec![],
            omitted: vec![],
            variant: variant.clone(),
        },
        RejectRequest { name: name.clone(), fingerprint, deadline_ms: 60_000, variant },
    );
    for request in [Request::Get(get), Request::Headers(headers), Request::Reject(reject)] {
        let (directory, open) = gated();
        let scene = Scene::new(ALICE, directory, &tables(&[], &[allow]));
        let former = Arc::clone(scene.session.registry().find(&name).unwrap());
        let mut answer = Box::pin(scene.session.answer(request));
        assert!((&mut answer).now_or_never().is_none(), "the name is being looked up");
        scene.reload(&tables(&[], &[allow, ("variants", "{ scope = \"a\" }")]));
        open.send(()).unwrap();
        assert_eq!(code(answer.await), ErrorCode::InvalidRequest);
        assert!(former.variants.snapshots().is_empty(), "what the configuration took away was started");
    }
}

#[tokio::test]
async fn who_ceases_to_be_an_operator_while_it_asks_about_others_is_told_nothing() {
    let explain = tokend_protocol::ExplainRequest {
        name: "t".parse().unwrap(),
        variant: Variant::default(),
        subject: tokend_protocol::Subject::User("root".to_owned()),
    };
    let operator = "[admin]\nallow = [\"user:1001\"]";
    let scene = Scene::new(ALICE, directory(), &(token("t", FORBIDDEN) + operator));
    let mut answer = Box::pin(scene.session.answer(Request::Explain(explain)));
    assert!((&mut answer).now_or_never().is_none(), "the account is looked up");
    scene.reload(&token("t", FORBIDDEN));
    assert_eq!(code(answer.await), ErrorCode::NotAllowed);
}

#[tokio::test]
async fn who_loses_the_token_while_it_reports_it_or_has_it_renewed_is_told_nothing_of_it() {
    let (name, fingerprint): (TokenName, _) = ("t".parse().unwrap(), tokend_protocol::Fingerprint([0; 8]));
    let variant = Variant::default();
    let refresh = RefreshRequest { name: name.clone(), deadline_ms: 60_000, variant: Variant::default() };
    let reject = RejectRequest { name, fingerprint, deadline_ms: 60_000, variant };
    let admin = "[admin]\nallow = [\"user:alice\"]";
    for request in [Request::Refresh(refresh), Request::Reject(reject)] {
        let scene = Scene::new(ALICE, directory(), &(token("t", ALLOWED) + admin));
        let mut answer = Box::pin(scene.session.answer(request));
        // The names are known soon, and then the provider's secret, which never comes, is waited for.
        while scene.session.allowance.take(Resource::Waiting, Quota::default().waiting).is_ok() {
            assert!((&mut answer).now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        scene.reload(&token("t", &format!("scope = \"other\"\n{FORBIDDEN}")));
        assert_eq!(code(answer.await), ErrorCode::NotAllowed);
    }
}

//! What a reload keeps, and what it lets go.

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

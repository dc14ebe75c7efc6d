//! Tokens in a form of the caller's choosing, and tokens that nobody uses.

use std::collections::BTreeSet;
use std::time::Duration;

use tokend_client::{Client, Error, Options, Variant};
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Answer, Gate, InProcess, Provider, Scene, TestDir, secrets};

/// A provider whose tokens begin with the scope that they were asked for with.
fn naming_scopes(gate: &Gate) -> Provider {
    let gate = gate.clone();
    Provider::start_answering(move |request| {
        let scope = request.field("scope").unwrap_or_default().replace(' ', "+");
        Answer::this_token(&format!("{scope}.{}", secrets::invent("token")), 600).behind(&gate)
    })
}

#[test]
fn two_hundred_callers_with_eight_scopes_cost_eight_requests_and_no_token_is_crossed() {
    let gate = Gate::new();
    let provider = naming_scopes(&gate);
    let home = TestDir::new();
    let more = "scope = \"all\"\nwarm = \"on-demand\"\nvariants = { scope = \"s0 s1 s2 s3 s4 s5 s6 s7\" }";
    home.configure(
        "",
        &(provider_table(&home, "p", &provider.token_endpoint(), "") + &token_table("t", more)),
    );
    let daemon = InProcess::start(&home);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::new(Options::new(daemon.socket()));
        let calls: Vec<_> = (0..200)
            .map(|number| {
                let scope = format!("s{}", number % 8);
                let variant = Variant { scope: vec![scope.clone()], ..Variant::default() };
                let client = client.clone();
                tokio::spawn(async move {
                    (scope, client.variant(&"t".parse().unwrap(), variant).get().await.unwrap())
                })
            })
            .collect();
        gate.open();
        let mut tokens = BTreeSet::new();
        for call in calls {
            let (scope, reply) = call.await.unwrap();
            assert!(reply.token.expose().starts_with(&format!("{scope}.")), "asked for {scope}");
            tokens.insert(reply.token.expose().to_owned());
        }
        assert_eq!(tokens.len(), 8);
    });
    assert_eq!(provider.count(), 8);
}

#[test]
fn what_may_not_be_asked_for_is_named_and_costs_nothing() {
    let gate = Gate::new();
    gate.open();
    let more = "scope = \"a b c\"\nvariants = { scope = \"a b\", resource = [\"https://api.example\"] }";
    let scene = Scene::start(naming_scopes(&gate), &token_table("t", more));
    let tokenctl = scene.tokenctl();
    assert!(tokenctl.get("t").starts_with("a+b+c."));
    let narrow = tokenctl.run(&["get", "t", "--scope", "b"]);
    assert!(narrow.stdout.starts_with("b."), "{}", narrow.stderr);
    let aimed = tokenctl.run(&["get", "t", "--resource", "https://api.example"]);
    assert!(aimed.stdout.starts_with("a+b+c."), "{}", aimed.stderr);
    let before = scene.provider.count();
    let refused = tokenctl.run(&["get", "t", "--scope", "a c"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("the scope c is not among those that may be asked for"),
        "{}",
        refused.stderr
    );
    assert_eq!(scene.provider.count(), before);
}

#[test]
fn a_token_on_demand_is_fetched_when_somebody_wants_it() {
    let scene = Scene::start(Provider::start(), &token_table("t", "warm = \"on-demand\""));
    assert_eq!(scene.tokenctl().status_of("t")["state"], "pending");
    assert_eq!(scene.provider.count(), 0);
    scene.tokenctl().get("t");
    assert_eq!(scene.tokenctl().status_of("t")["state"], "fresh");
    assert_eq!(scene.provider.count(), 1);
}

#[test]
fn a_reload_that_permits_less_takes_effect_at_once_and_keeps_what_is_still_permitted() {
    let gate = Gate::new();
    gate.open();
    let provider = naming_scopes(&gate);
    let home = TestDir::new();
    let configure = |variants: &str| {
        let token = token_table("t", &format!("scope = \"a b\"\nvariants = {{ scope = \"{variants}\" }}"));
        home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + &token));
    };
    configure("a b");
    let daemon = InProcess::start(&home);
    let client =
        tokend_client::blocking::Client::new(Options::new(daemon.socket()).deadline(Duration::from_secs(20)));
    let get = |scope: &str| {
        let variant = Variant { scope: vec![scope.to_owned()], ..Variant::default() };
        client.variant(&"t".parse().unwrap(), variant).get().map(|reply| reply.token.expose().to_owned())
    };
    let (a, _b) = (get("a").unwrap(), get("b").unwrap());
    configure("a");
    daemon.reload();
    assert_eq!(get("a").unwrap(), a);
    assert!(matches!(get("b"), Err(Error::InvalidRequest { .. })));
}

//! kubectl with an API server of the test's own.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tokend_tests::certificate::{Authority, Flaw};
use tokend_tests::test_support::{Scene, token_table};
use tokend_tests::{Answer, Finished, Provider, process, program, requirement};

use super::{LIMIT, provider_of_one_token};

/// Whether this is an older kubectl than 1.22, which knows the interface for credential plugins in its beta version only.
fn knows_beta_only() -> bool {
    let version = process::run(Command::new("kubectl").args(["version", "--client", "--output=json"]), LIMIT);
    let version: Value = serde_json::from_str(&version.expect_success()).expect("kubectl prints JSON");
    let minor = version["clientVersion"]["minor"].as_str().expect("kubectl has a version");
    minor.trim_end_matches('+').parse::<u32>().expect("a version is a number") < 22
}

#[test]
fn kubectl_sends_the_newest_token() {
    if !requirement::program("kubectl") {
        return;
    }
    let (provider, accepted) = provider_of_one_token();
    let scene = Scene::start(provider, &token_table("t", "allow = [\"any\"]"));
    let authority = Authority::new();
    let api = Provider::start_tls(authority.server(Flaw::None));
    api.answer_with(move |request| {
        let expected = format!("Bearer {}", accepted.lock().unwrap());
        if request.header("authorization") == Some(&expected) {
            Answer::json(200, &json!({ "major": "1", "minor": "32", "gitVersion": "v1.32.0" }))
        } else {
            Answer::json(401, &json!({ "kind": "Status", "apiVersion": "v1", "code": 401 }))
        }
    });
    let file = scene.home.path().join("kubeconfig");
    let kubectl = |version: &str| -> Finished {
        let user = json!({ "exec": {
            "apiVersion": format!("client.authentication.k8s.io/{version}"),
            "interactiveMode": "Never",
            "command": program::tokenctl(),
            "args": ["--socket", scene.socket(), "helper", "kubectl", "t"],
        } });
        let cluster = json!({ "server": api.url(""), "certificate-authority": authority.ca_file() });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "c", "cluster": cluster }],
            "users": [{ "name": "u", "user": user }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "current-context": "x",
        });
        fs::write(&file, config.to_string()).expect("kubectl can be configured");
        let mut command = Command::new("kubectl");
        command.args(["get", "--raw", "/version"]).env("HOME", scene.home.path()).env("KUBECONFIG", &file);
        process::run(&mut command, LIMIT)
    };
    let versions: &[&str] = if knows_beta_only() { &["v1beta1"] } else { &["v1", "v1beta1"] };
    for version in versions {
        for _ in 0..2 {
            let answered = kubectl(version).expect_success();
            assert!(answered.contains("v1.32.0"), "{version}: {answered}");
            scene.tokenctl().run(&["refresh", "t"]).expect_success();
        }
    }
    let asked = api.requests().into_iter().filter(|request| request.path == "/version").count();
    assert_eq!(asked, 2 * versions.len(), "each token was accepted at once");
}

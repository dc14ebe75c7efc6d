//! skopeo, which speaks Docker's protocol for credential helpers, with a container registry of the test's own.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokend_tests::test_support::{Scene, token_table};
use tokend_tests::{Answer, Provider, process, program, requirement};

use super::{LIMIT, provider_of_one_token};

#[test]
fn skopeo_sends_the_newest_token_to_a_registry() {
    if !requirement::program("skopeo") {
        return;
    }
    let (provider, accepted) = provider_of_one_token();
    let scene = Scene::start(provider, &token_table("t", "allow = [\"any\"]"));
    let registry = Provider::start_answering(move |request| {
        let password = format!("oauth2:{}", accepted.lock().unwrap());
        let expected = format!("Basic {}", BASE64_STANDARD.encode(password));
        if request.header("authorization") == Some(&expected) {
            Answer::json(200, &json!({ "name": "x", "tags": ["one"] }))
        } else {
            Answer::status(401).with_header("WWW-Authenticate", "Basic realm=\"t\"")
        }
    });
    let (home, address) = (scene.home.path(), registry.address());
    let (helper, settings) = (home.join("docker-credential-tokend"), home.join("config.json"));
    let (tokenctl, socket) = (program::tokenctl(), scene.socket().display());
    let script = format!("#!/bin/sh\nexec {} --socket {socket} helper docker t \"$@\"\n", tokenctl.display());
    fs::write(&helper, script).expect("the helper can be written");
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o700)).expect("it can be made a program");
    let helpers = json!({ "credHelpers": { address.to_string(): "tokend" } });
    fs::write(&settings, helpers.to_string()).expect("skopeo can be configured");
    let path = format!("{}:{}", home.display(), env::var("PATH").unwrap_or_default());
    for _ in 0..2 {
        let mut command = Command::new("skopeo");
        command.args(["list-tags", "--tls-verify=false", "--authfile"]).arg(&settings);
        command.arg(format!("docker://{address}/x")).env("HOME", home).env("PATH", &path);
        let listed = process::run(&mut command, LIMIT).expect_success();
        let listed: Value = serde_json::from_str(&listed).expect("skopeo prints JSON");
        assert_eq!(listed["Tags"], json!(["one"]));
        scene.tokenctl().run(&["refresh", "t"]).expect_success();
    }
}

//! What an operator is told about a decision, and what nobody else is told.

use std::process::{Child, Stdio};

use serde_json::{Value, json};
use tokend_tests::test_support::token_table;
use tokend_tests::tokenctl::User;
use tokend_tests::{Scene, requirement};

use crate::test_users::{ALICE, BOB, PAYMENTS, SOCKET, scene, user};

/// A process of a user that a test may ask about. It ends with the test.
struct Running(Child);

impl Running {
    fn start(scene: &Scene, user: User) -> Self {
        let mut command = scene.tokenctl().as_user(user).command();
        let child = command.args(["watch", "t"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.expect("tokenctl can be started"))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The rules of an explanation, each with whether it matches.
fn rules(explanation: &Value) -> Vec<(String, bool)> {
    let rules = explanation["rules"].as_array().expect("there is a list of rules");
    rules
        .iter()
        .map(|rule| (rule["rule"].as_str().unwrap().to_owned(), rule["matches"].as_bool().unwrap()))
        .collect()
}

#[test]
fn an_operator_learns_how_each_rule_fares_with_a_user_and_with_a_process() {
    if !requirement::root() {
        return;
    }
    let allow = format!("allow = [\"user:{BOB}\", {{ user = \"{ALICE}\", group = \"{PAYMENTS}\" }}]");
    let scene = scene(&token_table("t", &allow));
    let both = format!("user:{ALICE} and group:{PAYMENTS}");
    let ask = |more: &[&str]| explanation(&scene, &[&["explain", "t"], more].concat());

    // A user without an entry in the host's data base has no groups; a process has what the kernel says.
    let of_user = ask(&["--user", &ALICE.to_string()]);
    assert_eq!((&of_user["decision"], &of_user["facts"]["gid"]), (&json!("deny"), &Value::Null));
    assert_eq!(of_user["reason"], "no rule of the token matches");
    assert_eq!(rules(&of_user), [(format!("user:{BOB}"), false), (both.clone(), false)]);
    let process = Running::start(&scene, user(ALICE).with_groups(&[SOCKET, PAYMENTS]));
    // It becomes that user a moment after it was started.
    let explained = tokend_tests::wait::until("the process of that user", || {
        let explained = ask(&["--pid", &process.pid()]);
        (explained["facts"]["uid"] == ALICE).then_some(explained)
    });
    assert_eq!(explained["facts"]["groups"], json!([SOCKET, PAYMENTS]));
    assert_eq!((&explained["decision"], &explained["reason"]), (&json!("allow"), &json!(both)));
    assert_eq!(explained["operator"], Value::Null);
    assert_eq!(rules(&explained), [(format!("user:{BOB}"), false), (both, true)]);
    assert_eq!(explained["facts"]["pid"], process.0.id());
    scene.daemon.wait_for_log(&["explain", "allow", "root"]);

    let root = ask(&[]);
    assert_eq!((&root["reason"], &root["operator"]), (&json!("root"), &json!("root")));
    scene.tokenctl().run(&["explain", "absent"]).expect_code(5);
    scene.tokenctl().run(&["explain", "t", "--pid", "4194305"]).expect_code(2);
    scene.tokenctl().run(&["explain", "t", "--user", "no-such-user-here"]).expect_code(2);
}

/// An explanation, whose exit status says what was decided.
fn explanation(scene: &Scene, arguments: &[&str]) -> Value {
    let ran = scene.tokenctl().run(&[arguments, &["--json"]].concat());
    let explained: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(ran.code, if explained["decision"] == "allow" { 0 } else { 4 });
    explained
}

#[test]
fn anybody_else_learns_what_lets_it_in_and_nothing_about_others() {
    if !requirement::root() {
        return;
    }
    let scene = scene(&token_table("t", &format!("allow = [\"user:{BOB}\", \"user:{ALICE}\"]")));
    let alice = scene.tokenctl().as_user(user(ALICE));
    let own = alice.json(&["explain", "t"]);
    assert_eq!((&own["decision"], &own["reason"]), (&json!("allow"), &json!(format!("user:{ALICE}"))));
    assert_eq!((&own["rules"], &own["facts"]["uid"]), (&json!([]), &json!(ALICE)));
    assert!(!alice.run(&["explain", "t"]).expect_success().contains(&BOB.to_string()));
    alice.run(&["explain", "t", "--user", "root"]).expect_code(4);
    alice.run(&["explain", "t", "--pid", "1"]).expect_code(4);
    let admin = token_table("t", "") + &format!("[admin]\nallow = [\"user:{ALICE}\"]\n");
    scene.reconfigure(&format!("socket_group = {:?}", SOCKET.to_string()), &admin);
    scene.daemon.signal(nix::sys::signal::Signal::SIGHUP);
    let denied = tokend_tests::wait::until("the reload", || {
        let ran = alice.run(&["explain", "t", "--json"]);
        let told: Value = serde_json::from_str(&ran.stdout).ok()?;
        (told["operator"] != Value::Null).then_some(told)
    });
    assert_eq!(denied["decision"], "deny", "an operator is told, though it may not have the token itself");
}

#[test]
fn root_that_is_switched_off_has_what_rules_give_it() {
    if !requirement::root() {
        return;
    }
    // The daemon is root's here, too, which makes no exception.
    let tokens = token_table("none", "") + &token_table("named", "allow = [\"user:root\"]");
    let scene = scene(&(tokens.clone() + "[admin]\nroot = \"deny\"\n"));
    scene.tokenctl().get("named");
    scene.daemon.wait_for_log(&["handed out", "allow", "user:root"]);
    scene.tokenctl().run(&["get", "none"]).expect_code(4);
    scene.daemon.wait_for_log(&["none", "deny"]);
    scene.tokenctl().run(&["get", "absent"]).expect_code(4);
    scene.tokenctl().run(&["refresh", "named"]).expect_code(4);
    scene.tokenctl().run(&["explain", "named", "--user", "root"]).expect_code(4);
    assert_eq!(scene.tokenctl().run(&["list"]).expect_success(), "named\n");

    let admin = "[admin]\nroot = \"deny\"\nallow = [\"user:root\"]\n";
    scene.reconfigure(&format!("socket_group = {:?}", SOCKET.to_string()), &(tokens + admin));
    scene.daemon.signal(nix::sys::signal::Signal::SIGHUP);
    let told = tokend_tests::wait::until("the reload", || {
        let ran = scene.tokenctl().run(&["explain", "none", "--user", "root"]);
        (!ran.stdout.is_empty()).then_some(ran.stdout)
    });
    assert!(told.contains("not allowed: no rule of the token matches; root needs one too"), "{told}");
}

#[test]
fn a_scope_with_rules_of_its_own_is_refused_by_name_in_the_log() {
    if !requirement::root() {
        return;
    }
    let terms = format!("[\"accounts\", {{ term = \"transfer\", allow = [\"user:{BOB}\"] }}]");
    let rules = format!("allow = [\"any\"]\nscope = \"accounts\"\nvariants.scope = {terms}");
    let scene = scene(&token_table("bank", &rules));
    let (alice, bob) = (scene.tokenctl().as_user(user(ALICE)), scene.tokenctl().as_user(user(BOB)));
    let transfer = ["get", "bank", "--scope", "accounts transfer"];
    bob.run(&transfer).expect_success();
    scene.daemon.wait_for_log(&["handed out", "61002", "any; user:61002"]);
    alice.get("bank");
    let refused = alice.run(&transfer).expect_code(4);
    assert!(refused.contains("not allowed"), "{refused}");
    let logged = scene.daemon.wait_for_log(&["refused", "61001", "transfer"]);
    assert!(!logged.contains("accounts"), "only what has rules is named: {logged}");
    let told = explanation(&scene, &["explain", "bank", "--user", "61001", "--scope", "transfer"]);
    assert_eq!(told["reason"], "no rule of the scope transfer matches");
}

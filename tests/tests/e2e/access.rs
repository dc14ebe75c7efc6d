//! Nobody gets what the configuration does not give them, and nobody learns what there is to get.

use tokend_tests::scene::token_table;
use tokend_tests::tokenctl::User;
use tokend_tests::{Provider, Scene, requirement};

/// The group that may connect to the socket at all. Numbers that no distribution gives out.
const SOCKET: u32 = 61_000;
const ALICE: u32 = 61_001;
const BOB: u32 = 61_002;
const PAYMENTS: u32 = 61_010;

fn scene(tokens: &str) -> Scene {
    Scene::start_with(Provider::start(), &format!("socket_group = {:?}", SOCKET.to_string()), tokens)
}

fn alice() -> User {
    User::new(ALICE).with_groups(&[SOCKET])
}

fn bob() -> User {
    User::new(BOB).with_groups(&[SOCKET])
}

/// The numbers of a user and a group that every machine has by name.
fn nobody() -> (User, String, String) {
    let user = nix::unistd::User::from_name("nobody").unwrap().expect("every machine has a user nobody");
    let group = nix::unistd::Group::from_gid(user.gid).unwrap().expect("and a group for it");
    let ids = User::new(user.uid.as_raw()).in_group(user.gid.as_raw()).with_groups(&[SOCKET]);
    (ids, user.name, group.name)
}

#[test]
fn without_a_rule_nobody_but_root_is_given_a_token() {
    if !requirement::root() {
        return;
    }
    let scene = scene(&token_table("t", ""));
    scene.tokenctl().get("t");
    scene.tokenctl().as_user(alice()).run(&["get", "t"]).expect_code(4);
    scene.daemon.wait_for_log(&["deny", "61001", "no rule"]);
}

#[test]
fn a_user_is_let_in_by_number_and_by_name() {
    if !requirement::root() {
        return;
    }
    let (nobody, name, _) = nobody();
    let tokens = token_table("by-number", &format!("allow = [\"user:{ALICE}\"]"))
        + &token_table("by-name", &format!("allow = [\"user:{name}\"]"));
    let scene = scene(&tokens);
    let tokenctl = scene.tokenctl();
    tokenctl.as_user(alice()).get("by-number");
    tokenctl.as_user(alice()).run(&["get", "by-name"]).expect_code(4);
    tokenctl.as_user(nobody.clone()).get("by-name");
    tokenctl.as_user(nobody).run(&["get", "by-number"]).expect_code(4);
    tokenctl.as_user(bob()).run(&["get", "by-number"]).expect_code(4);
}

#[test]
fn a_group_lets_in_by_number_and_name_whether_first_or_supplementary() {
    if !requirement::root() {
        return;
    }
    let (nobody, _, group) = nobody();
    let tokens = token_table("by-number", &format!("allow = [\"group:{PAYMENTS}\"]"))
        + &token_table("by-name", &format!("allow = [\"group:{group}\"]"));
    let scene = scene(&tokens);
    let tokenctl = scene.tokenctl();
    tokenctl.as_user(alice().in_group(PAYMENTS)).get("by-number");
    tokenctl.as_user(alice().with_groups(&[SOCKET, PAYMENTS])).get("by-number");
    tokenctl.as_user(alice()).run(&["get", "by-number"]).expect_code(4);
    tokenctl.as_user(nobody).get("by-name");
    tokenctl.as_user(bob()).run(&["get", "by-name"]).expect_code(4);
}

#[test]
fn a_caller_cannot_tell_a_token_it_may_not_have_from_one_that_does_not_exist() {
    if !requirement::root() {
        return;
    }
    let scene = scene(&token_table("hidden", &format!("allow = [\"user:{BOB}\"]")));
    let alice = scene.tokenctl().as_user(alice());
    for verb in ["get", "headers", "refresh", "reject"] {
        let forbidden = alice.run(&[verb, "hidden"]);
        let unknown = alice.run(&[verb, "absent"]);
        assert_eq!(forbidden.code, 4, "{verb}: {}", forbidden.stderr);
        assert_eq!(unknown.code, 4, "{verb}: {}", unknown.stderr);
        assert_eq!(forbidden.stderr.replace("hidden", "absent"), unknown.stderr, "{verb}");
        assert!(!forbidden.stderr.contains("allow = "), "{verb}: the policy is not told");
    }
    assert!(!alice.run(&["list"]).stdout.contains("hidden"));
    assert!(!alice.run(&["status"]).stdout.contains("hidden"));
    assert!(scene.tokenctl().as_user(bob()).run(&["list"]).stdout.contains("hidden"));
}

#[test]
fn an_operator_is_told_that_there_is_no_such_token() {
    if !requirement::root() {
        return;
    }
    let scene = scene(&(token_table("t", "") + &format!("[admin]\nallow = [\"user:{ALICE}\"]\n")));
    scene.tokenctl().run(&["get", "absent"]).expect_code(5);
    scene.tokenctl().as_user(alice()).run(&["get", "absent"]).expect_code(5);
    scene.tokenctl().as_user(bob()).run(&["get", "absent"]).expect_code(4);
}

#[test]
fn only_an_operator_may_have_a_token_renewed() {
    if !requirement::root() {
        return;
    }
    let scene = scene(&token_table("t", &format!("allow = [\"user:{ALICE}\"]")));
    scene.tokenctl().as_user(alice()).get("t");
    let before = scene.provider.count();
    scene.tokenctl().as_user(alice()).run(&["refresh", "t"]).expect_code(4);
    assert_eq!(scene.provider.count(), before, "the provider was not asked");
}

#[test]
fn every_hand_out_and_every_refusal_is_in_the_log_root_s_too() {
    if !requirement::root() {
        return;
    }
    let scene = scene(&token_table("t", &format!("allow = [\"user:{ALICE}\"]")));
    scene.tokenctl().as_user(alice()).get("t");
    scene.daemon.wait_for_log(&["handed out", "allow", "61001", "user:61001", "fingerprint"]);
    scene.tokenctl().get("t");
    scene.daemon.wait_for_log(&["handed out", "allow", "root"]);
    scene.tokenctl().as_user(bob()).run(&["get", "t"]).expect_code(4);
    scene.daemon.wait_for_log(&["refused", "deny", "61002"]);
    scene.tokenctl().as_user(bob()).run(&["get", "absent"]).expect_code(4);
    scene.daemon.wait_for_log(&["refused", "deny", "61002", "no such token"]);
}

#[test]
fn a_user_outside_the_socket_s_group_does_not_reach_the_daemon() {
    if !requirement::root() {
        return;
    }
    let scene = scene(&token_table("t", &format!("allow = [\"user:{ALICE}\"]")));
    let refused = scene.tokenctl().as_user(User::new(ALICE)).run(&["get", "t"]).expect_code(3);
    assert!(refused.to_lowercase().contains("permission"), "{refused}");
}

//! Nobody gets what the configuration does not give them, and nobody learns what there is to get.

use tokend_tests::requirement;
use tokend_tests::test_support::token_table;
use tokend_tests::tokenctl::User;

use crate::test_users::{ALICE, BOB, PAYMENTS, SOCKET, scene, user};

fn alice() -> User {
    user(ALICE)
}

fn bob() -> User {
    user(BOB)
}

/// Every way to ask for one token.
const WAYS_TO_ASK: [&[&str]; 18] = [
    &["get"],
    &["get", "--min-ttl", "365days"],
    &["get", "--deadline", "0s"],
    &["get", "--scope", "aisp"],
    &["get", "--scope", "unknown"],
    &["get", "--resource", "https://api.example"],
    &["headers"],
    &["headers", "--header", "Requestor-ID=4711"],
    &["headers", "--header", "X-Unknown=4711"],
    &["headers", "--without", "Requestor-ID"],
    &["refresh"],
    &["reject"],
    &["reject", "--fingerprint", "0123456789abcdef"],
    &["watch"],
    &["wait", "--for", "valid"],
    &["explain"],
    &["explain", "--user", "root"],
    &["explain", "--pid", "1"],
];

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
    let terms = "variants.scope = [\"aisp\", { term = \"pisp\", allow = [\"any\"] }]";
    let rules =
        format!("allow = [\"user:{BOB}\"]\ncaller_headers = [\"Requestor-ID\"]\nscope = \"aisp\"\n{terms}");
    let scene = scene(&token_table("hidden", &rules));
    // So that the hidden one is held, with all that could be told of it.
    scene.tokenctl().as_user(bob()).get("hidden");
    let alice = scene.tokenctl().as_user(alice());
    for way in WAYS_TO_ASK {
        for form in [&[][..], &["--json"]] {
            let ask = |name| alice.run(&[way, form, &[name]].concat());
            let (forbidden, unknown) = (ask("hidden"), ask("absent"));
            let what = format!("{way:?} {form:?}");
            assert_eq!(forbidden.code, 4, "{what}: {}", forbidden.stderr);
            assert_eq!(unknown.code, 4, "{what}: {}", unknown.stderr);
            assert_eq!(forbidden.stderr.replace("hidden", "absent"), unknown.stderr, "{what}");
            assert_eq!(forbidden.stdout.replace("hidden", "absent"), unknown.stdout, "{what}");
            assert_eq!(forbidden.stdout.contains("\"not-allowed\""), !form.is_empty(), "{what}");
            let told = forbidden.stdout + &forbidden.stderr;
            assert!(!told.contains("user:") && !told.contains("Requestor-ID"), "the policy is told: {told}");
        }
    }
    for listing in [&["list"][..], &["list", "--json"], &["status"], &["status", "-v"], &["status", "--json"]]
    {
        assert!(!alice.run(listing).expect_success().contains("hidden"), "{listing:?}");
        assert!(scene.tokenctl().as_user(bob()).run(listing).stdout.contains("hidden"), "{listing:?}");
    }
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

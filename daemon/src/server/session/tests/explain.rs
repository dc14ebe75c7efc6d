//! Explanations: that they tell what really happens, and to whom they tell what.

use tokend_protocol::{ExplainRequest, ExplainedReply, Frame, Subject, encode};

use super::*;

async fn ask(scene: &Scene, name: &str, variant: Variant, subject: Subject) -> Reply {
    let request = ExplainRequest { name: name.parse().unwrap(), variant, subject };
    scene.session.answer(Request::Explain(request)).await
}

async fn explained(scene: &Scene, name: &str, subject: Subject) -> ExplainedReply {
    match ask(scene, name, Variant::default(), subject).await {
        Reply::Explained(reply) => reply,
        other => panic!("{other:?}"),
    }
}

fn user(uid: u32) -> Subject {
    Subject::User(uid.to_string())
}

/// How each rule fared: the list it is of, the rule, whether it matches, and the first fact.
fn told(reply: &ExplainedReply) -> Vec<(&str, &str, bool, &str)> {
    let rules = reply.lists.iter().flat_map(|list| list.rules.iter().map(|rule| (list.of.as_str(), rule)));
    rules
        .map(|(of, rule)| {
            let fact = rule.conditions.first().map_or("", |told| told.fact.as_str());
            (of, rule.rule.as_str(), rule.matches, fact)
        })
        .collect()
}

#[tokio::test]
async fn what_is_explained_is_what_happens() {
    let ruled = "[\"a\", { term = \"b\", allow = [\"user:alice\"] }, { term = \"c\", allow = [] }]";
    let tokens = token("none", "")
        + &token("any", "allow = [\"any\"]")
        + &token("alice", ALLOWED)
        + &token("bob", FORBIDDEN)
        + &token("ruled", &format!("allow = [\"any\"]\nscope = \"a b\"\nvariants.scope = {ruled}"))
        + "[admin]\nroot = \"deny\"";
    let operator = Scene::new(OWN_UID, host(), &tokens);
    for uid in [0, OWN_UID, ALICE, 4711] {
        let subject = Scene::new(uid, host(), &tokens);
        for name in ["none", "any", "alice", "bob", "ruled"] {
            for scope in [&[][..], &["a"], &["b"], &["c"], &["a", "b"]] {
                let scope = scope.iter().map(|term| (*term).to_owned()).collect();
                let variant = Variant { scope, ..Variant::default() };
                let request =
                    GetRequest { name: name.parse().unwrap(), options: HELD, variant: variant.clone() };
                let happened = code(subject.session.answer(Request::Get(request)).await);
                let explained = match ask(&operator, name, variant.clone(), user(uid)).await {
                    Reply::Explained(reply) if reply.allowed => ErrorCode::DeadlineExceeded,
                    Reply::Explained(_) => ErrorCode::NotAllowed,
                    Reply::Error(error) => error.code,
                    other => panic!("{other:?}"),
                };
                let is_refused_first = happened == ErrorCode::NotAllowed;
                let is_no_form = explained == ErrorCode::InvalidRequest && is_refused_first;
                assert!(
                    explained == happened || is_no_form,
                    "{uid} {name} {variant:?}: {explained:?} {happened:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn an_operator_is_told_how_each_rule_fares_with_anybody() {
    let rules = "allow = [\"user:bob\", { user = \"alice\", unit = \"a.service\" }, \"user:alice\"]\nscope = \"s\"\n\
                 variants.scope = [{ term = \"s\", allow = [\"group:7\"] }]";
    let scene = Scene::new(OWN_UID, host(), &token("t", rules));
    let reply = explained(&scene, "t", user(ALICE)).await;
    assert_eq!((reply.allowed, reply.reason.as_str()), (false, "no rule of the scope s matches"));
    assert_eq!(
        told(&reply),
        [
            ("token", "user:bob", false, "this host has no user bob"),
            ("token", "user:alice and unit:a.service", false, "the user is 1001"),
            ("token", "user:alice", true, "the user is 1001"),
            ("scope s", "group:7", false, "group 7 is not among its groups"),
        ]
    );
    assert_eq!(reply.lists[0].rules[1].conditions[1].fact, "the unit is not given");
    assert_eq!(
        (reply.facts.uid, reply.facts.gid, reply.facts.pid, reply.operator),
        (Some(ALICE), None, None, None)
    );

    let own = explained(&scene, "t", Subject::Caller).await;
    assert_eq!((own.allowed, own.reason.as_str()), (true, "the daemon's own user"));
    assert_eq!(own.operator.as_deref(), Some("the daemon's own user"));
    assert_eq!(own.lists.len(), 2);
}

#[tokio::test]
async fn a_process_is_explained_with_its_facts() {
    let scene = Scene::new(OWN_UID, host(), &token("t", "allow = [\"any\"]"));
    let reply = explained(&scene, "t", Subject::Process(std::process::id())).await;
    assert_eq!(reply.facts.pid, Some(std::process::id()));
    assert_eq!(reply.facts.uid, Some(nix::unistd::geteuid().as_raw()));
    assert_eq!(reply.facts.gid, Some(nix::unistd::getegid().as_raw()));
    for (subject, part) in [
        (Subject::Process(0), "process 0"),
        (Subject::Process(u32::MAX), "process 4294967295"),
        (Subject::User("no-such-user-here".into()), "this host has no user no-such-user-here"),
        (Subject::User(String::new()), "cannot be the name of a user"),
        (Subject::User("a\nb".into()), "cannot be the name of a user"),
    ] {
        let Reply::Error(error) = ask(&scene, "t", Variant::default(), subject).await else { panic!() };
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        assert!(error.message.contains(part), "{}", error.message);
    }
    let absent = ask(&scene, "absent", Variant::default(), user(ALICE)).await;
    assert_eq!(code(absent), ErrorCode::UnknownToken);
}

#[tokio::test]
async fn root_that_is_switched_off_is_told_so() {
    let tokens = token("t", "") + "[admin]\nroot = \"deny\"";
    let scene = Scene::new(OWN_UID, host(), &tokens);
    let reply = explained(&scene, "t", Subject::User("root".into())).await;
    let reason = "no rule of the token matches; root needs one too ([admin] root = \"deny\")";
    assert_eq!((reply.allowed, reply.reason.as_str(), reply.operator), (false, reason, None));
    assert_eq!((reply.facts.uid, reply.facts.gid), (Some(0), Some(0)));
}

#[tokio::test]
async fn anybody_else_is_told_what_lets_it_in_and_not_the_policy() {
    let rules = "allow = [\"user:bob\", \"user:alice\"]";
    let scene = Scene::new(ALICE, host(), &(token("t", rules) + &token("hidden", FORBIDDEN)));
    let reply = explained(&scene, "t", Subject::Caller).await;
    assert_eq!((reply.allowed, reply.reason.as_str()), (true, "user:alice"));
    assert_eq!((reply.facts.uid, reply.operator, reply.lists), (Some(ALICE), None, vec![]));
    let about_others = [Subject::User("root".into()), user(ALICE), Subject::Process(1)];
    for subject in about_others.iter().cloned().chain([Subject::Caller]) {
        let hidden = ask(&scene, "hidden", Variant::default(), subject.clone()).await;
        let absent = ask(&scene, "absent", Variant::default(), subject).await;
        assert_eq!(hidden, absent);
        assert_eq!(code(hidden), ErrorCode::NotAllowed);
    }
    for subject in about_others {
        let refused = ask(&scene, "t", Variant::default(), subject).await;
        let Reply::Error(error) = refused else { panic!("{refused:?}") };
        assert_eq!(
            (error.code, error.message.as_str()),
            (ErrorCode::NotAllowed, "only an operator may do this")
        );
    }
}

#[tokio::test]
async fn an_explanation_of_very_many_rules_fits_a_frame() {
    let rules: Vec<String> =
        (0..5000).map(|n| format!("{{ user = \"user-{n}\", unit = \"u{n}.service\" }}")).collect();
    let scene = Scene::new(OWN_UID, host(), &token("t", &format!("allow = [{}]", rules.join(", "))));
    let reply = explained(&scene, "t", user(ALICE)).await;
    let shown = reply.lists[0].rules.len();
    assert!(shown > 500, "{shown}");
    assert_eq!(shown + usize::try_from(reply.omitted).unwrap(), 5000);
    encode(&Frame { id: 1, message: Reply::Explained(reply) }, &mut Vec::new()).unwrap();
}

#[tokio::test]
async fn a_unit_is_explained_without_a_user() {
    let rules = "allow = [\"unit:billing.service\", \"user:alice\"]";
    let scene = Scene::new(OWN_UID, host(), &token("t", rules));
    let reply = explained(&scene, "t", Subject::Unit("billing.service".into())).await;
    assert_eq!((reply.allowed, reply.reason.as_str()), (true, "unit:billing.service"));
    assert_eq!((reply.facts.uid, reply.facts.gid), (None, None));
    assert_eq!(reply.facts.unit.as_deref(), Some("billing.service"));
    assert!(!reply.lists[0].rules[1].matches);
    let Reply::Error(error) = ask(&scene, "t", Variant::default(), Subject::Unit("a/b".into())).await else {
        panic!()
    };
    assert_eq!(error.code, ErrorCode::InvalidRequest);
}

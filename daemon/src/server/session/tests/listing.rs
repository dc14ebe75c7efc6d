//! What a listing tells, and what it takes.

use super::*;

/// Forbidden tokens, by far most of them before `m`, each with a rule of its own; and one that alice may have.
fn mostly_forbidden(rule: impl Fn(usize) -> String) -> String {
    let hidden = (0..400).map(|n| token(&format!("b{n}"), &format!("allow = [\"{}\"]", rule(n))));
    hidden.collect::<String>() + &token("z", ALLOWED)
}

fn requests(after: Option<&str>) -> [Request; 2] {
    let after = || after.map(|name| name.parse().unwrap());
    let (list, status) = (PageRequest { after: after() }, StatusRequest { name: None, after: after() });
    [Request::List(list), Request::Status(status)]
}

fn names(reply: &Reply) -> Vec<&str> {
    match reply {
        Reply::List(list) => list.tokens.iter().map(|token| token.name.as_str()).collect(),
        Reply::Status(status) => status.tokens.iter().map(|token| token.name.as_str()).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_page_costs_the_same_look_ups_wherever_it_begins() {
    let lookups = async |request: Request| {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let counting = Directory::asking(move |name| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok((*name == Named::User("alice".into())).then_some(ALICE))
        });
        let scene = Scene::new(ALICE, counting, &mostly_forbidden(|n| format!("user:u{n}")));
        assert_eq!(names(&scene.session.answer(request).await), ["z"]);
        asked.load(Ordering::SeqCst)
    };
    for after in [None, Some("a"), Some("b7"), Some("m")] {
        for request in requests(after) {
            assert_eq!(lookups(request).await, 401, "after {after:?}");
        }
    }
}

#[tokio::test]
async fn a_page_takes_the_same_turns_wherever_it_begins() {
    let turns = async |request: Request| {
        let scene = Scene::new(ALICE, directory(), &mostly_forbidden(|n| format!("user:{}", 5000 + n)));
        // So that nothing but turns is waited for.
        assert_eq!(scene.list().await, ["z"]);
        let mut answer = Box::pin(scene.session.answer(request));
        let mut waits = 0;
        while (&mut answer).now_or_never().is_none() {
            waits += 1;
            tokio::task::yield_now().await;
        }
        waits
    };
    let [list, status] = requests(None);
    let whole = [turns(list).await, turns(status).await];
    assert!(whole.iter().all(|waits| *waits > 0), "{whole:?}");
    for after in ["a", "b7", "m", "z"] {
        let [list, status] = requests(Some(after));
        assert_eq!([turns(list).await, turns(status).await], whole, "after {after}");
    }
}

#[tokio::test]
async fn pages_follow_each_other_without_a_gap_for_whoever_asks() {
    let tokens: String = (0..300).map(|n| token(&format!("t{n:03}"), ALLOWED)).collect();
    for uid in [ALICE, OWN_UID] {
        let scene = Scene::new(uid, directory(), &tokens);
        let mut seen: Vec<String> = Vec::new();
        for page in 1..=4 {
            let after = seen.last().map(|name| name.parse().unwrap());
            let reply = scene.session.answer(Request::Status(StatusRequest { name: None, after })).await;
            seen.extend(names(&reply).into_iter().map(ToOwned::to_owned));
            let Reply::Status(status) = reply else { panic!("{reply:?}") };
            assert_eq!(status.more, page < 4, "page {page}");
        }
        assert!(
            seen.iter().map(String::as_str).eq((0..300)
                .map(|n| format!("t{n:03}"))
                .collect::<Vec<_>>()
                .iter()
                .map(String::as_str))
        );
    }
}

#[tokio::test]
async fn what_a_reload_takes_away_is_not_listed_by_a_listing_that_was_begun_before() {
    let tokens: String = (0..100).map(|n| token(&format!("t{n}"), ALLOWED)).collect();
    for request in requests(None) {
        let scene = Scene::new(ALICE, directory(), &tokens);
        let mut answer = Box::pin(scene.session.answer(request));
        assert!((&mut answer).now_or_never().is_none(), "a name is looked up");
        scene.reload(&token("t1", ALLOWED));
        assert_eq!(names(&answer.await), ["t1"]);
    }
}

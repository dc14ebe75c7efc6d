//! Tests of listings.

use tokend_protocol::Count;

use super::*;

fn names(reply: &Reply) -> Vec<&str> {
    match reply {
        Reply::List(list) => list.tokens.iter().map(|token| token.name.as_str()).collect(),
        Reply::Status(status) => status.tokens.iter().map(|token| token.name.as_str()).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn pages_follow_each_other_without_a_gap() {
    let tokens: String = (0..300).map(|n| token(&format!("t{n:03}"), ALLOWED)).collect();
    for uid in [ALICE, OWN_UID] {
        let scene = Scene::new(uid, host(), &tokens);
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
async fn operators_see_how_often_a_token_was_refused() {
    let scene = Scene::new(ALICE, host(), &(token("open", ALLOWED) + &token("closed", FORBIDDEN)));
    for name in ["closed", "closed", "unknown"] {
        assert_eq!(scene.get(name).await, ErrorCode::NotAllowed);
    }
    let of_operator = Session::new(
        Arc::clone(&scene.session.shared),
        Peer::known(Facts { uid: OWN_UID, gid: OWN_UID, ..Facts::default() }),
    );
    let status = |session: Arc<Session>| async move {
        match session.answer(Request::Status(StatusRequest { name: None, after: None })).await {
            Reply::Status(status) => status.tokens,
            other => panic!("{other:?}"),
        }
    };
    let [closed, open] = &status(Arc::new(of_operator)).await[..] else { panic!("two tokens") };
    let refused = [Count { name: "refused".to_owned(), value: 2 }];
    assert_eq!(
        (closed.name.as_str(), &closed.counts[..], &open.counts[..]),
        ("closed", &refused[..], &[][..])
    );
    let seen = status(Arc::clone(&scene.session)).await;
    assert!(seen.len() == 1 && seen[0].counts.is_empty(), "{seen:?}");
}

//! Tests of listings.

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

//! The fast path, for callers whose requests come together.

use std::time::Duration;

use tokend_protocol::{Fingerprint, Frame, LENGTH_BYTES, Secret, decode, encode};

use super::*;
use crate::clock::Validity;
use crate::engine::credential::Token;

/// One step of the event loop: several callers have turns, and share the memory of the last answer.
struct Step {
    scene: Scene,
    last: LastHeld,
}

impl Step {
    /// A step with a token `t`, which is valid for a minute and which only Alice may have.
    fn new() -> Self {
        let step = Self {
            scene: Scene::new(ALICE, host_with(&[]), &token("t", &format!("allow = [\"user:{ALICE}\"]"))),
            last: LastHeld::default(),
        };
        step.hold("first", 60);
        step
    }

    fn hold(&self, secret: &str, seconds: u64) {
        let shared = &self.scene.session.shared;
        let lifetime = Duration::from_secs(seconds);
        shared.registry.borrow().find("t").unwrap().credential.hold(Token {
            secret: Secret::from(secret.to_owned()),
            fingerprint: Fingerprint([secret.len().try_into().unwrap(); 8]),
            validity: Validity { sent_at: shared.clock.now(), lifetime },
            longest_lifetime: lifetime,
            jitter: 0.5,
            scope: None,
        });
    }

    /// A session of another process, of this user.
    fn other_session(&self, uid: u32) -> Arc<Session> {
        let peer = Peer::known(Facts { uid, gid: uid, pid: Some(7), ..Facts::default() });
        Arc::new(Session::new(Arc::clone(&self.scene.session.shared), peer))
    }

    /// The token for a `get`, in a turn of its own, if the fast path has it.
    fn get(&mut self, session: &Arc<Session>, min_ttl: Duration) -> Option<String> {
        self.last.begin_turn();
        self.get_in_turn(session, min_ttl)
    }

    /// The same in the turn that has begun.
    fn get_in_turn(&mut self, session: &Arc<Session>, min_ttl: Duration) -> Option<String> {
        let options = CallOptions { deadline_ms: 0, min_ttl_ms: min_ttl.as_millis().try_into().unwrap() };
        let request = GetRequest { name: "t".parse().unwrap(), options, variant: Variant::default() };
        let (mut body, mut wire) = (Vec::new(), Vec::new());
        encode(&Frame { id: 5, message: Request::Get(request) }, &mut body).unwrap();
        if !session.get_held(&body[LENGTH_BYTES..], &mut self.last, &mut wire) {
            return None;
        }
        match decode(&wire[LENGTH_BYTES..]).unwrap() {
            Frame { id: 5, message: Reply::Token(reply) } => Some(reply.token.expose().to_owned()),
            other => panic!("{other:?}"),
        }
    }
}

/// Twice: the first call decides, and the second repeats its answer.
fn get_twice(step: &mut Step, session: &Arc<Session>) -> Option<String> {
    let [first, second] = [(); 2].map(|()| step.get(session, Duration::ZERO));
    assert_eq!(first, second);
    second
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_repeated_to_its_caller_alone() {
    let mut step = Step::new();
    let alice = Arc::clone(&step.scene.session);
    assert_eq!(get_twice(&mut step, &alice).as_deref(), Some("first"));
    let (other_process, stranger) = (step.other_session(ALICE), step.other_session(ALICE + 1));
    assert_eq!(step.get(&stranger, Duration::ZERO), None);
    assert_eq!(step.get(&other_process, Duration::ZERO).as_deref(), Some("first"));
    let entry = Arc::clone(alice.shared.registry.borrow().find("t").unwrap());
    assert_eq!(entry.hand_outs(), 3, "each is counted");
}

#[tokio::test(start_paused = true)]
async fn a_repeated_answer_has_the_newest_token() {
    let mut step = Step::new();
    let alice = Arc::clone(&step.scene.session);
    assert_eq!(get_twice(&mut step, &alice).as_deref(), Some("first"));
    step.hold("newer", 60);
    assert_eq!(get_twice(&mut step, &alice).as_deref(), Some("newer"));
}

#[tokio::test(start_paused = true)]
async fn the_next_step_repeats_no_answer_that_has_expired_or_lasts_too_short() {
    let mut step = Step::new();
    step.hold("short", 2);
    let alice = Arc::clone(&step.scene.session);
    assert!(step.get(&alice, Duration::from_secs(1)).is_some());
    tokio::time::advance(Duration::from_millis(900)).await;
    step.last.forget();
    assert_eq!(step.get(&alice, Duration::from_secs(1)), None);
    assert!(get_twice(&mut step, &alice).is_some());
    assert_eq!(step.get(&alice, Duration::from_secs(1)), None, "another request has another answer");
    tokio::time::advance(Duration::from_secs(1)).await;
    step.last.forget();
    assert_eq!(get_twice(&mut step, &alice), None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_repeated_after_a_reload_that_takes_the_token_away() {
    let mut step = Step::new();
    let alice = Arc::clone(&step.scene.session);
    assert!(get_twice(&mut step, &alice).is_some());
    step.scene.reload(&token("t", "allow = [\"user:7\"]"));
    assert_eq!(get_twice(&mut step, &alice), None);
}

#[tokio::test(start_paused = true)]
async fn within_a_turn_an_answer_is_not_repeated_after_another_request() {
    let mut step = Step::new();
    let alice = Arc::clone(&step.scene.session);
    assert!(step.get(&alice, Duration::ZERO).is_some());
    assert_eq!(step.get_in_turn(&alice, Duration::from_secs(1_000)), None, "no token lasts that long");
    step.scene.reload(&token("t", "allow = [\"user:7\"]"));
    assert_eq!(step.get_in_turn(&alice, Duration::ZERO), None);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_repeated_that_was_forgotten() {
    let mut step = Step::new();
    let alice = Arc::clone(&step.scene.session);
    assert!(get_twice(&mut step, &alice).is_some());
    step.last.forget();
    let held = Arc::strong_count(&alice);
    assert!(get_twice(&mut step, &alice).is_some());
    assert_eq!(Arc::strong_count(&alice), held + 1, "only the last answer holds on to its caller");
    step.last.forget();
    assert_eq!(Arc::strong_count(&alice), held);
}

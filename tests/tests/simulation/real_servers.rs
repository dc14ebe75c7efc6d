//! The behaviour of real authorization servers and gateways, one test each.

use std::sync::Arc;
use std::time::Duration;

use tokend::clock::Instant;
use tokend::engine::credential::{Attempted, Credential, Unobtainable};
use tokend::engine::throttle::EndpointThrottle;
use tokend::oauth::{Failure, Refusal};
use tokend_protocol::{ErrorClass, State};

use crate::test_support::{Answer, Scene, Script, Subject, client, fail};

/// A 429 or 503 with `Retry-After`.
fn quiet(class: ErrorClass, seconds: u64) -> Answer {
    Err(Failure { retry_after: Some(Duration::from_secs(seconds)), ..Failure::new(class, "scripted") })
}

fn refused(refusal: Refusal) -> Answer {
    Err(Failure { refusal: Some(refusal), ..Failure::new(ErrorClass::Refused, "scripted") })
}

/// Starts a credential of another client of a token endpoint.
fn start_beside(
    scene: &Scene,
    endpoint: &Arc<EndpointThrottle>,
    subject: &Subject,
    name: &str,
) -> Credential {
    subject.start_at(&client(endpoint, name, scene.clock.now()), None)
}

/// Two clients that are throttled, and a healthy one of the same host that starts a second later.
async fn beside_two_throttled(scene: &Scene, throttled: Script) -> ([Credential; 2], Subject, Credential) {
    let endpoint = Arc::default();
    let first = ["a", "b"].map(|name| start_beside(scene, &endpoint, &scene.subject(name, throttled), name));
    scene.reach(1).await;
    let subject = scene.subject("c", |_| Ok(30));
    let third = start_beside(scene, &endpoint, &subject, "c");
    (first, subject, third)
}

/// How many callers got no token, of one in each second until `until`.
async fn failed_gets(scene: &Scene, subject: &Subject, credential: &Credential, until: u64) -> usize {
    let mut failed = 0;
    while scene.seconds() < Duration::from_secs(until).as_secs_f64() {
        failed += usize::from(subject.get(credential).await.is_err());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    failed
}

#[tokio::test(start_paused = true)]
async fn one_client_that_is_always_throttled_costs_another_client_of_the_host_nothing() {
    for class in [ErrorClass::Throttled, ErrorClass::Server] {
        let scene = Scene::begin(1);
        let answer: Script = match class {
            ErrorClass::Throttled => |_| quiet(ErrorClass::Throttled, 60),
            _ => |_| quiet(ErrorClass::Server, 60),
        };
        let subjects = [scene.subject("a", answer), scene.subject("b", |_| Ok(30))];
        let endpoint = Arc::default();
        let _throttled = start_beside(&scene, &endpoint, &subjects[0], "a");
        let healthy = start_beside(&scene, &endpoint, &subjects[1], "b");
        assert_eq!(failed_gets(&scene, &subjects[1], &healthy, 400).await, 0);
        assert!(subjects[1].asked_at().len() > 10, "{:?}", subjects[1].asked_at());
        assert!(subjects[0].gaps().iter().all(|gap| *gap >= 60.0), "{:?}", subjects[0].gaps());
    }
}

#[tokio::test(start_paused = true)]
async fn a_third_client_gets_its_turn_between_two_that_are_always_throttled() {
    let scene = Scene::begin(2);
    let (_throttled, subject, third) =
        beside_two_throttled(&scene, |_| quiet(ErrorClass::Throttled, 60)).await;
    assert!(
        failed_gets(&scene, &subject, &third, 400).await <= 60,
        "it starts in the quiet of the whole host"
    );
    assert!(subject.asked_at()[0] < 66.0, "{:?}", subject.asked_at());
}

/// An outage from `begin` to `end`, in which callers ask for all tokens each second: when the last of them had a token
/// again, and whether a caller who came back when it was told to found that nobody had asked since.
async fn recovered_after(tokens: usize, begin: u64, end: u64) -> f64 {
    let scene = Scene::begin(3);
    let answer: Script = match end - begin {
        240 => |now| if (100.0..340.0).contains(&now) { fail(ErrorClass::Unreachable) } else { Ok(60) },
        _ => |now| if (100.0..580.0).contains(&now) { fail(ErrorClass::Unreachable) } else { Ok(60) },
    };
    let throttle = Arc::default();
    let subjects: Vec<Subject> = (0..tokens).map(|_| scene.subject("a", answer)).collect();
    let credentials: Vec<Credential> =
        subjects.iter().map(|subject| subject.start_at(&throttle, None)).collect();
    scene.reach(begin).await;
    let mut told: Vec<Option<(f64, Instant)>> = vec![None; tokens];
    loop {
        let mut without = 0;
        for (number, (subject, credential)) in subjects.iter().zip(&credentials).enumerate() {
            match subject.get(credential).await {
                Ok(_) => told[number] = None,
                Err(Unobtainable::Failed(failed, Some(until))) => {
                    without += 1;
                    if let Some((since, at)) = told[number].filter(|(_, at)| *at < scene.clock.now()) {
                        let asked =
                            subjects.iter().any(|subject| subject.asked_at().iter().any(|at| *at >= since));
                        assert!(asked, "told {at:?} at {since}, now {failed:?} until {until:?}");
                    }
                    if told[number].is_none_or(|(_, at)| at < scene.clock.now()) {
                        told[number] = Some((scene.seconds(), until));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        let now = scene.seconds();
        if without == 0 && now > Duration::from_secs(end).as_secs_f64() {
            return now - Duration::from_secs(end).as_secs_f64();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_every_caller_has_a_token_within_half_a_minute_and_was_told_the_truth() {
    for tokens in [1, 20] {
        for end in [340, 580] {
            let after = recovered_after(tokens, 100, end).await;
            assert!(after <= 37.0 + 0.1 * tokens as f64, "{tokens} tokens, until {end}: {after} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_attempt_that_operators_see_while_nobody_asks_is_when_it_comes() {
    let scene = Scene::begin(14);
    let subject = scene.subject("a", |_| fail(ErrorClass::Server));
    let credential = subject.start();
    let mut shown = Vec::new();
    for second in 1..1_800 {
        scene.reach(second).await;
        let next_attempt = credential.next_attempt().unwrap().since(scene.clock.now());
        if credential.snapshot().in_flight {
            continue;
        }
        shown.push((scene.seconds(), scene.seconds() + next_attempt.as_secs_f64()));
    }
    let asked_at = subject.asked_at();
    assert!(asked_at.len() > 15, "{asked_at:?}");
    for (at, next_attempt) in shown {
        if let Some(came) = asked_at.iter().find(|came| **came > at) {
            // It is spread over five seconds.
            assert!(
                (came - 6.0..=came + 0.1).contains(&next_attempt),
                "at {at}: {next_attempt}, and not {came}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn callers_of_many_tokens_probe_an_endpoint_that_is_down_once_in_half_a_minute() {
    let scene = Scene::begin(4);
    let throttle = Arc::default();
    let subjects: Vec<Subject> =
        (0..50).map(|_| scene.subject("a", |_| fail(ErrorClass::Unreachable))).collect();
    let credentials: Vec<Credential> =
        subjects.iter().map(|subject| subject.start_at(&throttle, None)).collect();
    let requests = || subjects.iter().map(|subject| subject.asked_at().len()).sum::<usize>();
    let mut early = 0;
    for second in 1..1_000 {
        scene.reach(second).await;
        for (subject, credential) in subjects.iter().zip(&credentials) {
            let _ = subject.get(credential).await;
        }
        if second == 100 {
            early = requests();
        }
    }
    assert!(early <= 20, "{early} until the back-off has grown");
    assert!(requests() - early <= 900 / 30 + 900 / 120 + 1, "{} in 900 s", requests() - early);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_gives_a_new_token_only_once_the_old_one_has_expired_leaves_no_gap() {
    let scene = Scene::begin(5);
    // It gives the same token again until the whole second at which that expires.
    let subject = scene
        .subject("a", |now| {
            Ok(match now.rem_euclid(20.0) {
                rest if rest < 0.5 => 20,
                rest => (20.0 - rest) as u64,
            })
        })
        .with_token_at(|now| (now / 20.0) as u64);
    let credential = subject.start_at(&Arc::default(), Some(Duration::ZERO));
    let mut longest = 0.0_f64;
    while scene.seconds() < 600.0 {
        let before = scene.seconds();
        let token = subject.get(&credential).await.expect("a caller waits for the new token");
        longest = longest.max(scene.seconds() - before);
        let of = token.secret.expose().trim_start_matches("a-").parse::<f64>().unwrap();
        assert!(scene.seconds() < 20.0 * (of + 1.0), "{} at {}", token.secret.expose(), scene.seconds());
        tokio::time::sleep(Duration::from_millis(70)).await;
    }
    assert!(longest < 3.5, "a caller waited for {longest} s");
}

#[tokio::test(start_paused = true)]
async fn a_short_refusal_costs_no_caller_a_token() {
    // Its token is renewed after 42 s or earlier, while a refusal of 32 s goes on.
    let scene = Scene::begin(6);
    let subject =
        scene.subject("a", |now| if (20.0..52.0).contains(&now) { refused(Refusal::Client) } else { Ok(60) });
    let credential = subject.start();
    assert_eq!(failed_gets(&scene, &subject, &credential, 200).await, 0, "{:?}", subject.asked_at());
}

#[tokio::test(start_paused = true)]
async fn a_gateways_page_passes_and_is_the_operators_after_ten_minutes() {
    let scene = Scene::begin(7);
    let subject = scene.subject("a", |now| {
        if (1.0..481.0).contains(&now) { refused(Refusal::WithoutCode(404)) } else { Ok(60) }
    });
    let credential = subject.start();
    scene.reach(480).await;
    assert!(subject.get(&credential).await.is_err());
    assert_eq!(credential.snapshot().state(scene.clock.now()), State::Unavailable);
    scene.reach(481 + 37).await;
    assert!(subject.get(&credential).await.is_ok(), "{:?}", subject.asked_at());

    let scene = Scene::begin(8);
    let subject = scene.subject("a", |_| refused(Refusal::WithoutCode(404)));
    let credential = subject.start();
    scene.reach(590).await;
    assert_eq!(credential.snapshot().state(scene.clock.now()), State::Unavailable);
    scene.reach(640).await;
    assert_eq!(credential.snapshot().state(scene.clock.now()), State::NeedsOperator);
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_is_the_operators_at_once_and_asked_again_within_five_minutes() {
    let scene = Scene::begin(9);
    let subject = scene.subject("a", |_| refused(Refusal::Client));
    let credential = subject.start();
    scene.reach(1).await;
    assert_eq!(credential.snapshot().state(scene.clock.now()), State::NeedsOperator);
    scene.reach(3_600).await;
    for (gap, least) in
        subject.gaps().iter().zip([60.0, 120.0, 240.0].into_iter().chain(std::iter::repeat(300.0)))
    {
        assert!((least..=1.2 * least + 1.0).contains(gap), "{:?}", subject.gaps());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_password_is_not_sent_more_often_because_its_token_expires() {
    let scene = Scene::begin(10);
    let subject = scene.subject("a", |now| if now < 1.0 { Ok(60) } else { refused(Refusal::User) });
    let _credential = subject.start();
    scene.reach(3_600).await;
    let gaps = &subject.gaps()[1..];
    for (gap, least) in gaps.iter().zip([30.0, 60.0, 120.0, 240.0, 480.0, 900.0]) {
        assert!(*gap >= least, "{gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_password_is_not_sent_more_often_because_other_requests_fail_too() {
    fn refuses(now: f64) -> bool {
        now % 7.0 < 4.0
    }
    let scene = Scene::begin(13);
    let subject = scene.subject("a", |now| {
        if refuses(now) { refused(Refusal::PasswordWithoutCode(401)) } else { fail(ErrorClass::Server) }
    });
    let _credential = subject.start();
    scene.reach(3_600).await;
    let refused_at: Vec<f64> = subject.asked_at().into_iter().filter(|at| refuses(*at)).collect();
    assert!(refused_at.len() < 12, "{refused_at:?}");
    assert!(subject.asked_at().len() > refused_at.len(), "others fail too: {:?}", subject.asked_at());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_with_retry_after_is_not_repeated_earlier() {
    let scene = Scene::begin(11);
    let subject = scene.subject("a", |_| quiet(ErrorClass::Refused, 600));
    let _credential = subject.start();
    scene.reach(3_600).await;
    assert!(subject.gaps().iter().all(|gap| *gap >= 600.0), "{:?}", subject.gaps());
}

#[tokio::test(start_paused = true)]
async fn an_operator_may_ask_for_one_client_while_others_are_throttled() {
    let scene = Scene::begin(12);
    let (_throttled, subject, third) =
        beside_two_throttled(&scene, |_| quiet(ErrorClass::Throttled, 600)).await;
    assert!(subject.get(&third).await.is_err(), "several clients of the host are throttled");
    assert_eq!(third.refresh(scene.deadline()).await, Ok(Attempted::Changed));
}

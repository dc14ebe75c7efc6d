//! Faults of other token caches, one test each. None of them may come to be ours.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokend::engine::credential::{Attempted, Credential, Token, Unobtainable};
use tokend::engine::throttle::{ClientThrottle, EndpointThrottle, OriginThrottle};
use tokend::oauth::Failure;
use tokend::store::ThrottleWriter;
use tokend::store::record::ThrottleRecord;
use tokend_protocol::{ErrorClass, State};

use crate::test_support::{Scene, Script, Subject, client, fail};

const HOUR: u64 = 3_600;

fn class(answer: Result<Arc<Token>, Unobtainable>) -> ErrorClass {
    match answer {
        Err(Unobtainable::Failed(failed, _)) => failed.class,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_evicts_a_valid_token() {
    let scene = Scene::begin(1);
    let subject = scene.subject("a", |now| if now < 1.0 { Ok(1_000) } else { fail(ErrorClass::Refused) });
    let credential = subject.start();
    for second in (100..1_000).step_by(50) {
        scene.reach(second).await;
        let before = scene.seconds();
        assert_eq!(subject.get(&credential).await.unwrap().secret.expose(), "a-1", "at {second}");
        assert!((scene.seconds() - before).abs() < f64::EPSILON, "a caller waited at {second}");
    }
    assert!(subject.asked_at().len() > 2, "it was not tried again");
    scene.reach(1_000).await;
    assert_eq!(class(subject.get(&credential).await), ErrorClass::Refused);
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_kills_the_refresher() {
    let scene = Scene::begin(2);
    let subject = scene.subject("a", |now| match now {
        ..1.0 => Ok(HOUR),
        1.0..40_000.0 => fail(ErrorClass::Refused),
        _ => Ok(HOUR),
    });
    let credential = subject.start();
    scene.reach(40_000).await;
    assert_eq!(class(subject.get(&credential).await), ErrorClass::Refused);
    // Nobody does anything. The longest back-off is a quarter of an hour and a fifth.
    scene.reach(40_000 + 1_081).await;
    assert_eq!(credential.snapshot().state(scene.clock.now()), State::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_token_shorter_than_the_margin_makes_a_hot_loop() {
    let scene = Scene::begin(3);
    let subject = scene.subject("a", |_| Ok(5));
    let _credential = subject.start();
    scene.reach(HOUR).await;
    let least = subject.gaps().into_iter().fold(f64::MAX, f64::min);
    assert!(least >= 3.0 && subject.asked_at().len() > 700, "{least} s, {}", subject.asked_at().len());
}

#[tokio::test(start_paused = true)]
async fn a_fixed_margin_is_longer_than_the_lifetime() {
    let scene = Scene::begin(4);
    let subject = scene.subject("a", |_| Ok(600));
    let credential = subject.start_at(&Arc::default(), Some(Duration::from_secs(HOUR)));
    for minute in 1..60 {
        scene.reach(60 * minute).await;
        subject.get(&credential).await.unwrap();
    }
    let least = subject.gaps().into_iter().fold(f64::MAX, f64::min);
    assert!(least >= 59.9, "a request every {least} s");
}

#[tokio::test(start_paused = true)]
async fn n_callers_make_n_requests() {
    let scene = Scene::begin(5);
    let subject = scene.subject("a", |_| Ok(1_000));
    let credential = subject.start();
    for token in join_all((0..1_000).map(|_| subject.get(&credential))).await {
        assert_eq!(token.unwrap().secret.expose(), "a-1");
    }
    // Again once it has expired, with a lifetime that no renewal has met because the host slept.
    scene.host.suspend(Duration::from_secs(2_000));
    for token in join_all((0..1_000).map(|_| subject.get(&credential))).await {
        assert_eq!(token.unwrap().secret.expose(), "a-2");
    }
    assert_eq!(subject.asked_at().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn concurrent_requests_get_each_others_token() {
    let scene = Scene::begin(6);
    let scopes = ["accounts", "payments", "funds", "cards"];
    let subjects = scopes.map(|scope| scene.subject(scope, |_| Ok(1_000)));
    // Each with an issuer of its own, so that all replies come at the same moment.
    let credentials: Vec<Credential> = subjects.iter().map(Subject::start).collect();
    let callers = (0..200).map(|caller| {
        let scope = caller % 4;
        let token = subjects[scope].get(&credentials[scope]);
        async move { (scope, token.await.unwrap()) }
    });
    for (scope, token) in join_all(callers).await {
        let expected = ["accounts-1", "payments-1", "funds-1", "cards-1"][scope];
        assert_eq!(token.secret.expose(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn waiters_fan_out_after_the_leader_fails() {
    let scene = Scene::begin(7);
    let subject = scene.subject("a", |_| fail(ErrorClass::Server));
    let credential = subject.start();
    for answer in join_all((0..500).map(|_| subject.get(&credential))).await {
        assert_eq!(class(answer), ErrorClass::Server);
    }
    for answer in join_all((0..500).map(|_| subject.get(&credential))).await {
        assert_eq!(class(answer), ErrorClass::Server, "who comes during the back-off");
    }
    assert_eq!(subject.asked_at().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn back_off_is_computed_and_not_used() {
    let scene = Scene::begin(8);
    let subject = scene.subject("a", |_| fail(ErrorClass::Unreachable));
    let credential = subject.start();
    for second in 1..600 {
        scene.reach(second).await;
        let _ = subject.get(&credential).await;
    }
    let gaps = subject.gaps();
    for (gap, least) in gaps.iter().zip([0.8, 1.6, 3.2, 6.4, 12.8].into_iter().chain(std::iter::repeat(24.0)))
    {
        assert!(*gap >= least, "{gap} s where {least} s are due: {gaps:?}");
    }
    // Half a minute and a fifth is the longest back-off of a token that callers wait for.
    assert!(gaps.iter().all(|gap| *gap <= 37.0), "callers are failing meanwhile: {gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_ignored() {
    let scene = Scene::begin(9);
    let throttle: Arc<ClientThrottle> = Arc::default();
    let throttled = scene.subject("a", |now| {
        let failure = Failure::new(ErrorClass::Throttled, "scripted");
        if now < 60.0 {
            Err(Failure { retry_after: Some(Duration::from_secs(60)), ..failure })
        } else {
            Ok(1_000)
        }
    });
    let first = throttled.start_at(&throttle, None);
    scene.reach(1).await;
    let others: Vec<Subject> = (0..20).map(|_| scene.subject("b", |_| Ok(1_000))).collect();
    let credentials: Vec<Credential> = others.iter().map(|other| other.start_at(&throttle, None)).collect();
    for second in 2..60 {
        scene.reach(second).await;
        let _ = throttled.get(&first).await;
        for (other, credential) in others.iter().zip(&credentials) {
            let _ = other.get(credential).await;
        }
        let refreshed = credentials[0].refresh(scene.deadline()).await.unwrap();
        assert!(matches!(refreshed, Attempted::Failed(..)), "{refreshed:?}");
    }
    let asked: usize = others.iter().map(|other| other.asked_at().len()).sum();
    assert_eq!((throttled.asked_at().len(), asked), (1, 0));
    scene.reach(75).await;
    assert!(others.iter().all(|other| other.asked_at().len() == 1), "quiet has an end");
}

#[tokio::test(start_paused = true)]
async fn jitter_is_rolled_again_at_each_check() {
    let scene = Scene::begin(10);
    let subjects: Vec<Subject> = (0..400).map(|_| scene.subject("a", |_| Ok(HOUR))).collect();
    let credentials: Vec<Credential> = subjects.iter().map(Subject::start).collect();
    scene.reach(1).await;
    let planned: Vec<_> = credentials.iter().map(|credential| credential.snapshot().next_attempt).collect();
    // Each step of the clock makes all schedules be looked at.
    for second in (10..2_500).step_by(10) {
        scene.reach(second).await;
        scene.host.set_ahead(Duration::from_secs(1));
    }
    let kept: Vec<_> = credentials.iter().map(|credential| credential.snapshot().next_attempt).collect();
    assert_eq!(planned, kept);
    scene.reach(HOUR).await;
    let renewed: Vec<f64> = subjects.iter().map(|subject| subject.gaps()[0]).collect();
    // Evenly between 70 % and 80 % of the life: its mean, and both of its ends.
    let mean = renewed.iter().sum::<f64>() / 400.0;
    assert!((2_690.0..2_710.0).contains(&mean), "{mean}");
    assert!(renewed.iter().any(|at| *at < 2_540.0) && renewed.iter().any(|at| *at > 2_860.0));
}

#[tokio::test(start_paused = true)]
async fn the_host_sleeps_over_the_expiry() {
    let scene = Scene::begin(11);
    let subject = scene.subject("a", |_| Ok(1_000));
    let (called, left_alone) = (subject.start(), subject.start());
    scene.reach(500).await;
    scene.host.suspend(Duration::from_secs(HOUR));
    let resumed = scene.clock.now();
    let token = subject.get(&called).await.unwrap();
    assert!(token.validity.sent_at >= resumed, "an expired token was served");
    assert!(scene.clock.now().since(resumed) < Duration::from_secs(1));
    scene.reach(500 + HOUR + 6).await;
    assert_eq!(left_alone.snapshot().state(scene.clock.now()), State::Fresh);
}

#[tokio::test(start_paused = true)]
async fn all_that_was_due_while_the_host_slept_happens_at_once() {
    let scene = Scene::begin(12);
    let subjects: Vec<Subject> = (0..200).map(|_| scene.subject("a", |_| Ok(1_000))).collect();
    // Each with an issuer of its own, none of which holds back another's token.
    let _credentials: Vec<Credential> = subjects.iter().map(Subject::start).collect();
    scene.reach(500).await;
    scene.host.suspend(Duration::from_secs(HOUR));
    let resumed = scene.seconds();
    scene.reach(500 + HOUR + 6).await;
    let mut per_second = [0; 5];
    for subject in &subjects {
        per_second[(subject.asked_at()[1] - resumed) as usize] += 1;
    }
    assert!(per_second.iter().all(|renewed| (20..60).contains(renewed)), "{per_second:?}");
}

#[tokio::test(start_paused = true)]
async fn the_wall_clock_is_set_back_an_hour_and_forward_a_day() {
    let scene = Scene::begin(13);
    let subject = scene.subject("a", |now| if now < 3_000.0 { Ok(HOUR) } else { fail(ErrorClass::Server) });
    let credential = subject.start();
    scene.reach(100).await;
    let planned = credential.snapshot().next_attempt;
    scene.host.set_back(Duration::from_secs(HOUR));
    scene.reach(200).await;
    scene.host.set_ahead(Duration::from_secs(24 * HOUR));
    scene.reach(300).await;
    assert_eq!(subject.get(&credential).await.unwrap().secret.expose(), "a-1");
    assert_eq!((subject.asked_at().len(), credential.snapshot().next_attempt), (1, planned));
    // The renewed token expires on time as well, whatever the wall clock shows.
    scene.reach(2_900).await;
    let renewed = subject.get(&credential).await.unwrap();
    assert_eq!(renewed.secret.expose(), "a-2");
    scene.host.set_back(Duration::from_secs(24 * HOUR));
    scene.clock.sleep_until(renewed.validity.expires_at()).await;
    assert_eq!(class(subject.get(&credential).await), ErrorClass::Server);
}

#[tokio::test(start_paused = true)]
async fn discovery_or_dns_fails_at_start_up() {
    // No name, a gateway's 502 for the metadata, a 404 for it; and the longest back-off after each.
    let cases: [(Script, u64); 3] = [
        (|now| if now < 600.0 { fail(ErrorClass::Unreachable) } else { Ok(HOUR) }, 150),
        (|now| if now < 600.0 { fail(ErrorClass::Server) } else { Ok(HOUR) }, 150),
        (|now| if now < 600.0 { fail(ErrorClass::Refused) } else { Ok(HOUR) }, 1_080),
    ];
    for (answer, longest) in cases {
        let scene = Scene::begin(14);
        let subject = scene.subject("a", answer);
        let credential = subject.start();
        scene.reach(600 + longest).await;
        assert_eq!(credential.snapshot().state(scene.clock.now()), State::Fresh, "{:?}", subject.asked_at());
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_200_ends_the_schedule() {
    let scene = Scene::begin(15);
    // What the parser makes of a reply with nothing in it.
    let subject = scene.subject("a", |now| {
        if (1.0..3_500.0).contains(&now) { fail(ErrorClass::Malformed) } else { Ok(HOUR) }
    });
    let credential = subject.start();
    scene.reach(3_499).await;
    assert_eq!(subject.get(&credential).await.unwrap().secret.expose(), "a-1");
    scene.reach(3_599).await;
    assert_ne!(subject.get(&credential).await.unwrap().secret.expose(), "a-1", "{:?}", subject.asked_at());
}

#[tokio::test(start_paused = true)]
async fn one_failing_realm_slows_all_others_of_its_host() {
    let scene = Scene::begin(16);
    let origin: Arc<OriginThrottle> = Arc::default();
    let realm = || {
        let (writer, record) = (ThrottleWriter::default(), ThrottleRecord::default());
        client(
            &Arc::new(EndpointThrottle::new(Arc::clone(&origin), writer, record)),
            "client",
            scene.clock.now(),
        )
    };
    let failing = scene.subject("a", |_| fail(ErrorClass::Server));
    let _failing = failing.start_at(&realm(), None);
    scene.reach(600).await;
    let healthy = scene.subject("b", |_| Ok(1_000));
    let credential = healthy.start_at(&realm(), None);
    scene.reach(602).await;
    assert_eq!(credential.snapshot().state(scene.clock.now()), State::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_caller_waits_behind_all_scheduled_renewals_after_an_outage() {
    let scene = Scene::begin(17);
    let throttle: Arc<ClientThrottle> = Arc::default();
    // All 2,000 tokens expire in an outage; afterwards, twenty are renewed in a second.
    let answer: Script =
        |now| if (300.0..2_000.0).contains(&now) { fail(ErrorClass::Unreachable) } else { Ok(1_000) };
    let subjects: Vec<Subject> = (0..2_000).map(|_| scene.subject("a", answer)).collect();
    let credentials: Vec<Credential> =
        subjects.iter().map(|subject| subject.start_at(&throttle, None)).collect();
    scene.reach(2_000).await;
    // Until the first token that gets through ends the outage for all of them.
    let is_renewed = |subject: &Subject| subject.asked_at().last().is_some_and(|at| *at >= 2_000.0);
    while subjects.iter().filter(|subject| is_renewed(subject)).count() < 40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let behind = subjects.iter().rposition(|subject| !is_renewed(subject)).unwrap();
    let before = scene.seconds();
    subjects[behind].get(&credentials[behind]).await.unwrap();
    let waited = scene.seconds() - before;
    let left = subjects.iter().filter(|subject| !is_renewed(subject)).count();
    assert!(waited < 2.0 && left > 1_000, "waited for {waited} s, {left} tokens are still to be renewed");
}

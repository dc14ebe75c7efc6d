use std::sync::Mutex;

use super::*;

/// A caller of a token that failed.
const NEEDED: Urgency = Urgency::Needed { has_failed: true };

struct Scene {
    throttle: ClientThrottle,
    clock: Clock,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        let clock = Clock::simulated();
        Self { throttle: ClientThrottle::default(), start: clock.now(), clock }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start.after(Duration::from_secs(seconds))
    }

    /// Waits until `seconds` after the start.
    async fn reach(&self, seconds: u64) {
        self.clock.sleep_until(self.at(seconds)).await;
    }

    async fn admit(&self, urgency: Urgency) -> Result<Admission<'_>, HeldBack> {
        self.throttle.admit(urgency, &self.clock).await
    }

    async fn held_until(&self, urgency: Urgency) -> Option<Instant> {
        self.admit(urgency).await.err().map(|held| held.until)
    }

    fn fail(&self, times: u32) {
        for _ in 0..times {
            self.throttle.endpoint.failed(ErrorClass::Server, true, self.clock.now(), 0.0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn quiet_holds_back_all_requests_and_is_never_shortened() {
    let scene = Scene::new();
    scene.throttle.keep_quiet(scene.at(100), scene.clock.now());
    scene.throttle.keep_quiet(scene.at(50), scene.clock.now());
    scene.reach(99).await;
    for urgency in [Urgency::Scheduled, NEEDED] {
        assert_eq!(scene.held_until(urgency).await, Some(scene.at(100)));
    }
    scene.reach(100).await;
    assert_eq!(scene.held_until(Urgency::Scheduled).await, None);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_four_requests_are_in_flight() {
    let scene = Scene::new();
    let mut admitted = Vec::new();
    for _ in 0..4 {
        admitted.push(scene.admit(NEEDED).await.unwrap());
    }
    let fifth = tokio::time::timeout(Duration::from_secs(60), scene.admit(NEEDED)).await;
    assert!(fifth.is_err(), "it waits for a place");
    admitted.pop();
    assert!(scene.admit(NEEDED).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn requests_keep_the_configured_spacing() {
    let scene = Scene::new();
    scene.throttle.origin().limit(Some(6));
    for turn in 0..5 {
        drop(scene.admit(NEEDED).await.unwrap());
        assert_eq!(scene.clock.now(), scene.at(turn * 10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_turn_is_not_sent_into_a_quiet_that_began_meanwhile() {
    let scene = Scene::new();
    scene.throttle.origin().limit(Some(6));
    drop(scene.admit(NEEDED).await.unwrap());
    let quiet = async {
        scene.reach(5).await;
        scene.throttle.keep_quiet(scene.at(60), scene.clock.now());
    };
    let (held, ()) = tokio::join!(scene.held_until(NEEDED), quiet);
    assert_eq!(held, Some(scene.at(60)));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_is_down_after_three_failures_in_a_row_and_up_with_its_first_answer() {
    let scene = Scene::new();
    scene.fail(2);
    assert_eq!(scene.held_until(Urgency::Scheduled).await, None, "now and then is not down");
    scene.reach(1).await;
    scene.fail(1);
    for urgency in [Urgency::Scheduled, NEEDED] {
        assert_eq!(scene.held_until(urgency).await, Some(scene.at(2)));
    }
    assert_eq!(scene.held_until(Urgency::Ordered).await, None, "an operator may ask");
    scene.throttle.endpoint.reset();
    assert_eq!(scene.held_until(Urgency::Scheduled).await, None);
}

#[tokio::test(start_paused = true)]
async fn while_an_endpoint_is_down_one_request_at_a_time_probes_it_ever_more_rarely() {
    let scene = Scene::new();
    scene.fail(3);
    scene.reach(1).await;
    let probe = scene.admit(Urgency::Scheduled).await.unwrap();
    assert_eq!(scene.held_until(Urgency::Scheduled).await, Some(scene.at(2)), "another one is finding out");
    scene.fail(5);
    drop(probe);
    assert_eq!(scene.held_until(Urgency::Scheduled).await, Some(scene.at(3)), "five at once are one failure");
    scene.reach(3).await;
    assert_eq!(scene.held_until(Urgency::Scheduled).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_makes_room_for_the_next() {
    let scene = Scene::new();
    scene.fail(3);
    scene.reach(1).await;
    drop(scene.admit(Urgency::Scheduled).await);
    assert_eq!(scene.held_until(Urgency::Scheduled).await, None);
}

#[test]
fn a_start_with_few_tokens_is_immediate_and_one_with_many_is_spread_as_the_limit_demands() {
    let origin = OriginThrottle::default();
    assert_eq!(origin.start_delay(4, 0.9), Duration::ZERO);
    assert_eq!(origin.start_delay(10_004, 0.5), Duration::from_secs(250));
    origin.limit(Some(60_000));
    assert_eq!(origin.start_delay(10_004, 0.5), Duration::from_secs(5));
    origin.limit(Some(60));
    assert_eq!(origin.start_delay(104, 0.5), Duration::from_secs(50));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_caller_takes_the_next_turn_before_all_scheduled_requests() {
    let scene = Scene::new();
    scene.throttle.origin().limit(Some(60));
    drop(scene.admit(Urgency::Scheduled).await.unwrap());
    let order = Mutex::new(Vec::new());
    let wait = async |urgency, name: &'static str| {
        let admission = scene.admit(urgency).await.unwrap();
        order.lock().unwrap().push((name, scene.clock.now().since(scene.start).as_secs()));
        drop(admission);
    };
    let caller = async {
        scene.clock.sleep_until(scene.start.after(Duration::from_millis(500))).await;
        wait(NEEDED, "caller").await;
    };
    tokio::join!(
        wait(Urgency::Scheduled, "first"),
        wait(Urgency::Scheduled, "second"),
        wait(Urgency::Scheduled, "third"),
        caller
    );
    let order = order.into_inner().unwrap();
    assert_eq!(order, [("caller", 1), ("first", 2), ("second", 3), ("third", 4)]);
}

#[tokio::test(start_paused = true)]
async fn a_failing_endpoint_does_not_slow_another_one_of_its_host() {
    let scene = Scene::new();
    let origin: Arc<OriginThrottle> = Arc::default();
    let [failing, other] = [(); 2].map(|()| {
        let (writer, record) = (ThrottleWriter::default(), ThrottleRecord::default());
        let endpoint = Arc::new(EndpointThrottle::new(Arc::clone(&origin), writer, record));
        ClientThrottle { endpoint, ..Default::default() }
    });
    let scene = Scene { throttle: failing, ..scene };
    scene.fail(3);
    scene.reach(1).await;
    assert!(scene.held_until(Urgency::Scheduled).await.is_none(), "it may be tried again");
    scene.fail(1);
    assert!(scene.held_until(Urgency::Scheduled).await.is_some());
    assert!(other.admit(Urgency::Scheduled, &scene.clock).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_admitted_one_count_towards_the_rate() {
    let scene = Scene::new();
    scene.throttle.origin().limit(Some(60));
    drop(scene.throttle.admit(Urgency::Scheduled, &scene.clock).await.unwrap());
    scene.throttle.origin().also_sent(2, scene.clock.now());
    drop(scene.throttle.admit(Urgency::Scheduled, &scene.clock).await.unwrap());
    assert_eq!(scene.clock.now(), scene.at(3));
}

/// Clients of one endpoint.
fn clients<const N: usize>(scene: &Scene, names: [&str; N]) -> [ClientThrottle; N] {
    let endpoint = &scene.throttle.endpoint;
    names.map(|name| ClientThrottle {
        endpoint: Arc::clone(endpoint),
        name: name.into(),
        ..Default::default()
    })
}

#[tokio::test(start_paused = true)]
async fn one_clients_retry_after_holds_back_no_other_client() {
    let scene = Scene::new();
    let [asked, other] = clients(&scene, ["asked", "other"]);
    asked.keep_quiet(scene.at(60), scene.start);
    assert!(asked.admit(Urgency::Ordered, &scene.clock).await.is_err());
    for urgency in [Urgency::Scheduled, NEEDED] {
        assert!(other.admit(urgency, &scene.clock).await.is_ok(), "{urgency:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_two_clients_are_asked_for_is_the_hosts_and_the_others_go_first_when_it_ends() {
    let scene = Scene::new();
    let [one, two, other] = clients(&scene, ["one", "two", "other"]);
    let until = |throttle: &ClientThrottle| {
        throttle.check(NEEDED, scene.clock.now()).err().map(|held| held.until.since(scene.start).as_secs())
    };
    one.keep_quiet(scene.at(60), scene.start);
    two.keep_quiet(scene.at(62), scene.start);
    assert_eq!([&one, &two, &other].map(until), [Some(66), Some(68), Some(60)]);
    assert!(other.check(Urgency::Ordered, scene.start).is_ok(), "an operator may ask");
    scene.reach(61).await;
    assert_eq!([&one, &two, &other].map(until), [Some(66), Some(68), None]);
    other.granted();
    scene.reach(66).await;
    one.keep_quiet(scene.at(120), scene.clock.now());
    assert_eq!(until(&other), None, "it was given a token while the first two were not");
}

#[tokio::test(start_paused = true)]
async fn one_tokens_failures_keep_no_caller_from_another_token_until_that_fails_too() {
    let scene = Scene::new();
    for is_first in [true, false, false] {
        scene.throttle.endpoint.failed(ErrorClass::Server, is_first, scene.start, 0.0);
    }
    let other = Urgency::Needed { has_failed: false };
    assert!(scene.admit(NEEDED).await.is_err());
    assert!(scene.admit(other).await.is_ok());
    scene.throttle.endpoint.failed(ErrorClass::Server, true, scene.clock.now(), 0.0);
    assert!(scene.admit(other).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_caller_probes_an_endpoint_that_is_down_half_a_minute_after_the_last_request() {
    let scene = Scene::new();
    for second in [0, 1, 2, 4, 8, 16, 32, 64] {
        scene.reach(second).await;
        drop(scene.admit(Urgency::Ordered).await.unwrap());
        scene.fail(3);
    }
    assert_eq!(scene.held_until(Urgency::Scheduled).await, Some(scene.at(128)));
    assert_eq!(scene.held_until(NEEDED).await, Some(scene.at(94)));
    scene.reach(94).await;
    let probe = scene.admit(NEEDED).await.unwrap();
    let waits = scene.throttle.admit(NEEDED, &scene.clock);
    let probed = async {
        scene.reach(100).await;
        scene.fail(1);
        drop(probe);
    };
    let (held, ()) = tokio::join!(waits, probed);
    assert_eq!(held.err().map(|held| held.until), Some(scene.at(124)), "it waited for what the probe found");
}

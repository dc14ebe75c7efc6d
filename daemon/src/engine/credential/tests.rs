//! The actor against a scripted provider, in simulated time: every request at its exact second.

use std::sync::Mutex;

use tokend_protocol::{Secret, State};

use super::*;
use crate::clock::Validity;
use crate::engine::throttle::Urgency;
use crate::oauth::{Failure, Granted, Outcome};

/// What the scripted provider does with one request.
#[derive(Clone)]
enum Step {
    /// Gives the named token for so many seconds.
    Token(&'static str, u64),
    /// Fails.
    Fail(ErrorClass),
    /// Fails and asks for so many seconds of quiet.
    Throttle(u64),
    /// Refuses this token and says when to come again.
    RefusedFor(u64),
    /// Takes so many seconds before it goes on with the next step.
    Delay(u64),
    /// Panics.
    Panic,
}

use Step::{Delay, Fail, Panic, Throttle, Token as Give};

/// Plays its steps, then the last one for ever. Remembers when it was asked.
#[derive(Clone)]
struct Script {
    steps: Arc<Mutex<Vec<Step>>>,
    asked_at: Arc<Mutex<Vec<u64>>>,
    clock: Clock,
    start: Instant,
    /// Tells that something on the host has changed.
    change: Arc<tokio::sync::Notify>,
}

impl Script {
    fn new(steps: &[Step]) -> Self {
        let clock = Clock::simulated();
        let start = clock.now();
        let steps = Arc::new(Mutex::new(steps.iter().rev().cloned().collect()));
        Self { steps, asked_at: Arc::default(), clock, start, change: Arc::default() }
    }

    /// Another provider in the same time.
    fn beside(&self, steps: &[Step]) -> Self {
        let steps = Arc::new(Mutex::new(steps.iter().rev().cloned().collect()));
        Self { steps, asked_at: Arc::default(), change: Arc::default(), ..self.clone() }
    }

    fn next(&self) -> Step {
        let mut steps = self.steps.lock().unwrap();
        if steps.len() > 1 { steps.pop().unwrap() } else { steps[0].clone() }
    }

    fn asked_at(&self) -> Vec<u64> {
        self.asked_at.lock().unwrap().clone()
    }

    fn seconds(&self) -> u64 {
        self.clock.now().since(self.start).as_secs()
    }

    /// Starts a credential without jitter.
    fn start(&self, refresh_before: Option<Duration>) -> Credential {
        self.start_with(Arc::default(), refresh_before)
    }

    /// Starts a credential that nobody has used yet.
    fn start_resting(&self, renewal_mode: RenewalMode) -> Credential {
        let schedule = Schedule { names: "test".into(), refresh_before: None, renewal_mode };
        self.start_from(Arc::default(), schedule, StartState::default())
    }

    fn start_with(&self, throttle: Arc<ClientThrottle>, refresh_before: Option<Duration>) -> Credential {
        self.start_from(throttle, Schedule { refresh_before, ..schedule() }, StartState::default())
    }

    fn start_from(&self, throttle: Arc<ClientThrottle>, schedule: Schedule, start: StartState) -> Credential {
        Credential::start(self.clone(), throttle, schedule, start, &self.actor_context())
    }

    fn actor_context(&self) -> Arc<ActorContext> {
        Arc::new(ActorContext {
            clock: self.clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::with_key(&[7; 32])),
            roll: || 0.0,
            tasks: TaskTracker::new(),
        })
    }

    fn deadline(&self) -> Instant {
        self.clock.now().after(Duration::from_secs(30))
    }

    async fn run_for(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

impl Provider for Script {
    async fn request(&self) -> Outcome {
        self.asked_at.lock().unwrap().push(self.seconds());
        loop {
            let result = match self.next() {
                Delay(seconds) => {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    continue;
                }
                Give(token, seconds) => Ok(Granted {
                    token: Secret::from(token.to_owned()),
                    lifetime: Duration::from_secs(seconds),
                    scope: None,
                }),
                Fail(class) => Err(Failure::new(class, "scripted")),
                Throttle(seconds) => Err(Failure {
                    retry_after: Some(Duration::from_secs(seconds)),
                    ..Failure::new(ErrorClass::Throttled, "scripted")
                }),
                Step::RefusedFor(seconds) => Err(Failure {
                    retry_after: Some(Duration::from_secs(seconds)),
                    ..Failure::new(ErrorClass::Refused, "scripted")
                }),
                Panic => panic!("scripted"),
            };
            return Outcome::of(result, 1);
        }
    }

    async fn changed(&self) {
        self.change.notified().await;
    }
}

/// Renewed always, with the usual margin.
fn schedule() -> Schedule {
    Schedule { names: "test".into(), refresh_before: None, renewal_mode: RenewalMode::Always }
}

fn text(obtained: Result<Arc<Token>, Unobtainable>) -> String {
    obtained.map_or_else(|reason| format!("{reason:?}"), |token| token.secret.expose().to_owned())
}

fn class(obtained: Result<Arc<Token>, Unobtainable>) -> ErrorClass {
    match obtained {
        Err(Unobtainable::Failed(failed, _)) => failed.class,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn renews_ahead_of_expiry_again_and_again() {
    let script = Script::new(&[Give("a", 1000), Give("b", 1000), Give("c", 100), Give("d", 1000)]);
    let credential = script.start(None);
    script.run_for(1800).await;
    // 70 % of 1000 s and of 100 s: the margin of short lives is 30 %.
    assert_eq!(script.asked_at(), [0, 700, 1400, 1470]);
    assert_eq!(credential.snapshot().state(script.clock.now()), State::Fresh);
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_by_class_and_callers_while_they_wait() {
    let failures = [Fail(ErrorClass::Timeout), Fail(ErrorClass::Server), Fail(ErrorClass::Timeout)];
    let script = Script::new(&[&failures[..], &[Delay(10), Give("a", 1000)]].concat());
    let credential = script.start(None);
    while script.asked_at().len() < 4 {
        script.run_for(1).await;
    }
    let waiting = async {
        script.run_for(1).await;
        credential.waiting()
    };
    let deadline = script.deadline();
    let (first, second, waited) = tokio::join!(
        credential.obtain(Duration::ZERO, deadline),
        credential.obtain(Duration::ZERO, deadline),
        waiting
    );
    assert_eq!((text(first), text(second), waited, credential.waiting()), ("a".into(), "a".into(), 2, 0));
    assert_eq!(*credential.snapshot().failed, [(ErrorClass::Timeout, 2), (ErrorClass::Server, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_margin_of_zero_asks_again_only_once_the_token_has_expired() {
    let script = Script::new(&[Give("a", 86_400), Give("b", 86_400)]);
    let credential = script.start(Some(Duration::ZERO));
    script.run_for(86_399).await;
    let token = credential.obtain(Duration::ZERO, script.deadline()).await;
    assert!(token.is_ok(), "a caller waits for the new one");
    assert_eq!(script.asked_at(), [0, 86_400], "also in the second for which it is not served any more");
}

#[tokio::test(start_paused = true)]
async fn a_held_token_is_served_at_once_while_the_provider_hangs() {
    let script = Script::new(&[Give("a", 1000), Delay(250), Give("b", 1000)]);
    let credential = script.start(None);
    script.run_for(750).await;
    let before = script.clock.now();
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a");
    assert_eq!(script.clock.now(), before, "it waited");
    assert_eq!(credential.snapshot().state(before), State::Refreshing);
}

#[tokio::test(start_paused = true)]
async fn no_failure_of_any_class_takes_a_valid_token_away_or_ends_the_renewal() {
    use ErrorClass::{Internal, Malformed, Refused, Secret, Server, Throttled, Timeout, Tls, Unreachable};
    for failing in [Unreachable, Timeout, Tls, Throttled, Server, Malformed, Refused, Secret, Internal] {
        let script = Script::new(&[Give("a", 10_000), Fail(failing), Fail(failing), Give("b", 10_000)]);
        let credential = script.start(None);
        script.run_for(8001).await;
        assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a", "{failing:?}");
        assert_eq!(credential.snapshot().state(script.clock.now()), State::Degraded, "{failing:?}");
        script.run_for(200).await;
        assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "b", "{failing:?}");
        assert_eq!(credential.snapshot().state(script.clock.now()), State::Fresh, "{failing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_never_served_and_the_caller_is_told_the_reason_at_once() {
    let script = Script::new(&[Give("a", 100), Fail(ErrorClass::Server)]);
    let credential = script.start(None);
    script.run_for(101).await;
    let before = script.clock.now();
    assert_eq!(class(credential.obtain(Duration::ZERO, script.deadline()).await), ErrorClass::Server);
    assert_eq!(script.clock.now(), before, "it waited, or asked the provider on a caller's behalf");
    assert_eq!(credential.snapshot().state(before), State::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_of_a_token_not_yet_fetched_cost_one_request() {
    let script = Script::new(&[Delay(2), Give("a", 1000)]);
    let credential = script.start(None);
    let obtained = (0..1000).map(|_| credential.obtain(Duration::ZERO, script.deadline()));
    for token in futures_util::future::join_all(obtained).await {
        assert_eq!(text(token), "a");
    }
    assert_eq!(script.asked_at().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn callers_who_waited_for_an_attempt_that_failed_do_not_each_try_again() {
    let script = Script::new(&[Delay(2), Fail(ErrorClass::Server)]);
    let credential = script.start(None);
    let obtained = (0..1000).map(|_| credential.obtain(Duration::ZERO, script.deadline()));
    for token in futures_util::future::join_all(obtained).await {
        assert_eq!(class(token), ErrorClass::Server);
    }
    assert_eq!(script.asked_at().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_waits_no_longer_than_its_deadline() {
    let script = Script::new(&[Delay(20), Give("a", 1000)]);
    let credential = script.start(None);
    let deadline = script.clock.now().after(Duration::from_secs(3));
    assert_eq!(
        credential.obtain(Duration::ZERO, deadline).await.unwrap_err(),
        Unobtainable::DeadlineExceeded
    );
    assert_eq!(script.seconds(), 3);
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a", "the request went on");
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_and_the_first_success_ends_it() {
    let script = Script::new(&[Fail(ErrorClass::Server); 1]);
    let credential = script.start(None);
    script.run_for(60).await;
    // After 1, 2, 4, 8, 16 and then 30 s, because no token is held.
    assert_eq!(script.asked_at(), [0, 1, 3, 7, 15, 31]);
    script.steps.lock().unwrap()[0] = Give("a", 1000);
    script.run_for(30).await;
    let snapshot = credential.snapshot();
    assert_eq!((snapshot.failures, snapshot.last_error.clone()), (0, None));
}

#[tokio::test(start_paused = true)]
async fn retry_after_holds_back_every_token_of_the_host() {
    let throttle = Arc::new(ClientThrottle::default());
    let first = Script::new(&[Throttle(60), Give("a", 1000)]);
    let throttled = first.start_with(Arc::clone(&throttle), None);
    first.run_for(1).await;
    let second = first.beside(&[Give("b", 1000)]);
    let held_back = second.start_with(throttle, None);
    assert_eq!(class(held_back.obtain(Duration::ZERO, second.deadline()).await), ErrorClass::Throttled);
    first.run_for(58).await;
    assert_eq!((first.asked_at(), second.asked_at()), (vec![0], vec![]));
    first.run_for(2).await;
    assert_eq!((first.asked_at(), second.asked_at()), (vec![0, 60], vec![60]));
    assert_eq!(text(throttled.obtain(Duration::ZERO, first.deadline()).await), "a");
    assert_eq!(text(held_back.obtain(Duration::ZERO, second.deadline()).await), "b");
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_becomes_readable_is_used_at_the_next_call() {
    let script = Script::new(&[Fail(ErrorClass::Secret); 1]);
    let credential = script.start(None);
    script.run_for(600).await;
    assert_eq!(class(credential.obtain(Duration::ZERO, script.deadline()).await), ErrorClass::Secret);
    script.steps.lock().unwrap()[0] = Give("a", 1000);
    script.run_for(2).await;
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a");
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hands_out_its_own_cached_token_is_not_asked_in_a_loop() {
    let script =
        Script::new(&[Give("a", 1000), Give("a", 300), Give("a", 90), Give("a", 1), Give("b", 1000)]);
    let _credential = script.start(None);
    script.run_for(1100).await;
    assert_eq!(script.asked_at(), [0, 700, 910, 999, 1000]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_lives_for_seconds_does_not_spin() {
    let script = Script::new(&[Give("a", 5), Give("b", 5)]);
    let _credential = script.start(None);
    script.run_for(60).await;
    assert!(script.asked_at().len() <= 20, "{:?}", script.asked_at());
}

#[tokio::test(start_paused = true)]
async fn min_ttl_brings_a_new_token_where_that_helps_and_says_so_where_it_does_not() {
    let script = Script::new(&[Give("a", 1000), Give("b", 1000)]);
    let credential = script.start(None);
    script.run_for(500).await;
    assert_eq!(text(credential.obtain(Duration::from_secs(400), script.deadline()).await), "a");
    assert_eq!(text(credential.obtain(Duration::from_secs(600), script.deadline()).await), "b");
    let best = credential.obtain(Duration::from_secs(2000), script.deadline()).await;
    assert_eq!(best.unwrap_err(), Unobtainable::MinTtlUnreachable(Duration::from_secs(999)));
    script.run_for(1).await;
    let best = credential.obtain(Duration::from_secs(999), script.deadline()).await;
    assert_eq!(
        best.unwrap_err(),
        Unobtainable::MinTtlUnreachable(Duration::from_secs(998)),
        "no loop for one second more"
    );
    assert_eq!(script.asked_at(), [0, 500]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_replaced_once_however_many_complain() {
    let script = Script::new(&[Give("a", 1000), Delay(1), Give("b", 1000)]);
    let credential = script.start(None);
    script.run_for(500).await;
    let refused = credential.snapshot().token.as_ref().unwrap().fingerprint;
    let answers =
        futures_util::future::join_all((0..50).map(|_| credential.reject(refused, script.deadline()))).await;
    let replaced = |answer: &&Result<Rejected, _>| **answer == Ok(Rejected::Attempted(Attempted::Changed));
    assert_eq!(answers.iter().filter(replaced).count(), 1);
    assert_eq!(answers.iter().filter(|answer| **answer == Ok(Rejected::Superseded)).count(), 49);
    assert_eq!(script.asked_at(), [0, 500]);
    let current = credential.snapshot().token.as_ref().unwrap().fingerprint;
    assert_eq!(credential.reject(current, script.deadline()).await, Ok(Rejected::TooSoon));
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_that_the_provider_gives_again_is_reported_as_unchanged() {
    let script = Script::new(&[Give("a", 1000)]);
    let credential = script.start(None);
    script.run_for(500).await;
    let refused = credential.snapshot().token.as_ref().unwrap().fingerprint;
    let answer = credential.reject(refused, script.deadline()).await;
    assert_eq!(answer, Ok(Rejected::Attempted(Attempted::Unchanged)));
}

#[tokio::test(start_paused = true)]
async fn an_operators_refresh_asks_at_once_even_during_a_back_off() {
    let script = Script::new(&[Fail(ErrorClass::Refused), Give("a", 1000)]);
    let credential = script.start(None);
    script.run_for(5).await;
    assert_eq!(class(credential.obtain(Duration::ZERO, script.deadline()).await), ErrorClass::Refused);
    assert_eq!(credential.refresh(script.deadline()).await, Ok(Attempted::Changed));
    assert_eq!(script.asked_at(), [0, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_actor_keeps_the_token_and_the_renewal() {
    let script = Script::new(&[Give("a", 1000), Panic, Give("b", 1000)]);
    let credential = script.start(None);
    script.run_for(701).await;
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a");
    script.run_for(10).await;
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "b");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_resting_actor_keeps_the_token_and_the_renewal() {
    thread_local!(static PANICS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    let script = Script::new(&[Give("a", 1000), Give("b", 1000)]);
    let roll = || if PANICS.replace(false) { panic!("scripted") } else { 0.0 };
    let context = Arc::new(ActorContext { roll, ..ActorContext::clone(&script.actor_context()) });
    let (throttle, start) = (Arc::default(), StartState::default());
    let credential = Credential::start(script.clone(), throttle, schedule(), start, &context);
    script.run_for(10).await;
    PANICS.set(true);
    credential.retry();
    assert!(!PANICS.get(), "it has panicked");
    script.run_for(10).await;
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a");
    script.run_for(700).await;
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "b");
}

#[tokio::test(start_paused = true)]
async fn a_reload_moves_the_renewal_and_keeps_the_token() {
    let script = Script::new(&[Give("a", 1000), Give("b", 1000)]);
    let credential = script.start(None);
    script.run_for(10).await;
    credential.reschedule(Schedule {
        names: "test".into(),
        refresh_before: Some(Duration::from_secs(950)),
        renewal_mode: RenewalMode::Always,
    });
    script.run_for(100).await;
    // No earlier than a tenth of the lifetime after the request before.
    assert_eq!(script.asked_at(), [0, 100]);
}

#[tokio::test(start_paused = true)]
async fn stopping_finishes_the_request_under_way() {
    let script = Script::new(&[Delay(5), Give("a", 1000)]);
    let credential = script.start(None);
    let deadline = script.deadline();
    let waiting = async { text(credential.obtain(Duration::ZERO, deadline).await) };
    let stopping = async {
        script.run_for(1).await;
        credential.stop();
        script.run_for(10).await;
    };
    assert_eq!(tokio::join!(waiting, stopping).0, "a", "a caller that waited for it gets it");
    assert!(credential.snapshot().token.is_none(), "and nobody holds it any longer");
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "Ended");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_rests_ends_at_once_when_it_is_stopped() {
    let script = Script::new(&[Give("a", 1000)]);
    let credential = script.start(None);
    script.run_for(1).await;
    assert!(credential.snapshot().token.is_some());
    credential.stop();
    assert!(credential.snapshot().token.is_none());
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "Ended");
    script.run_for(2000).await;
    assert_eq!(script.asked_at(), [0]);
}

/// An actor that counts how often it is woken.
struct Wakes(Arc<Mutex<u32>>);

impl core::Resting for Wakes {
    fn wake(self: Box<Self>, _: Arc<Core>) {
        *self.0.lock().unwrap() += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_does_not_rest_while_a_command_waits_for_it() {
    let script = Script::new(&[]);
    let schedule = Schedule { names: "test".into(), refresh_before: None, renewal_mode: RenewalMode::Always };
    let (published, last_used) = (Published::new(Snapshot::default()), AtomicInstant::new(script.start));
    let context = script.actor_context();
    let core = Core::new(context, Arc::default(), RecordWriter::default(), published, last_used, schedule);
    let wakes = Arc::default();
    let rest = || core.rest(Box::new(Wakes(Arc::clone(&wakes))));
    rest();
    assert_eq!(*wakes.lock().unwrap(), 0);
    assert!(core.send(Command::Retry));
    assert_eq!(*wakes.lock().unwrap(), 1, "it rested");
    rest();
    assert_eq!(*wakes.lock().unwrap(), 2, "the command is still there");
    let accepted = (0..1000).filter(|_| core.send(Command::Retry)).count();
    assert!(accepted < 100, "those that nobody waits for are limited");
    assert!(core.take_command().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_removed_token_is_dropped_at_once_even_during_a_request() {
    let script = Script::new(&[Give("a", 100), Delay(9), Give("b", 1000)]);
    let credential = script.start(None);
    script.run_for(1).await;
    let deadline = script.deadline();
    let refreshing = async { (credential.refresh(deadline).await, script.seconds()) };
    let removing = async {
        script.run_for(2).await;
        credential.discard();
        script.run_for(1).await;
        assert!(credential.snapshot().token.is_none(), "nobody holds it any longer");
    };
    let ((attempted, at), ()) = tokio::join!(refreshing, removing);
    assert!(matches!(attempted, Ok(Attempted::Failed(..)) | Err(Unobtainable::Ended)), "{attempted:?}");
    assert_eq!(at, 3, "a caller that waited is told at once");
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "Ended");
    script.run_for(60).await;
    assert_eq!(script.asked_at(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_operators_refresh_while_the_provider_wants_quiet_leaves_the_schedule_alone() {
    let throttle = Arc::new(ClientThrottle::default());
    let script = Script::new(&[Give("a", 1000), Give("b", 1000)]);
    let credential = script.start_with(Arc::clone(&throttle), None);
    script.run_for(100).await;
    throttle.keep_quiet(script.clock.now().after(Duration::from_secs(60)), script.clock.now());
    let refused = credential.refresh(script.deadline()).await.unwrap();
    assert!(matches!(refused, Attempted::Failed(failed, Some(_)) if failed.class == ErrorClass::Throttled));
    assert_eq!(credential.snapshot().state(script.clock.now()), State::Fresh);
    script.run_for(601).await;
    assert_eq!(script.asked_at(), [0, 700]);
}

/// Counts the requests of an outage that begins when all of `tokens` are due. The held tokens are served throughout.
async fn requests_of_an_outage(tokens: usize, lifetime: u64, seconds: u64) -> usize {
    let throttle = Arc::new(ClientThrottle::default());
    let steps = [Give("a", lifetime), Fail(ErrorClass::Unreachable)];
    let first = Script::new(&steps);
    let scripts: Vec<_> = (0..tokens).map(|_| first.beside(&steps)).collect();
    let credentials: Vec<_> =
        scripts.iter().map(|script| script.start_with(Arc::clone(&throttle), None)).collect();
    first.run_for(lifetime / 5 * 4).await;
    for _ in 0..seconds / 10 {
        first.run_for(10).await;
        for credential in &credentials {
            assert_eq!(text(credential.obtain(Duration::ZERO, first.deadline()).await), "a");
        }
    }
    scripts.iter().map(|script| script.asked_at().len() - 1).sum()
}

#[tokio::test(start_paused = true)]
async fn an_hours_outage_costs_few_requests_for_one_token_and_hardly_more_for_a_thousand() {
    // The last 23 minutes of a token of two hours, and a whole hour of one of ten.
    for (lifetime, outage) in [(7_200, 1_380), (36_000, 3_600)] {
        for (tokens, most) in [(1, 20), (1000, 60)] {
            let asked = requests_of_an_outage(tokens, lifetime, outage).await;
            assert!((1..=most).contains(&asked), "{tokens} tokens of {lifetime} s: {asked} requests");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_all_tokens_are_renewed_within_one_back_off() {
    let throttle = Arc::new(ClientThrottle::default());
    let steps = [Give("a", 100_000), Fail(ErrorClass::Unreachable)];
    let first = Script::new(&steps);
    let scripts: Vec<_> = (0..50).map(|_| first.beside(&steps)).collect();
    let credentials: Vec<_> =
        scripts.iter().map(|script| script.start_with(Arc::clone(&throttle), None)).collect();
    first.run_for(80_000 + 3600).await;
    for script in &scripts {
        *script.steps.lock().unwrap() = vec![Give("b", 100_000)];
    }
    first.run_for(360 + 5).await;
    for credential in &credentials {
        assert_eq!(text(credential.obtain(Duration::ZERO, first.deadline()).await), "b");
    }
}

#[tokio::test(start_paused = true)]
async fn one_tokens_failures_do_not_keep_a_caller_from_another_token_of_the_endpoint() {
    let throttle = Arc::new(ClientThrottle::default());
    let failing = Script::new(&[Fail(ErrorClass::Server)]);
    let _failing = failing.start_with(Arc::clone(&throttle), None);
    failing.run_for(100).await;
    let healthy = failing.beside(&[Give("a", 1000)]);
    let credential = healthy.start_with(throttle, None);
    assert_eq!(text(credential.obtain(Duration::ZERO, healthy.deadline()).await), "a");
}

#[tokio::test(start_paused = true)]
async fn a_removed_token_that_waits_for_its_turn_sends_nothing() {
    let throttle = Arc::new(ClientThrottle::default());
    let slow = Script::new(&[Delay(20), Give("a", 1000)]);
    let busy: Vec<_> = (0..4).map(|_| slow.beside(&[Delay(20), Give("a", 1000)])).collect();
    let _busy: Vec<_> = busy.iter().map(|script| script.start_with(Arc::clone(&throttle), None)).collect();
    slow.run_for(1).await;
    let removed = slow.beside(&[Give("b", 1000)]);
    let credential = removed.start_with(throttle, None);
    slow.run_for(1).await;
    credential.stop();
    slow.run_for(60).await;
    assert_eq!(removed.asked_at(), Vec::<u64>::new());
}

#[tokio::test(start_paused = true)]
async fn a_token_on_demand_is_fetched_at_its_first_use_and_rests_when_nobody_uses_it() {
    let script = Script::new(&[Give("a", 1000), Give("b", 1000), Give("c", 1000), Give("d", 1000)]);
    let credential = script.start_resting(RenewalMode::OnDemand(Duration::from_secs(1200)));
    script.run_for(5000).await;
    assert_eq!(script.asked_at(), Vec::<u64>::new());
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a");
    script.run_for(4000).await;
    // Renewed once 700 s after its last use, and not 1400 s after it.
    assert_eq!(script.asked_at(), [5000, 5700]);
    assert!(credential.is_dormant());
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "c");
    assert_eq!(script.asked_at(), [5000, 5700, 9000]);
}

#[tokio::test(start_paused = true)]
async fn a_resting_token_that_is_still_valid_is_served_at_once_and_renewed_again() {
    let script = Script::new(&[Give("a", 1000), Give("b", 1000)]);
    let credential = script.start_resting(RenewalMode::OnDemand(Duration::from_secs(600)));
    credential.obtain(Duration::ZERO, script.deadline()).await.unwrap();
    script.run_for(800).await;
    assert_eq!(script.asked_at(), [0], "at rest since 700 s");
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a");
    script.run_for(1).await;
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "b");
}

#[tokio::test(start_paused = true)]
async fn a_variant_rests_after_two_renewals_without_a_use() {
    let script = Script::new(&[Give("a", 1000), Give("b", 1000), Give("c", 1000), Give("d", 1000)]);
    let credential = script.start_resting(RenewalMode::UnusedRenewals(2));
    credential.obtain(Duration::ZERO, script.deadline()).await.unwrap();
    script.run_for(10_000).await;
    // The first renewal comes after a use.
    assert_eq!(script.asked_at(), [0, 700, 1400]);
    assert!(credential.is_dormant());
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_that_is_meant_for_one_token_does_not_silence_the_others() {
    let throttle = Arc::new(ClientThrottle::default());
    let refused = Script::new(&[Step::RefusedFor(600), Give("a", 1000)]);
    let _refused = refused.start_with(Arc::clone(&throttle), None);
    refused.run_for(1).await;
    let other = refused.beside(&[Give("b", 1000)]);
    let credential = other.start_with(throttle, None);
    assert_eq!(text(credential.obtain(Duration::ZERO, other.deadline()).await), "b");
    refused.run_for(590).await;
    assert_eq!(refused.asked_at(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_change_on_the_host_ends_the_wait_after_a_refusal_or_an_unreadable_secret() {
    for class in [ErrorClass::Refused, ErrorClass::Secret] {
        let script = Script::new(&[Fail(class)]);
        let credential = script.start(None);
        script.run_for(200).await;
        let in_time = script.clock.now().after(Duration::from_secs(5));
        assert!(credential.snapshot().next_attempt.unwrap() > in_time, "the schedule would do, {class:?}");
        script.steps.lock().unwrap()[0] = Give("a", 1000);
        script.change.notify_one();
        script.run_for(2).await;
        let snapshot = credential.snapshot();
        assert_eq!(snapshot.token.as_ref().unwrap().secret.expose(), "a", "{class:?}");
        assert_eq!(snapshot.state(script.clock.now()), State::Fresh, "{class:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_on_the_host_causes_no_request_while_no_secret_is_at_fault() {
    let well = Script::new(&[Give("a", 1000)]);
    let _well = well.start(None);
    let down = Script::new(&[Give("a", 10_000), Fail(ErrorClass::Unreachable), Give("b", 10_000)]);
    let _down = down.start(None);
    for (script, seconds) in [(&well, 100), (&down, 7950)] {
        script.run_for(seconds).await;
        let asked = script.asked_at();
        script.change.notify_one();
        script.run_for(1).await;
        assert_eq!(script.asked_at(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_changes_for_ever_in_vain_is_tried_ever_more_rarely() {
    let script = Script::new(&[Fail(ErrorClass::Refused)]);
    let credential = script.start(None);
    for _ in 0..3600 {
        script.change.notify_one();
        script.run_for(1).await;
    }
    let asked = script.asked_at();
    assert_eq!(asked[..6], [0, 1, 3, 7, 15, 31]);
    assert!(asked.len() <= 30, "{asked:?}");
    assert_eq!(credential.snapshot().requests as usize, asked.len());
}

#[tokio::test(start_paused = true)]
async fn the_secrets_of_an_unused_token_are_not_watched() {
    let script = Script::new(&[Fail(ErrorClass::Refused)]);
    let credential = script.start_resting(RenewalMode::OnDemand(Duration::from_secs(60)));
    let _ = credential.obtain(Duration::ZERO, script.deadline()).await;
    script.run_for(10_000).await;
    assert_eq!(credential.snapshot().next_attempt, None);
    let asked = script.asked_at();
    script.change.notify_one();
    script.run_for(100).await;
    assert_eq!(script.asked_at(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_retry_ends_a_back_off_and_leaves_a_scheduled_renewal_alone() {
    let script = Script::new(&[Fail(ErrorClass::Refused), Give("a", 1000)]);
    let credential = script.start(None);
    script.run_for(5).await;
    credential.retry();
    script.run_for(2).await;
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a");
    credential.retry();
    script.run_for(100).await;
    assert_eq!(script.asked_at(), [0, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_during_a_retry_after_is_refused_at_once_with_its_end() {
    let throttle = Arc::new(ClientThrottle::default());
    let script = Script::new(&[Give("a", 1000)]);
    let renewal_mode = RenewalMode::OnDemand(Duration::from_secs(500));
    let schedule = Schedule { names: "test".into(), refresh_before: None, renewal_mode };
    let credential = script.start_from(Arc::clone(&throttle), schedule, StartState::default());
    let until = script.clock.now().after(Duration::from_secs(60));
    throttle.keep_quiet(until, script.clock.now());
    assert!(matches!(credential.may_serve(Duration::ZERO), Serving::Refuse(_)), "so it costs no quota");
    let refused = credential.obtain(Duration::ZERO, script.deadline()).await.unwrap_err();
    assert!(
        matches!(&refused, Unobtainable::Failed(failed, Some(at)) if failed.class == ErrorClass::Throttled && *at == until),
        "{refused:?}"
    );
    script.run_for(60).await;
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a");
}

#[tokio::test(start_paused = true)]
async fn a_variant_rests_after_two_unused_renewals_however_long_its_first_request_waits_and_takes() {
    let throttle: Arc<ClientThrottle> = Arc::default();
    let script = Script::new(&[Delay(1), Give("a", 1000), Give("b", 1000), Give("c", 1000), Give("d", 1000)]);
    drop(throttle.admit(Urgency::Needed { has_failed: false }, &script.clock).await.unwrap());
    let schedule =
        Schedule { names: "test".into(), refresh_before: None, renewal_mode: RenewalMode::UnusedRenewals(2) };
    let credential = script.start_from(throttle, schedule, StartState::default());
    credential.obtain(Duration::ZERO, script.deadline()).await.unwrap();
    script.run_for(10_000).await;
    assert_eq!(script.asked_at(), [0, 700, 1400]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_and_its_retry_count_as_one_unused_renewal() {
    let fail = || Fail(ErrorClass::Server);
    let script = Script::new(&[Give("a", 1000), Give("b", 1000), fail(), Give("c", 1000), Give("d", 1000)]);
    let credential = script.start_resting(RenewalMode::UnusedRenewals(2));
    credential.obtain(Duration::ZERO, script.deadline()).await.unwrap();
    script.run_for(10_000).await;
    assert_eq!(script.asked_at(), [0, 700, 1400, 1401], "two renewals, the second of which was tried twice");
    assert!(credential.is_dormant());
}

#[tokio::test(start_paused = true)]
async fn a_caller_of_a_token_whose_renewal_waits_for_its_turn_takes_the_next_turn() {
    let throttle: Arc<ClientThrottle> = Arc::default();
    throttle.origin().limit(Some(60));
    let first = Script::new(&[Give("a", 1000)]);
    let scripts: Vec<_> = (0..20).map(|_| first.beside(&[Give("a", 1000)])).collect();
    let credentials: Vec<_> =
        scripts.iter().map(|script| script.start_with(Arc::clone(&throttle), None)).collect();
    first.run_for(2).await;
    let last = credentials.iter().zip(&scripts).rfind(|(_, script)| script.asked_at().is_empty()).unwrap();
    assert_eq!(text(last.0.obtain(Duration::ZERO, first.deadline()).await), "a");
    assert!(first.seconds() <= 4, "it waited for {} s behind scheduled renewals", first.seconds());
    first.run_for(20).await;
    assert!(scripts.iter().all(|script| script.asked_at().len() == 1));
}

/// A token on loan from a credential that a reload replaced.
fn loan(script: &Script, seconds: u64) -> StartState {
    let secret = Secret::from("lent".to_owned());
    let fingerprint = script.actor_context().fingerprinter.fingerprint(&secret);
    let validity = Validity { sent_at: script.start, lifetime: Duration::from_secs(seconds) };
    let longest_lifetime = validity.lifetime;
    let token = Token { secret, fingerprint, validity, longest_lifetime, jitter: 0.0, scope: None };
    StartState { loan: Some(Arc::new(token)), ..StartState::default() }
}

#[tokio::test(start_paused = true)]
async fn a_token_on_loan_is_served_while_it_is_valid_until_the_credential_has_one_of_its_own() {
    let schedule = Schedule { names: "test".into(), refresh_before: None, renewal_mode: RenewalMode::Always };
    let script = Script::new(&[Fail(ErrorClass::Refused), Give("a", 1000)]);
    let credential = script.start_from(Arc::default(), schedule.clone(), loan(&script, 1000));
    script.run_for(1).await;
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "lent");
    let snapshot = credential.snapshot();
    assert_eq!(snapshot.state(script.clock.now()), State::Degraded, "and its health is that of the attempt");
    script.run_for(60).await;
    assert_eq!(text(credential.obtain(Duration::ZERO, script.deadline()).await), "a");
    assert_eq!(script.asked_at(), [0, 60]);

    let refused = script.beside(&[Fail(ErrorClass::Refused)]);
    let state = loan(&script, 100);
    let credential = refused.start_from(Arc::default(), schedule, state);
    refused.run_for(100).await;
    assert_eq!(class(credential.obtain(Duration::ZERO, refused.deadline()).await), ErrorClass::Refused);
}

//! The faults of the table in simulated time: what callers get meanwhile, what it costs, and how soon it is over once the
//! provider is well again. An answer goes through the reader of replies, another fault counts as what it comes to.

use std::future::pending;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use tokend::clock::{Clock, ClockChanges, Instant, TimeSource};
use tokend::config::{self, CredentialSettings};
use tokend::engine::credential::{ActorContext, Credential, Schedule, StartState, Unobtainable};
use tokend::engine::schedule::RenewalMode;
use tokend::fingerprint::Fingerprinter;
use tokend::oauth::redact::SentSecrets;
use tokend::oauth::response::{Context, HttpReply, read};
use tokend::oauth::{Failure, Outcome, Provider};
use tokend_protocol::{ErrorClass, State};
use tokend_tests::Answer;
use tokio_util::task::TaskTracker;

use super::rows::{Comes, Row};
use super::scope_keys;
use super::server::{Trouble, good_answer};
use super::subject::Situation;

/// How many seconds a fault lasts.
const LASTS: u64 = 60;

/// How long a recovery is waited for.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Tokio's time, which is paused.
#[derive(Debug)]
struct Paused(tokio::time::Instant);

impl TimeSource for Paused {
    fn since_boot(&self) -> Duration {
        self.0.elapsed() + Duration::from_secs(3600)
    }

    fn wall(&self) -> Duration {
        self.0.elapsed() + Duration::from_secs(1_700_000_000)
    }
}

/// A provider that has a row's fault for some time.
struct Faulty {
    row: Row,
    settings: CredentialSettings,
    clock: Clock,
    begin: Instant,
    end: Instant,
    asked_at: Arc<Mutex<Vec<Instant>>>,
}

impl Faulty {
    fn read(&self, answer: &Answer) -> Outcome {
        let (status, headers, body) = answer.parts();
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        let reply = HttpReply { status, headers, body: body.to_vec() };
        let sent = SentSecrets::default();
        read(&reply, Context { settings: &self.settings, wall: self.clock.wall(), sent: &sent })
    }
}

impl Provider for Faulty {
    async fn request(&self) -> Outcome {
        let now = self.clock.now();
        self.asked_at.lock().unwrap().push(now);
        let is_well = now < self.begin || now >= self.end;
        match (&self.row.trouble, self.row.comes) {
            _ if is_well => self.read(&good_answer()),
            (Trouble::Answers(answer), _) if answer.is_plain() => self.read(answer),
            (_, comes) => {
                let class = class(comes).expect("only an answer can bring a token");
                let needs_operator = comes == Comes::Distrust;
                Outcome::of(Err(Failure { needs_operator, ..Failure::new(class, "scripted") }), 1)
            }
        }
    }

    async fn changed(&self) {
        pending::<()>().await;
    }
}

/// The measurements of one fault.
struct Measured {
    served: usize,
    classes: Vec<ErrorClass>,
    requests_in_10_s: usize,
    recovered: Duration,
}

fn class(comes: Comes) -> Option<ErrorClass> {
    match comes {
        Comes::Token => None,
        Comes::Passes(class) | Comes::Quiet(class) => Some(class),
        Comes::Refusal => Some(ErrorClass::Refused),
        Comes::Distrust => Some(ErrorClass::Tls),
    }
}

fn settings(row: &Row) -> CredentialSettings {
    let text = format!(
        "[provider.p]\ntoken_endpoint = \"https://id.example/token\"\nclient_id = \"c\"\n\
         token_endpoint_auth_method = \"none\"\n[token.t]\nprovider = \"p\"\n{}",
        scope_keys(row)
    );
    let config = config::parse(Path::new("/tokend.toml"), &text).unwrap().config;
    Arc::unwrap_or_clone(config.tokens.into_values().next().unwrap().credential)
}

/// One caller in a second, with a token held at the beginning and without.
async fn measure(row: &Row, situation: Situation) -> Measured {
    let clock = Clock::new(Arc::new(Paused(tokio::time::Instant::now())), ClockChanges::default());
    let head_start = u64::from(situation == Situation::Held);
    let begin = clock.now().after(Duration::from_secs(head_start));
    let end = begin.after(Duration::from_secs(LASTS));
    let asked_at = Arc::default();
    let (row, settings) = (row.clone(), settings(row));
    let provider =
        Faulty { row, settings, clock: clock.clone(), begin, end, asked_at: Arc::clone(&asked_at) };
    let context = Arc::new(ActorContext {
        clock: clock.clone(),
        fingerprinter: Arc::new(Fingerprinter::with_key(&[7; 32])),
        roll: || 1.0,
        tasks: TaskTracker::new(),
    });
    let schedule = Schedule { names: "t".into(), refresh_before: None, renewal_mode: RenewalMode::Always };
    let credential = Credential::start(provider, Arc::default(), schedule, StartState::default(), &context);
    let get = || credential.obtain(Duration::ZERO, clock.now().after(Duration::from_secs(20)));
    if situation == Situation::Held {
        get().await.unwrap();
        clock.sleep_until(begin).await;
        let _ = credential.refresh(clock.now().after(Duration::from_secs(20))).await;
    }
    let (mut served, mut classes) = (0, Vec::new());
    for second in 0..LASTS {
        clock.sleep_until(begin.after(Duration::from_millis(second * 1000 + 500))).await;
        match get().await {
            Ok(_) => served += 1,
            Err(Unobtainable::Failed(failed, _)) => classes.push(failed.class),
            Err(other) => unreachable!("{other:?}"),
        }
    }
    clock.sleep_until(end).await;
    while credential.snapshot().state(clock.now()) != State::Fresh && clock.now().since(end) < PATIENCE {
        let _ = get().await;
        clock.sleep_until(clock.now().after(Duration::from_millis(250))).await;
    }
    let in_10_s = |at: &&Instant| **at >= begin && at.since(begin) <= Duration::from_secs(10);
    let requests_in_10_s = asked_at.lock().unwrap().iter().filter(in_10_s).count();
    Measured { served, classes, requests_in_10_s, recovered: clock.now().since(end) }
}

/// The first bound that a fault exceeds.
fn complaint(row: &Row, situation: Situation, seen: &Measured) -> Option<&'static str> {
    let all = usize::try_from(LASTS).unwrap();
    let expected = class(row.comes);
    let is_served = situation == Situation::Held || expected.is_none();
    let (requests, seconds) = match (row.comes, situation) {
        (Comes::Token, _) => (1, 0),
        // At 0, 1, 3 and 7 seconds, a fifth later at most.
        (Comes::Passes(_) | Comes::Distrust, Situation::Empty) => (4, 36),
        (Comes::Passes(_) | Comes::Distrust, Situation::Held) => (4, 90),
        (Comes::Refusal, _) => (1, 90),
        (Comes::Quiet(_), _) => (1, 15 * 60),
    };
    if is_served && seen.served != all {
        return Some("a caller got no token");
    }
    if !is_served && (seen.served > 0 || seen.classes.iter().any(|class| Some(*class) != expected)) {
        return Some("callers met another class");
    }
    if seen.requests_in_10_s > requests {
        return Some("too many requests");
    }
    (seen.recovered > Duration::from_secs(seconds)).then_some("recovered too late")
}

#[expect(clippy::print_stdout, reason = "the table is for the readers of the output")]
pub(super) fn check(rows: &[Row]) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut complaints = Vec::new();
    println!(
        "{:<27} {:<6} {:<24} {:<17} recovered after",
        "fault", "token", "callers got", "requests in 10 s"
    );
    for (row, situation) in rows.iter().flat_map(|row| [(row, Situation::Held), (row, Situation::Empty)]) {
        let seen = runtime.block_on(measure(row, situation));
        let token = if situation == Situation::Held { "held" } else { "none" };
        let class = seen.classes.first().map_or("", |class| class.as_str());
        let line = format!(
            "{:<27} {token:<6} {:<24} {:<17} {:.1} s",
            row.name,
            format!("{} tokens, {} {class}", seen.served, seen.classes.len()),
            seen.requests_in_10_s,
            seen.recovered.as_secs_f64()
        );
        println!("{line}");
        complaints.extend(complaint(row, situation, &seen).map(|what| format!("{what}: {line}")));
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

//! A daemon that is killed at random instants while its token rotates every 50 milliseconds. What it leaves is
//! whole each time, and holds what it last handed out, or the one token after it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokend::store::memory::Memory;
use tokend_protocol::{RefreshRequest, Reply, Request, Variant};
use tokend_tests::raw_peer::get;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Answer, Provider, RawPeer, ServiceManager, TestDir, report, secrets, size};

const PERIOD: Duration = Duration::from_millis(50);

/// Kills come within so long of the first rotation, so that some rotations are behind them and none is sure to be.
const LIFE_MAX: Duration = Duration::from_millis(150);

/// Every second kill comes within so short a time of the provider's answer, when the token is being written.
const NEAR_ANSWER: Duration = Duration::from_millis(6);

/// The numbers of the latest tokens. Each token has a higher number than the one before.
struct TokenNumbers {
    issued: AtomicU64,
    /// The highest that a caller has seen.
    seen: AtomicU64,
}

#[test]
fn what_a_killed_daemon_leaves_is_whole_and_never_older_than_one_rotation() {
    let kills = size(1_000, 30);
    let home = TestDir::new();
    let manager = ServiceManager::new(&home);
    let numbers = Arc::new(TokenNumbers { issued: AtomicU64::new(0), seen: AtomicU64::new(0) });
    let stem = secrets::invent("access-token");
    let provider = numbered(&stem, &numbers);
    let provider_table =
        provider_table(&home, "p", &provider.token_endpoint(), "max_requests_per_minute = 60000");
    home.configure("", &(provider_table + &token_table("t", "")));

    let (mut stored, mut in_between, mut lives_without_rotation) = (1, 0, 0);
    for kill in 0..kills {
        let daemon = manager.launch(&home).start();
        let mut caller = RawPeer::connect(manager.socket()).unwrap();
        // Whoever asks the successor has what the predecessor left.
        let first = ask(&mut caller, get("t")).expect("a token is there");
        assert_eq!(first, stored, "the successor asked the provider at its start");
        let began = numbers.issued.load(Ordering::SeqCst);
        let operator = RawPeer::connect(manager.socket()).unwrap();
        let rotation = Rotation::begin(caller, operator, &numbers);
        wait_for_the_moment(kill, &numbers);
        daemon.kill();
        rotation.end();
        std::fs::write(home.log(), "").unwrap();

        let (seen, issued) = (numbers.seen.load(Ordering::SeqCst), numbers.issued.load(Ordering::SeqCst));
        stored = stored_number(&manager.stored(), &stem);
        assert!(seen <= stored && stored <= issued, "a caller has {seen}, {stored} is kept, {issued} issued");
        // One that died with the daemon before is not counted again.
        let missing = issued - stored.max(began);
        assert!(missing <= 1, "{stored} is kept of {issued}, {missing} rotations ago");
        in_between += u64::from(seen < issued.min(stored) || missing == 1);
        lives_without_rotation += u64::from(issued == began);
    }
    report(&format!(
        "{kills} kills, {} rotations: every state whole and never older than one rotation; {in_between} kills between \
         the provider's answer and its hand-out, {lives_without_rotation} before the first rotation",
        provider.count()
    ));
}

/// A provider whose tokens are numbered.
fn numbered(stem: &str, numbers: &Arc<TokenNumbers>) -> Provider {
    let (stem, numbers) = (stem.to_owned(), Arc::clone(numbers));
    Provider::start_answering(move |_| {
        let number = numbers.issued.fetch_add(1, Ordering::SeqCst) + 1;
        Answer::this_token(&format!("{stem}.{number}"), 3600)
    })
}

/// An operator that renews the token every [`PERIOD`], and a caller that asks for it all the time. Each over one
/// connection, and without the client library: it would ask the successor for what the predecessor did not answer.
struct Rotation {
    ends: Arc<AtomicBool>,
    threads: [thread::JoinHandle<()>; 2],
}

impl Rotation {
    fn begin(mut caller: RawPeer, mut operator: RawPeer, numbers: &Arc<TokenNumbers>) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (until, numbers) = (Arc::clone(&ends), Arc::clone(numbers));
        // There is no answer from a daemon that was killed, and then it is over.
        let calls = thread::spawn(move || {
            while let Some(number) = ask(&mut caller, get("t")) {
                numbers.seen.fetch_max(number, Ordering::SeqCst);
            }
        });
        let rotations = thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                let began = Instant::now();
                let refresh = RefreshRequest {
                    name: "t".parse().unwrap(),
                    deadline_ms: 10_000,
                    variant: Variant::default(),
                };
                ask(&mut operator, Request::Refresh(refresh));
                thread::sleep(PERIOD.saturating_sub(began.elapsed()));
            }
        });
        Self { ends, threads: [calls, rotations] }
    }

    fn end(self) {
        self.ends.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a rotation ends");
        }
    }
}

/// Any instant, or one just after the provider's next answer.
fn wait_for_the_moment(kill: usize, numbers: &TokenNumbers) {
    let limit = Instant::now() + LIFE_MAX.mul_f64(fastrand::f64());
    if kill.is_multiple_of(2) {
        thread::sleep(limit.saturating_duration_since(Instant::now()));
        return;
    }
    thread::sleep(limit.saturating_duration_since(Instant::now()) / 2);
    let before = numbers.issued.load(Ordering::SeqCst);
    let patience = Instant::now() + 2 * LIFE_MAX;
    while numbers.issued.load(Ordering::SeqCst) == before && Instant::now() < patience {
        std::hint::spin_loop();
    }
    let moment = Instant::now() + NEAR_ANSWER.mul_f64(fastrand::f64());
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
}

/// The number of the one token in what is stored, which must be whole.
fn stored_number(bytes: &[u8], stem: &str) -> u64 {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let contents = Memory::adopt(file.into()).expect("what is stored can be read");
    assert!(!contents.is_damaged);
    let tokens: Vec<u64> = contents
        .records
        .values()
        .filter_map(|record| {
            let at = record.windows(stem.len()).position(|window| window == stem.as_bytes())?;
            let digits: Vec<u8> =
                record[at + stem.len() + 1..].iter().copied().take_while(u8::is_ascii_digit).collect();
            String::from_utf8(digits).unwrap().parse().ok()
        })
        .collect();
    let [number] = tokens[..] else { panic!("{} tokens are kept of one credential", tokens.len()) };
    number
}

/// The number of the token in the answer, if there is an answer with a token.
fn ask(caller: &mut RawPeer, request: Request) -> Option<u64> {
    caller.send(1, request).ok()?;
    match caller.receive().ok()??.expect("the daemon writes frames that can be read").message {
        Reply::Token(reply) => reply.token.expose().rsplit('.').next().unwrap().parse().ok(),
        Reply::Refreshed(_) => None,
        other => panic!("a token was expected, not {other:?}"),
    }
}

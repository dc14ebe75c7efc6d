//! The store from the side of a credential: what a successor finds, and what it does not.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::time::Duration;

use tempfile::TempDir;
use tokend_protocol::{ErrorClass, Secret};

use super::record::{KeptFailure, KeptToken};
use super::sealed::Sealer;
use super::*;
use crate::clock::Validity;
use crate::store::FdStore;
use crate::store::record::Failed;

const STATE_KEY: &str = "0123456789abcdef0123456789abcdef";

fn key(number: u8) -> Key {
    Key::from_bytes([number; 32])
}

fn record(clock: &Clock, token: &str) -> Record {
    let life = Validity { sent_at: clock.now(), lifetime: Duration::from_secs(600) };
    let token = KeptToken {
        secret: Secret::from(token.to_owned()),
        life,
        longest_life: life.lifetime,
        jitter: 0.5,
        token_type: "Bearer".into(),
        scope: None,
    };
    Record { token: Some(token), ..Record::default() }
}

/// A store whose memory the test can hand to a successor.
struct Process {
    store: Arc<Store>,
    clock: Clock,
}

/// One that finds nothing in memory, as after a reboot.
fn begin(clock: &Clock, state_dir: Option<&TempDir>) -> Process {
    let state = State { memory: Some(Memory::create().unwrap()), ..State::default() };
    with_state(clock, state, state_dir)
}

fn with_state(clock: &Clock, mut state: State, state_dir: Option<&TempDir>) -> Process {
    let folder = state_dir.map(|dir| {
        let sealer = Sealer::new(&Secret::from(STATE_KEY.to_owned())).unwrap();
        let folder = Folder::new(dir.path(), sealer);
        let held = state.found.keys().copied().collect();
        let present = folder.read(&held, |bytes| {
            state.take_from_disk(bytes);
            ControlFlow::Continue(())
        });
        state.on_disk.extend(present.unwrap());
        Arc::new(folder)
    });
    let store = Store::new(clock.clone(), folder, state, Report::default());
    store.note_how_the_last_one_ended();
    Process { store: Arc::new(store), clock: clock.clone() }
}

impl Process {
    /// The successor of a process that was killed.
    fn next(self, state_dir: Option<&TempDir>) -> Self {
        let (left, clock) = (self.left(), self.clock.clone());
        drop(self);
        let mut state = State::default();
        state.take(left);
        with_state(&clock, state, state_dir)
    }

    /// The memory that it would leave if it were killed now.
    fn memory(&self) -> OwnedFd {
        self.store.lock().memory.as_ref().unwrap().as_fd().try_clone_to_owned().unwrap()
    }

    /// What a successor would find in it.
    fn left(&self) -> Recovered {
        Memory::adopt(self.memory()).unwrap()
    }

    /// Waits until no file is being written or removed.
    async fn files_are_done(&self) {
        let files = self.store.files.clone().unwrap();
        tokio::task::yield_now().await;
        // There are so many places for orders, and all are free again when none is being carried out.
        drop(files.all_places().await);
    }

    fn token(&self, number: u8) -> Option<String> {
        let (_, record) = self.store.claim(key(number), None);
        record?.token.map(|token| token.secret.expose().to_owned())
    }

    fn fact(&self, name: &str) -> Option<String> {
        self.store.facts().into_iter().find(|(told, _)| *told == name).map(|(_, value)| value)
    }
}

fn start() -> (Clock, Process) {
    let clock = Clock::simulated();
    let life = begin(&clock, None);
    (clock, life)
}

/// A disk with two tokens.
async fn before_a_reboot() -> (Clock, TempDir) {
    let (clock, disk) = (Clock::simulated(), TempDir::new().unwrap());
    let life = begin(&clock, Some(&disk));
    for number in [1, 2] {
        life.store.claim(key(number), None).0.renewed(record(&clock, "a token")).await;
    }
    (clock, disk)
}

#[tokio::test(start_paused = true)]
async fn a_successor_finds_what_was_kept_last_until_it_expires() {
    let (clock, life) = start();
    let (keep, _) = life.store.claim(key(1), None);
    keep.renewed(record(&clock, "one")).await;
    keep.renewed(record(&clock, "two")).await;
    let life = life.next(None);
    assert_eq!(life.token(1).as_deref(), Some("two"));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let life = life.next(None);
    assert_eq!(life.token(1), None);
    let kept = life.left().records.remove(&key(1)).unwrap();
    assert!(!kept.windows(3).any(|bytes| bytes == b"two"), "nor is it kept any longer");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_configured_any_more_is_wiped_and_a_variant_with_it() {
    let (clock, life) = start();
    for (number, base) in [(1, None), (2, Some(key(1))), (3, None), (4, Some(key(3)))] {
        life.store.claim(key(number), base).0.renewed(record(&clock, "a token")).await;
    }
    let life = life.next(None);
    assert!(life.token(1).is_some());
    life.store.drop_unclaimed();
    let life = life.next(None);
    let kept = [1, 2, 3, 4].map(|number| life.token(number).is_some());
    assert_eq!(kept, [true, true, false, false], "a variant may still be asked for");
}

#[tokio::test(start_paused = true)]
async fn the_wait_of_a_variant_after_a_failure_outlasts_a_crash() {
    let (clock, life) = start();
    life.store.claim(key(1), None).0.renewed(record(&clock, "a token")).await;
    let failed = Failed { class: ErrorClass::Refused, message: "no".into(), detail: None, at: clock.now() };
    let next_attempt = Some(clock.now().after(Duration::from_secs(900)));
    let failure = Some(KeptFailure { failures: 1, failed, next_attempt });
    life.store.claim(key(2), Some(key(1))).0.changed(Record { failure, ..Record::default() });
    let life = life.next(None);
    assert!(life.token(1).is_some());
    life.store.drop_unclaimed();
    let (_, record) = life.store.claim(key(2), Some(key(1)));
    assert_eq!(record.and_then(|record| record.failure?.next_attempt), next_attempt);
    assert_eq!(life.fact("restored").unwrap(), "1 valid at the start", "a failure is no token");
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_one_credential_costs_another_of_the_same_key_no_token() {
    let (clock, life) = start();
    let [(one, _), (two, _)] = [(); 2].map(|()| life.store.claim(key(1), None));
    one.renewed(record(&clock, "one")).await;
    two.changed(Record::default());
    let life = life.next(None);
    assert_eq!([life.token(1), life.token(1)].map(|token| token.unwrap()), ["one", "one"], "it is for both");
}

#[tokio::test(start_paused = true)]
async fn what_only_memory_holds_is_written_to_the_disk_at_the_next_start() {
    let state_dir = TempDir::new().unwrap();
    let (clock, life) = start();
    life.store.claim(key(1), None).0.renewed(record(&clock, "one")).await;
    let life = life.next(Some(&state_dir));
    assert_eq!(life.token(1).as_deref(), Some("one"));
    life.files_are_done().await;
    let folder = life.store.files.as_ref().unwrap().folder();
    assert_eq!(folder.read(&HashSet::from([key(1)]), |_| panic!()).unwrap(), HashSet::from([key(1)]));
}

#[tokio::test(start_paused = true)]
async fn a_start_writes_neither_what_the_disk_has_nor_what_is_no_token() {
    let state_dir = TempDir::new().unwrap();
    let clock = Clock::simulated();
    let life = begin(&clock, Some(&state_dir));
    life.store.claim(key(1), None).0.renewed(record(&clock, "one")).await;
    life.store.claim(key(2), None).0.changed(Record::default());
    let files = || {
        let files = std::fs::read_dir(state_dir.path().join("tokens")).unwrap();
        files.map(|file| file.unwrap().ino()).collect::<Vec<u64>>()
    };
    let written = files();
    assert_eq!(written.len(), 1);
    let life = life.next(Some(&state_dir));
    assert!(life.token(1).is_some());
    assert!(life.store.claim(key(2), None).1.is_some());
    life.files_are_done().await;
    assert_eq!(files(), written);
}

#[tokio::test(start_paused = true)]
async fn what_came_from_the_disk_is_in_memory_then_and_outlives_the_disk() {
    let (clock, disk) = before_a_reboot().await;
    let life = begin(&clock, Some(&disk));
    assert!(life.token(1).is_some());
    assert_eq!(life.next(None).token(1).as_deref(), Some("a token"));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_makes_no_sense_is_wiped() {
    let (_, life) = start();
    life.store.lock().memory.as_mut().unwrap().put(&key(1), b"a secret of another format").unwrap();
    let life = life.next(None);
    assert_eq!(life.token(1), None);
    assert!(life.left().records.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_whole_in_a_damaged_memory_is_in_the_one_that_takes_its_place() {
    let (clock, life) = start();
    life.store.claim(key(1), None).0.renewed(record(&clock, "one")).await;
    let memory = File::from(life.memory());
    memory.write_all_at(&[0xff; 8], memory.metadata().unwrap().len()).unwrap();
    assert!(life.left().is_damaged);
    let manager = FdStore::Present { left: Some(memory.into()), is_proved: true };
    let store =
        Store::open(clock.clone(), Media { manager, keep: |_| (), state_dir: "/".into(), state_key: None })
            .await;
    let life = Process { store, clock };
    assert!(!life.left().is_damaged);
    // That one is killed before anybody asks it for anything.
    assert_eq!(life.next(None).token(1).as_deref(), Some("one"));
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_was_removed_keeps_nothing_more() {
    let (clock, life) = start();
    let (keep, _) = life.store.claim(key(1), None);
    keep.renewed(record(&clock, "one")).await;
    keep.discard();
    // The exchange that it was in comes to its end.
    keep.renewed(record(&clock, "late")).await;
    assert_eq!(life.next(None).token(1), None);
}

#[tokio::test(start_paused = true)]
async fn of_two_credentials_of_one_key_the_second_removal_wipes() {
    let (clock, life) = start();
    let [(one, _), (two, _)] = [(); 2].map(|()| life.store.claim(key(1), None));
    one.renewed(record(&clock, "one")).await;
    one.discard();
    one.discard();
    let life = life.next(None);
    assert_eq!(life.token(1).as_deref(), Some("one"));
    drop(two);
}

#[tokio::test(start_paused = true)]
async fn an_orderly_end_ends_the_waits_and_a_crash_does_not() {
    let (_, life) = start();
    let life = life.next(None);
    assert_eq!(life.store.previous_exit(), PreviousExit::Crashed);
    life.store.note_orderly_end();
    let life = life.next(None);
    assert_eq!(life.store.previous_exit(), PreviousExit::Orderly);
    assert_eq!(life.next(None).store.previous_exit(), PreviousExit::Crashed, "a crash after it is one again");
}

#[tokio::test(start_paused = true)]
async fn fingerprints_stay_what_they_were() {
    let (_, life) = start();
    let before = life.store.fingerprint_key().await.unwrap();
    let life = life.next(None);
    assert_eq!(*life.store.fingerprint_key().await.unwrap(), *before);
    let (_, other) = start();
    assert_ne!(*other.store.fingerprint_key().await.unwrap(), *before);
}

#[tokio::test(start_paused = true)]
async fn fingerprints_stay_what_they_were_over_a_reboot_too() {
    let (clock, life) = start();
    let before = life.store.fingerprint_key().await.unwrap();
    // The state key is given only now.
    let disk = TempDir::new().unwrap();
    let life = life.next(Some(&disk));
    life.store.fingerprint_key().await.unwrap();
    life.files_are_done().await;
    drop(life);
    let life = begin(&clock, Some(&disk));
    assert_eq!(*life.store.fingerprint_key().await.unwrap(), *before);
    drop(life);

    // It is given from the beginning.
    let disk = TempDir::new().unwrap();
    let mut keys = Vec::new();
    for _ in 0..2 {
        let life = begin(&clock, Some(&disk));
        keys.push(life.store.fingerprint_key().await.unwrap());
    }
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test(start_paused = true)]
async fn an_issuer_goes_on_in_its_condition() {
    let (clock, life) = start();
    let (keep, none) = life.store.claim_issuer("https://id.example");
    assert_eq!(none, None);
    let condition = ThrottleRecord {
        quiet_until: Some(clock.now().after(Duration::from_secs(60))),
        failures: 5,
        ..ThrottleRecord::default()
    };
    keep.changed(&condition);
    let life = life.next(None);
    assert_eq!(life.store.claim_issuer("https://id.example").1, Some(condition));
}

#[tokio::test]
async fn what_is_on_the_disk_survives_without_memory_and_goes_with_its_token() {
    let (clock, disk) = before_a_reboot().await;
    let life = begin(&clock, Some(&disk));
    assert_eq!(life.token(1).as_deref(), Some("a token"));
    life.store.drop_unclaimed();
    life.files_are_done().await;
    let files = std::fs::read_dir(disk.path().join("tokens")).unwrap().count();
    assert_eq!(files, 1, "the other token was not asked for by anybody");
    let (keep, _) = life.store.claim(key(1), None);
    keep.discard();
    drop(keep);
    let life = life.next(Some(&disk));
    assert_eq!(life.token(1).as_deref(), Some("a token"), "another credential of this key still has it");
}

#[tokio::test]
async fn a_damaged_file_is_counted_in_the_status_once_its_token_is_asked_for() {
    let (clock, disk) = before_a_reboot().await;
    for file in std::fs::read_dir(disk.path().join("tokens")).unwrap() {
        std::fs::write(file.unwrap().path(), b"spoilt").unwrap();
    }
    let life = begin(&clock, Some(&disk));
    assert_eq!(life.fact("damaged-files"), None, "they may be of another state key");
    for _ in 0..2 {
        assert_eq!(life.token(1), None);
        assert!(life.fact("damaged-files").unwrap().starts_with("1 found since the start"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_delays_a_token_by_a_bound_and_is_told_until_it_works_again() {
    let disk = TempDir::new().unwrap();
    let clock = Clock::simulated();
    let life = begin(&clock, Some(&disk));
    let (keep, _) = life.store.claim(key(1), None);
    let fact = || life.fact("reboot").unwrap();
    let files = life.store.files.clone().unwrap();
    // As if each thread that may write were held up.
    let held = files.all_places().await;
    let began = clock.now();
    keep.renewed(record(&clock, "one")).await;
    assert_eq!(clock.now().since(began), Duration::from_secs(2));
    assert!(fact().contains("takes more than 2 s"), "{}", fact());
    keep.renewed(record(&clock, "two")).await;
    assert_eq!(
        clock.now().since(began),
        Duration::from_secs(2),
        "nobody waits for a disk that is known to hang"
    );
    drop(held);
    keep.renewed(record(&clock, "three")).await;
    let all = files.all_places().await;
    assert!(fact().starts_with("tokens are sealed in"), "{}", fact());
    let began = clock.now();
    keep.renewed(record(&clock, "four")).await;
    assert_eq!(
        clock.now().since(began),
        Duration::from_secs(2),
        "a disk that worked meanwhile is waited for again"
    );
    drop(all);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_is_written_once_the_disk_works() {
    let disk = TempDir::new().unwrap();
    // A file where the folder should be.
    let place = disk.path().join("tokens");
    std::fs::write(&place, b"").unwrap();
    let clock = Clock::simulated();
    let sealer = Sealer::new(&Secret::from(STATE_KEY.to_owned())).unwrap();
    let folder = Arc::new(Folder::new(disk.path(), sealer));
    let life = Store::new(clock.clone(), Some(folder), State::default(), Report::default());
    let life = Process { store: Arc::new(life), clock: clock.clone() };
    let fact = || life.fact("reboot").unwrap();
    let keeps = [1, 2].map(|number| life.store.claim(key(number), None).0);
    for keep in &keeps {
        keep.renewed(record(&clock, "a token")).await;
    }
    assert!(fact().starts_with("tokens are not kept"), "{}", fact());
    std::fs::remove_file(&place).unwrap();
    keeps[0].renewed(record(&clock, "a token")).await;
    assert!(fact().starts_with("tokens are sealed in"), "{}", fact());
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 2, "the other one with it");
}

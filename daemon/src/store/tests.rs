//! Tests of the store as credentials use it, across restarts.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::time::Duration;

use tempfile::TempDir;
use tokend_protocol::{ErrorClass, Fingerprint, Secret};

use super::record::{Failed, FailureRecord, Token};
use super::*;
use crate::clock::Validity;

const STATE_KEY: &str = "0123456789abcdef0123456789abcdef";

fn key(number: u8) -> Key {
    Key([number; 32])
}

fn record(clock: &Clock, token: &str) -> Record {
    let validity = Validity { sent_at: clock.now(), lifetime: Duration::from_secs(600) };
    let secret = Secret::from(token.to_owned());
    let token = Token {
        secret,
        fingerprint: Fingerprint([0; 8]),
        validity,
        longest_lifetime: validity.lifetime,
        jitter: 0.5,
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
async fn begin(clock: &Clock, state_dir: Option<&TempDir>) -> Process {
    let state = State { memory: Some(Memory::create().unwrap()), ..State::default() };
    with_state(clock, state, state_dir).await
}

async fn with_state(clock: &Clock, state: State, state_dir: Option<&TempDir>) -> Process {
    let files = state_dir.map(|dir| {
        let sealer = Sealer::new(&Secret::from(STATE_KEY.to_owned())).unwrap();
        Files::new(Folder::new(dir.path(), sealer))
    });
    let store = Store::new(clock.clone(), files, state);
    store.read_folder().await;
    Process { store, clock: clock.clone() }
}

impl Process {
    /// The successor of a process that was killed.
    async fn next(self, state_dir: Option<&TempDir>) -> Self {
        let (memory, clock) = (self.memory(), self.clock.clone());
        if let Some(files) = &self.store.files {
            files.done().await;
        }
        drop(self);
        let mut state = State::default();
        state.open_memory(Some(memory), true, |_| ());
        with_state(&clock, state, state_dir).await
    }

    /// The memory that it would leave if it were killed now.
    fn memory(&self) -> OwnedFd {
        self.store.lock().memory.as_ref().unwrap().as_fd().try_clone_to_owned().unwrap()
    }

    /// What a successor would find in it.
    fn recovered(&self) -> Recovered {
        Memory::adopt(self.memory()).unwrap()
    }

    fn files(&self) -> &Arc<Files> {
        self.store.files.as_ref().unwrap()
    }

    fn token(&self, number: u8) -> Option<String> {
        let (_, record) = self.store.claim(key(number), None);
        record?.token.map(|token| token.secret.expose().to_owned())
    }

    fn fact(&self, name: &str) -> Option<String> {
        self.store.facts().into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

async fn start() -> (Clock, Process) {
    let clock = Clock::simulated();
    let process = begin(&clock, None).await;
    (clock, process)
}

/// A disk with two tokens.
async fn before_a_reboot() -> (Clock, TempDir) {
    let (clock, disk) = (Clock::simulated(), TempDir::new().unwrap());
    let process = begin(&clock, Some(&disk)).await;
    for number in [1, 2] {
        process.store.claim(key(number), None).0.renewed(record(&clock, "a token")).await;
    }
    process.files().done().await;
    (clock, disk)
}

#[tokio::test(start_paused = true)]
async fn a_successor_finds_the_last_token_until_it_expires() {
    let (clock, process) = start().await;
    let (writer, _) = process.store.claim(key(1), None);
    writer.renewed(record(&clock, "one")).await;
    writer.renewed(record(&clock, "two")).await;
    let process = process.next(None).await;
    assert_eq!(process.token(1).as_deref(), Some("two"));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let process = process.next(None).await;
    assert_eq!(process.token(1), None);
    let kept = process.recovered().records.remove(&key(1)).unwrap();
    assert!(!kept.windows(3).any(|bytes| bytes == b"two"), "nor is it kept any longer");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_configured_any_more_is_wiped_with_its_variants() {
    let (clock, process) = start().await;
    for (number, base) in [(1, None), (2, Some(key(1))), (3, None), (4, Some(key(3)))] {
        process.store.claim(key(number), base).0.renewed(record(&clock, "a token")).await;
    }
    let process = process.next(None).await;
    assert!(process.token(1).is_some());
    process.store.drop_unclaimed();
    let process = process.next(None).await;
    let kept = [1, 2, 3, 4].map(|number| process.token(number).is_some());
    assert_eq!(kept, [true, true, false, false], "a variant may still be asked for");
}

#[tokio::test(start_paused = true)]
async fn the_back_off_of_a_variant_survives_a_crash() {
    let (clock, process) = start().await;
    process.store.claim(key(1), None).0.renewed(record(&clock, "a token")).await;
    let failed = Failed::new(ErrorClass::Refused, "no", clock.now());
    let next_attempt = Some(clock.now().after(Duration::from_secs(900)));
    let failure = Some(FailureRecord { failures: 1, failed, next_attempt });
    process.store.claim(key(2), Some(key(1))).0.changed(Record { failure, ..Record::default() });
    let process = process.next(None).await;
    assert!(process.token(1).is_some());
    process.store.drop_unclaimed();
    let (_, record) = process.store.claim(key(2), Some(key(1)));
    assert_eq!(record.and_then(|record| record.failure?.next_attempt), next_attempt);
    assert_eq!(process.fact("restored").unwrap(), "1 valid at the start", "a failure is no token");
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_one_credential_does_not_replace_the_token_of_another_with_its_key() {
    let (clock, process) = start().await;
    let [(one, _), (two, _)] = [(); 2].map(|()| process.store.claim(key(1), None));
    one.renewed(record(&clock, "one")).await;
    two.changed(Record::default());
    let process = process.next(None).await;
    assert_eq!(
        [process.token(1), process.token(1)].map(|token| token.unwrap()),
        ["one", "one"],
        "it is for both"
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_that_only_memory_has_is_written_to_the_disk_at_the_next_start() {
    let state_dir = TempDir::new().unwrap();
    let (clock, process) = start().await;
    process.store.claim(key(1), None).0.renewed(record(&clock, "one")).await;
    let process = process.next(Some(&state_dir)).await;
    assert_eq!(process.token(1).as_deref(), Some("one"));
    process.files().done().await;
    let folder = &process.files().folder;
    let mut keys = Vec::new();
    let take = |key, _| {
        keys.push(key);
        true
    };
    folder.read(take).unwrap();
    assert_eq!(keys, [key(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_start_writes_only_tokens_that_the_disk_does_not_have() {
    let state_dir = TempDir::new().unwrap();
    let clock = Clock::simulated();
    let process = begin(&clock, Some(&state_dir)).await;
    process.store.claim(key(1), None).0.renewed(record(&clock, "one")).await;
    process.store.claim(key(2), None).0.changed(Record::default());
    let files = || {
        let files = std::fs::read_dir(state_dir.path().join("tokens")).unwrap();
        files.map(|file| file.unwrap().ino()).collect::<Vec<u64>>()
    };
    let written = files();
    assert_eq!(written.len(), 1);
    let process = process.next(Some(&state_dir)).await;
    assert!(process.token(1).is_some());
    assert!(process.store.claim(key(2), None).1.is_some());
    process.files().done().await;
    assert_eq!(files(), written);
}

#[tokio::test(start_paused = true)]
async fn a_token_from_the_disk_is_in_memory_from_then_on() {
    let (clock, disk) = before_a_reboot().await;
    let process = begin(&clock, Some(&disk)).await;
    assert!(process.token(1).is_some());
    assert_eq!(process.next(None).await.token(1).as_deref(), Some("a token"));
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_record_is_wiped() {
    let (_, process) = start().await;
    process.store.lock().memory.as_mut().unwrap().put(&key(1), b"a secret of another format").unwrap();
    let process = process.next(None).await;
    assert_eq!(process.token(1), None);
    assert!(process.recovered().records.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_whole_records_of_a_damaged_memory_are_in_the_new_one() {
    let (clock, process) = start().await;
    process.store.claim(key(1), None).0.renewed(record(&clock, "one")).await;
    let memory = File::from(process.memory());
    memory.write_all_at(&[0xff; 256], memory.metadata().unwrap().len()).unwrap();
    assert!(process.recovered().is_damaged);
    let manager = FdStore::Present { left: Some(memory.into()), is_proved: true };
    let store = Store::open(clock.clone(), manager, |_| (), "/".as_ref(), None).await;
    let process = Process { store, clock };
    assert!(!process.recovered().is_damaged);
    // That one is killed before anybody asks it for anything.
    assert_eq!(process.next(None).await.token(1).as_deref(), Some("one"));
}

#[tokio::test(start_paused = true)]
async fn a_removed_credential_stores_nothing_more() {
    let (clock, process) = start().await;
    let (writer, _) = process.store.claim(key(1), None);
    writer.renewed(record(&clock, "one")).await;
    writer.discard();
    // The exchange that it was in comes to its end.
    writer.renewed(record(&clock, "late")).await;
    assert_eq!(process.next(None).await.token(1), None);
}

#[tokio::test(start_paused = true)]
async fn a_record_of_two_credentials_is_wiped_when_the_second_is_removed() {
    let (clock, process) = start().await;
    let [(one, _), (two, _)] = [(); 2].map(|()| process.store.claim(key(1), None));
    one.renewed(record(&clock, "one")).await;
    one.discard();
    let process = process.next(None).await;
    assert_eq!(process.token(1).as_deref(), Some("one"));
    drop(two);
}

#[tokio::test(start_paused = true)]
async fn an_orderly_end_is_told_from_a_crash() {
    let (_, process) = start().await;
    let process = process.next(None).await;
    assert_eq!(process.store.previous_exit, PreviousExit::Crashed);
    process.store.note_orderly_end();
    let process = process.next(None).await;
    assert_eq!(process.store.previous_exit, PreviousExit::Orderly);
    assert_eq!(
        process.next(None).await.store.previous_exit,
        PreviousExit::Crashed,
        "a crash after it is one again"
    );
}

#[tokio::test(start_paused = true)]
async fn the_fingerprint_key_survives_a_restart() {
    let (_, process) = start().await;
    let before = process.store.fingerprint_key().await.unwrap();
    let process = process.next(None).await;
    assert_eq!(process.store.fingerprint_key().await.unwrap(), before);
    let (_, other) = start().await;
    assert_ne!(other.store.fingerprint_key().await.unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn the_fingerprint_key_survives_a_reboot() {
    let (clock, process) = start().await;
    let before = process.store.fingerprint_key().await.unwrap();
    // The state key is given only now.
    let disk = TempDir::new().unwrap();
    let process = process.next(Some(&disk)).await;
    process.store.fingerprint_key().await.unwrap();
    process.files().done().await;
    drop(process);
    let process = begin(&clock, Some(&disk)).await;
    assert_eq!(process.store.fingerprint_key().await.unwrap(), before);
    drop(process);

    // It is given from the beginning.
    let disk = TempDir::new().unwrap();
    let mut keys = Vec::new();
    for _ in 0..2 {
        let process = begin(&clock, Some(&disk)).await;
        keys.push(process.store.fingerprint_key().await.unwrap());
        process.files().done().await;
    }
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test(start_paused = true)]
async fn the_state_of_a_throttle_survives_a_crash() {
    let (clock, process) = start().await;
    let (writer, none) = process.store.claim_throttle("https://id.example");
    assert_eq!(none, None);
    let condition = ThrottleRecord {
        quiet_until: Some(clock.now().after(Duration::from_secs(60))),
        failures: 5,
        ..ThrottleRecord::default()
    };
    writer.changed(&condition);
    let process = process.next(None).await;
    assert_eq!(process.store.claim_throttle("https://id.example").1, Some(condition));
}

#[tokio::test]
async fn a_sealed_token_survives_without_memory_and_is_removed_with_its_configuration() {
    let (clock, disk) = before_a_reboot().await;
    let process = begin(&clock, Some(&disk)).await;
    assert_eq!(process.token(1).as_deref(), Some("a token"));
    process.store.drop_unclaimed();
    process.files().done().await;
    let files = std::fs::read_dir(disk.path().join("tokens")).unwrap().count();
    assert_eq!(files, 1, "the other token was not asked for by anybody");
    let (writer, _) = process.store.claim(key(1), None);
    writer.discard();
    drop(writer);
    let process = process.next(Some(&disk)).await;
    assert_eq!(process.token(1).as_deref(), Some("a token"), "another credential of this key still has it");
}

#[tokio::test]
async fn a_damaged_file_is_not_used_and_is_in_the_status_once_its_token_is_written() {
    let (clock, disk) = before_a_reboot().await;
    for file in std::fs::read_dir(disk.path().join("tokens")).unwrap() {
        std::fs::write(file.unwrap().path(), b"spoilt").unwrap();
    }
    let process = begin(&clock, Some(&disk)).await;
    let (writer, found) = process.store.claim(key(1), None);
    assert_eq!(found, None);
    assert_eq!(process.fact("damaged-files"), None, "they may be of another state key");
    for _ in 0..2 {
        writer.renewed(record(&clock, "a token")).await;
        assert!(process.fact("damaged-files").unwrap().starts_with("1 found since the start"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_delays_one_token_by_two_seconds_and_is_shown_until_it_works_again() {
    let disk = TempDir::new().unwrap();
    let clock = Clock::simulated();
    let process = begin(&clock, Some(&disk)).await;
    let (writer, _) = process.store.claim(key(1), None);
    let fact = || process.fact("reboot").unwrap();
    // As if the thread that writes were in a system call that does not return.
    let hang = |is_hanging| process.files().queue().is_working = is_hanging;
    hang(true);
    let began = clock.now();
    writer.renewed(record(&clock, "one")).await;
    assert_eq!(clock.now().since(began), Duration::from_secs(2));
    assert!(fact().contains("takes more than 2 s"), "{}", fact());
    writer.renewed(record(&clock, "two")).await;
    assert_eq!(
        clock.now().since(began),
        Duration::from_secs(2),
        "no token waits for a disk that is known to hang"
    );
    hang(false);
    writer.renewed(record(&clock, "three")).await;
    process.files().done().await;
    assert!(fact().starts_with("tokens are sealed in"), "{}", fact());
    hang(true);
    let began = clock.now();
    writer.renewed(record(&clock, "four")).await;
    assert_eq!(
        clock.now().since(began),
        Duration::from_secs(2),
        "it works again, so a token waits for it again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_is_repeated_once_the_disk_works() {
    let disk = TempDir::new().unwrap();
    // A file where the folder should be.
    let place = disk.path().join("tokens");
    std::fs::write(&place, b"").unwrap();
    let clock = Clock::simulated();
    let process = begin(&clock, Some(&disk)).await;
    let fact = || process.fact("reboot").unwrap();
    let writers = [1, 2].map(|number| process.store.claim(key(number), None).0);
    for writer in &writers {
        writer.renewed(record(&clock, "a token")).await;
    }
    assert!(fact().starts_with("tokens are not kept"), "{}", fact());
    std::fs::remove_file(&place).unwrap();
    writers[0].renewed(record(&clock, "a token")).await;
    process.files().done().await;
    assert!(fact().starts_with("tokens are sealed in"), "{}", fact());
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 2, "the other one with it");
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_is_repeated_after_a_while_without_another_write() {
    let disk = TempDir::new().unwrap();
    // A file where the folder should be.
    let place = disk.path().join("tokens");
    std::fs::write(&place, b"").unwrap();
    let clock = Clock::simulated();
    let process = begin(&clock, Some(&disk)).await;
    process.store.claim(key(1), None).0.renewed(record(&clock, "a token")).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    process.files().done().await;
    assert!(process.fact("reboot").unwrap().starts_with("tokens are not kept"), "it fails again");
    std::fs::remove_file(&place).unwrap();
    tokio::time::sleep(Duration::from_secs(31)).await;
    process.files().done().await;
    assert!(process.fact("reboot").unwrap().starts_with("tokens are sealed in"));
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1);
}

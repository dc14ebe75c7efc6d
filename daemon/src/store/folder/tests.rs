//! Faults of disks and files.

use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use tempfile::TempDir;
use tokend_protocol::Secret;

use super::*;

const STATE_KEY: &str = "0123456789abcdef0123456789abcdef";
const RECORD: &[u8] = b"a record with a token";

/// More than any of this takes.
const PATIENCE: Duration = Duration::from_secs(20);

impl Folder {
    /// Makes writers wait, as a disk does that hangs.
    pub(in crate::store) fn hang(&self) -> impl Sized + '_ {
        self.directory.lock().unwrap()
    }
}

fn key(number: u8) -> Key {
    Key([number; 32])
}

fn folder(state_dir: &Path) -> Folder {
    with_state_key(state_dir, STATE_KEY)
}

fn with_state_key(state_dir: &Path, state_key: &str) -> Folder {
    Folder::new(state_dir, Sealer::new(&Secret::from(state_key.to_owned())).unwrap())
}

/// The records that open, by their keys.
fn read(folder: &Folder) -> Result<Vec<Vec<u8>>, String> {
    let mut records = Vec::new();
    let take = |key: Key, record| {
        records.push((key.0, record));
        true
    };
    folder.read(take)?;
    records.sort();
    Ok(records.into_iter().map(|(_, record)| record).collect())
}

/// The records that the next start reads.
fn records(state_dir: &Path) -> Vec<Vec<u8>> {
    read(&folder(state_dir)).unwrap()
}

fn names(state_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(state_dir.join(FOLDER)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs a test on a small disk of its own, which nobody else sees. Only root can.
fn on_a_disk(test: impl FnOnce(&Path) + Send) {
    if !geteuid().is_root() {
        return;
    }
    let place = TempDir::new().unwrap();
    thread::scope(|scope| {
        let on_it = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            let disk = Some("tmpfs");
            mount(disk, place.path(), disk, MsFlags::empty(), Some("size=64k,mode=0700")).unwrap();
            test(place.path());
        });
        on_it.join().unwrap();
    });
}

fn make_read_only(disk: &Path) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, disk, None::<&str>, flags, None::<&str>).unwrap();
}

#[test]
fn the_next_start_finds_what_was_written_in_files_of_the_owner_only() {
    let state = TempDir::new().unwrap();
    let first = folder(state.path());
    assert_eq!(read(&first).unwrap().len(), 0);
    first.write(&key(1), b"former").unwrap();
    first.write(&key(1), RECORD).unwrap();
    first.write(&key(2), b"other").unwrap();
    drop(first);
    assert_eq!(records(state.path()), [RECORD.to_vec(), b"other".to_vec()]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&state.path().join(FOLDER)), 0o700);
    for name in names(state.path()) {
        assert_eq!(mode(&state.path().join(FOLDER).join(name)), 0o600);
    }
    folder(state.path()).remove(&key(2)).unwrap();
    assert_eq!(records(state.path()), [RECORD.to_vec()]);
}

#[test]
fn a_full_disk_keeps_the_old_record_and_the_error_names_the_remedy() {
    on_a_disk(|disk| {
        let folder = folder(disk);
        folder.write(&key(1), RECORD).unwrap();
        fs::write(disk.join("ballast"), vec![0; 64 * 1024]).unwrap_err();
        let error = folder.write(&key(1), &vec![b'x'; 20_000]).unwrap_err();
        assert!(error.contains("tokens/") && error.contains("free some space there"), "{error}");
        drop(folder);
        assert_eq!(names(disk).len(), 1, "no draft is left");
        assert_eq!(records(disk), [RECORD.to_vec()]);
        fs::remove_file(disk.join("ballast")).unwrap();
        super::tests::folder(disk).write(&key(1), b"again").unwrap();
        assert_eq!(records(disk), [b"again".to_vec()]);
    });
}

#[test]
fn a_read_only_disk_is_read_and_the_first_write_fails_with_the_remedy() {
    on_a_disk(|disk| {
        folder(disk).write(&key(1), RECORD).unwrap();
        make_read_only(disk);
        assert_eq!(records(disk), [RECORD.to_vec()]);
        let error = folder(disk).write(&key(1), b"new").unwrap_err();
        assert!(error.contains("make it writable, or set daemon.state_dir"), "{error}");
        assert_eq!(records(disk), [RECORD.to_vec()]);
    });
}

#[test]
fn a_missing_state_directory_is_an_error_and_is_used_once_it_exists() {
    let place = TempDir::new().unwrap();
    let state = place.path().join("state");
    let folder = folder(&state);
    let check = |text: String| {
        assert!(text.contains("state/tokens") && text.contains("make daemon.state_dir a folder"), "{text}");
    };
    check(read(&folder).unwrap_err());
    check(folder.write(&key(1), RECORD).unwrap_err());
    fs::create_dir(&state).unwrap();
    folder.write(&key(1), RECORD).unwrap();
    drop(folder);
    assert_eq!(records(&state), [RECORD.to_vec()]);
}

#[test]
fn files_of_another_state_key_are_left_as_they_are() {
    let state = TempDir::new().unwrap();
    folder(state.path()).write(&key(1), RECORD).unwrap();
    let other = with_state_key(state.path(), "another key of thirty-two bytes!");
    assert_eq!(read(&other).unwrap().len(), 0);
    other.write(&key(1), b"another").unwrap();
    other.remove(&key(1)).unwrap();
    assert_eq!(other.damaged.load(Ordering::Relaxed), 0, "under this key it would have another name");
    drop(other);
    assert_eq!(records(state.path()), [RECORD.to_vec()], "the first key's file is whole");
}

#[test]
fn a_damaged_torn_foreign_or_swapped_file_is_moved_aside_before_the_first_write() {
    /// Does something to a file, with another one at hand.
    type Spoil = fn(&Path, &Path);
    let spoil: [(&str, Spoil); 5] = [
        ("changed", |file, _| {
            let mut bytes = fs::read(file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(file, bytes).unwrap();
        }),
        ("torn", |file, _| {
            let bytes = fs::read(file).unwrap();
            fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("empty", |file, _| fs::write(file, b"").unwrap()),
        ("foreign", |file, _| fs::write(file, b"something else that was put there").unwrap()),
        ("swapped", |file, other| {
            fs::copy(other, file).unwrap();
        }),
    ];
    for (what, spoil) in spoil {
        let state = TempDir::new().unwrap();
        let first = folder(state.path());
        first.write(&key(1), RECORD).unwrap();
        first.write(&key(2), b"other").unwrap();
        let [file, other] = [1, 2].map(|number| first.path.join(first.sealer.name(&key(number))));
        drop(first);
        spoil(&file, &other);
        let spoilt = fs::read(&file).unwrap();

        let next = folder(state.path());
        assert_eq!(read(&next).unwrap(), [b"other"], "{what}");
        next.remove(&key(1)).unwrap();
        assert_eq!(fs::read(&file).unwrap(), spoilt, "{what}: what may be recovered is not removed");
        for record in [b"first", b"again"] {
            next.write(&key(1), record).unwrap();
        }
        assert_eq!(next.damaged.load(Ordering::Relaxed), 1, "{what}");
        assert_eq!(fs::read(file.with_extension("1.damaged")).unwrap(), spoilt, "{what}");
        assert_eq!(names(state.path()).len(), 3, "{what}: what was written since is whole");
        next.remove(&key(2)).unwrap();
        drop(next);
        assert_eq!(records(state.path()), [b"again"], "{what}");
    }
}

#[test]
fn damaged_files_of_one_name_are_limited() {
    let state = TempDir::new().unwrap();
    let folder = folder(state.path());
    folder.write(&key(1), RECORD).unwrap();
    let place = folder.path.join(&names(state.path())[0]);
    for _ in 0..DAMAGED_MAX {
        fs::write(&place, b"spoilt").unwrap();
        folder.write(&key(1), RECORD).unwrap();
    }
    fs::write(&place, b"the last").unwrap();
    let error = folder.write(&key(1), RECORD).unwrap_err();
    assert!(error.contains("there are 9 damaged ones already; remove them"), "{error}");
    assert_eq!(fs::read(&place).unwrap(), b"the last", "it is not written over");
    fs::remove_file(place.with_extension("1.damaged")).unwrap();
    folder.write(&key(1), RECORD).unwrap();
}

#[test]
fn a_pipe_in_place_of_a_file_blocks_nothing() {
    let state = TempDir::new().unwrap();
    folder(state.path()).write(&key(1), RECORD).unwrap();
    let place = state.path().join(FOLDER).join(&names(state.path())[0]);
    fs::remove_file(&place).unwrap();
    nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (done, wait) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let folder = folder(state.path());
        let read = read(&folder).unwrap().len();
        let written = folder.write(&key(1), b"new").is_ok();
        drop(folder);
        done.send((read, written, records(state.path()))).unwrap();
    });
    let done = wait.recv_timeout(PATIENCE).expect("nobody writes to the pipe");
    assert_eq!(done, (0, true, vec![b"new".to_vec()]));
}

#[test]
fn a_file_is_read_up_to_the_largest_record() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().join("huge");
    File::create(&place).unwrap().set_len(FILE_MAX + 4096).unwrap();
    assert_eq!(content(&place).unwrap().len() as u64, FILE_MAX);
}

#[test]
fn only_drafts_of_writes_that_were_cut_off_are_removed() {
    let state = TempDir::new().unwrap();
    let first = folder(state.path());
    first.write(&key(1), RECORD).unwrap();
    let draft = format!("{}{DRAFT}", first.sealer.name(&key(1)));
    fs::write(first.path.join(&draft), b"half").unwrap();
    fs::write(first.path.join("notes.new"), b"an administrator's").unwrap();
    drop(first);
    assert_eq!(records(state.path()), [RECORD.to_vec()]);
    let left = names(state.path());
    assert!(!left.contains(&draft) && left.contains(&"notes.new".to_owned()), "{left:?}");
}

#[test]
fn a_second_daemon_gets_an_error() {
    let state = TempDir::new().unwrap();
    let (first, second) = (folder(state.path()), folder(state.path()));
    first.write(&key(1), RECORD).unwrap();
    let error = second.write(&key(2), RECORD).unwrap_err();
    assert!(error.contains("another process uses this folder"), "{error}");
    assert!(read(&second).is_err());
    drop(first);
    second.write(&key(2), b"other").unwrap();
}

#[test]
fn a_link_in_place_of_a_file_is_not_followed() {
    let (state, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = folder(state.path());
    first.write(&key(1), RECORD).unwrap();
    let file = first.path.join(first.sealer.name(&key(1)));
    let target = elsewhere.path().join("target");
    fs::rename(&file, &target).unwrap();
    std::os::unix::fs::symlink(&target, &file).unwrap();
    drop(first);
    assert_eq!(read(&folder(state.path())).unwrap().len(), 0);
    let next = folder(state.path());
    read(&next).unwrap();
    next.write(&key(1), b"new").unwrap();
    assert_eq!(fs::read(&target).unwrap().len(), 10 + 32 + 32 + RECORD.len() + 16, "it is as it was");
}

#[test]
fn a_reader_can_stop_early() {
    let state = TempDir::new().unwrap();
    for number in 1..=3 {
        folder(state.path()).write(&key(number), RECORD).unwrap();
    }
    let mut taken = 0;
    let count = |_, _| {
        taken += 1;
        false
    };
    folder(state.path()).read(count).unwrap();
    assert_eq!(taken, 1);
}

#[test]
fn a_removed_folder_is_made_again() {
    let state = TempDir::new().unwrap();
    let folder = folder(state.path());
    folder.write(&key(1), RECORD).unwrap();
    fs::remove_dir_all(&folder.path).unwrap();
    assert!(folder.write(&key(1), RECORD).is_err());
    folder.write(&key(1), RECORD).unwrap();
    drop(folder);
    assert_eq!(records(state.path()), [RECORD]);
}

//! Sequences of changes, cut off after any number of bytes. A successor finds the state before the change or the one
//! after it, wipes the rest, and can go on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Read;

use proptest::prelude::*;

use super::*;

/// The records that were stored, as far as the writer knows.
type Model = BTreeMap<u8, Vec<u8>>;

#[derive(Clone, Debug)]
enum Change {
    Put(u8, Vec<u8>),
    Remove(u8),
}
use Change::{Put, Remove};

/// The bytes of a memory, whose writer is killed once it has written so many more bytes.
#[derive(Clone, Debug)]
struct Bytes {
    bytes: RefCell<Vec<u8>>,
    budget: Cell<usize>,
}

impl FileExt for Bytes {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.bytes.borrow().get(usize::try_from(at).unwrap()..).unwrap_or_default().read(buffer)
    }

    fn write_at(&self, new: &[u8], at: u64) -> io::Result<usize> {
        let (at, mut bytes) = (usize::try_from(at).unwrap(), self.bytes.borrow_mut());
        let length = new.len().min(self.budget.get());
        let end = bytes.len().max(at + length);
        bytes.resize(end, 0);
        bytes[at..at + length].copy_from_slice(&new[..length]);
        self.budget.set(self.budget.get() - length);
        if length < new.len() { Err(io::Error::other("killed")) } else { Ok(length) }
    }
}

type Contents = Recovered<Bytes>;

impl Memory<Bytes> {
    fn apply(&mut self, change: &Change) -> io::Result<()> {
        match change {
            Put(number, record) => self.put(&key(*number), record),
            Remove(number) => self.remove(&key(*number)),
        }
    }

    fn all(&self) -> Vec<u8> {
        self.file.bytes.borrow().clone()
    }
}

/// The records that the next process finds, before it writes.
fn recover(bytes: &[u8]) -> io::Result<Contents> {
    let (length, bytes) = (bytes.len() as u64, RefCell::new(bytes.to_vec()));
    Memory::recover(Bytes { bytes, budget: Cell::new(usize::MAX) }, length)
}

fn key(number: u8) -> Key {
    Key([number; KEY_LENGTH])
}

fn model(contents: &Contents) -> Model {
    assert!(!contents.is_damaged, "a change that was cut off is no damage");
    contents.records.iter().map(|(key, record)| (key.0[0], record.clone())).collect()
}

fn apply(model: &mut Model, change: &Change) {
    match change {
        Put(number, record) => drop(model.insert(*number, record.clone())),
        Remove(number) => drop(model.remove(number)),
    }
}

/// Applies changes. With a stride, each is also cut off after every so many bytes.
fn run(changes: &[Change], stride: Option<usize>) -> (Memory<Bytes>, Model) {
    let empty = Bytes { bytes: RefCell::default(), budget: Cell::new(usize::MAX) };
    let (mut memory, mut expected) = (Memory::begin(empty).unwrap(), Model::new());
    for change in changes {
        let (before, image) = (expected.clone(), memory.all());
        memory.file.budget.set(usize::MAX);
        memory.apply(change).unwrap();
        apply(&mut expected, change);
        let written = usize::MAX - memory.file.budget.get();
        assert_eq!(model(&recover(&memory.all()).unwrap()), expected);
        for cut in stride.into_iter().flat_map(|stride| (0..written).step_by(stride)) {
            let mut killed = recover(&image).unwrap().memory;
            killed.file.budget.set(cut);
            killed.apply(change).unwrap_err();
            let found = recover(&killed.all()).unwrap();
            let found_model = model(&found);
            assert!(found_model == before || found_model == expected, "{change:?} cut off after {cut} bytes");
            assert_only_these(&found.memory.all(), &found_model);
            check_that_it_can_go_on(found);
        }
    }
    (memory, expected)
}

/// Nothing but these records is left in a memory.
fn assert_only_these(bytes: &[u8], records: &Model) {
    let heads = records.len() * (SLOT_HEAD - MARK);
    let most = heads + records.values().map(Vec::len).sum::<usize>();
    // Free slots have only their marks.
    let slots = bytes[64..].chunks(BLOCK).filter(|block| block.starts_with(b"slot")).count();
    let nonzero = bytes[64..].iter().filter(|byte| **byte != 0).count();
    assert!(nonzero <= most + slots * MARK, "{nonzero} bytes are left of {most}");
}

fn check_that_it_can_go_on(found: Contents) {
    let (mut expected, mut memory) = (model(&found), found.memory);
    for change in [Put(1, vec![1; 300]), Put(200, vec![2; 10]), Put(201, vec![3; 700]), Remove(200)] {
        memory.apply(&change).unwrap();
        apply(&mut expected, &change);
    }
    assert_eq!(model(&recover(&memory.all()).unwrap()), expected);
    assert_only_these(&memory.all(), &expected);
}

fn change() -> impl Strategy<Value = Change> {
    let record = proptest::collection::vec(any::<u8>(), 0..1_200);
    prop_oneof![
        4 => (0_u8..5, record).prop_map(|(number, record)| Put(number, record)),
        1 => (0_u8..5).prop_map(Remove),
    ]
}

#[test]
fn a_change_that_is_cut_off_at_any_byte_leaves_the_old_state_or_the_new_one() {
    let changes = [
        Put(1, b"first".to_vec()),
        Put(2, b"other".to_vec()),
        Put(1, b"second".to_vec()),
        Put(1, vec![b'x'; 300]),
        Put(3, b"in a slot that was free".to_vec()),
        Remove(1),
        Put(4, vec![b'y'; 250]),
        Remove(2),
    ];
    run(&changes, Some(1));
}

#[test]
fn the_newer_one_of_two_states_is_found_wherever_it_lies() {
    // The larger slot, which the record moves to, lies before the smaller one.
    run(&[Put(1, vec![b'x'; 300]), Put(2, b"former".to_vec()), Remove(1), Put(2, vec![b'y'; 300])], Some(1));
}

#[test]
fn a_change_writes_two_slots_however_many_records_there_are() {
    let changes: Vec<Change> = (0..200).map(|number| Put(number, vec![number; 100])).collect();
    let (mut memory, _) = run(&changes, None);
    for _ in 0..100 {
        memory.file.budget.set(256 + 256 - MARK);
        memory.apply(&Put(17, b"new".to_vec())).unwrap();
    }
    assert_eq!(memory.all().len(), 64 + 201 * 256, "slots are used again");
}

#[test]
fn a_failed_write_leaves_the_record_as_it_was() {
    let (mut memory, mut expected) = run(&[Put(1, b"one".to_vec())], None);
    for length in [3, 300] {
        memory.file.budget.set(100);
        memory.apply(&Put(1, vec![b'x'; length])).unwrap_err();
    }
    memory.file.budget.set(usize::MAX);
    assert_eq!(memory.record(&key(1)), Some(b"one".to_vec()));
    for change in [Put(2, b"two".to_vec()), Put(3, vec![b'y'; 300])] {
        memory.apply(&change).unwrap();
        apply(&mut expected, &change);
    }
    assert_eq!(model(&recover(&memory.all()).unwrap()), expected);
    assert!(memory.put(&key(1), &vec![0; 1 << LARGEST]).is_err(), "it fits in no slot");
}

#[test]
fn other_formats_and_versions_are_refused() {
    let version_1 = [b"tokendRM\x01\0".as_slice(), &[0; 4096]].concat();
    for bytes in [&[], [0; 4096].as_slice(), &HEADER[..63], &version_1] {
        assert!(recover(bytes).is_err());
    }
    let (reader, _writer) = nix::unistd::pipe().unwrap();
    assert!(Memory::adopt(reader).is_err());
}

#[test]
fn damage_costs_only_the_damaged_record() {
    let changes = [Put(1, b"one".to_vec()), Put(2, vec![b'2'; 600]), Put(3, b"three".to_vec())];
    let bytes = run(&changes, None).0.all();
    // The first byte of the record, then its mark.
    for (at, is_reported) in [(64 + SLOT_HEAD, false), (64, true), (64 + 256, true), (64 + 256 + 4, true)] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        let lost = if at < 64 + 256 { 1 } else { 2 };
        let contents = recover(&bytes).unwrap();
        assert_eq!(contents.is_damaged, is_reported);
        let found: Vec<u8> = contents.records.keys().map(|key| key.0[0]).collect();
        assert!(found.len() == 2 && !found.contains(&lost), "{found:?}");
    }
    let garbage = [bytes.as_slice(), &[1; 4096]].concat();
    assert!(recover(&garbage).unwrap().is_damaged);
    let too_long = [bytes.as_slice(), &vec![0; 3 << LARGEST]].concat();
    assert!(recover(&too_long).unwrap().is_damaged, "no killed process leaves so many zeros");
}

#[test]
fn the_next_process_finds_the_records() {
    let mut memory = Memory::create().unwrap();
    memory.put(&key(1), b"one").unwrap();
    memory.put(&key(1), b"two").unwrap();
    let next = |memory: &Memory| Memory::adopt(memory.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let mut second = next(&memory);
    assert_eq!(second.records[&key(1)], b"two");
    second.memory.put(&key(1), &[b'x'; 5_000]).unwrap();
    assert_eq!(second.memory.record(&key(1)).unwrap(), [b'x'; 5_000]);
    assert_eq!(next(&second.memory).records[&key(1)], [b'x'; 5_000]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_changes_cut_off_anywhere_leave_the_old_state_or_the_new_one(
        changes in proptest::collection::vec(change(), 1..12),
        stride in 7_usize..40,
    ) {
        run(&changes, Some(stride));
    }

    #[test]
    fn flipped_bytes_make_no_other_record(
        changes in proptest::collection::vec(change(), 1..12),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..6),
    ) {
        let mut bytes = run(&changes, None).0.all();
        for (index, flip) in flips {
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
        }
        let written = |found: &Vec<u8>| changes.iter().any(|change| matches!(change, Put(_, record) if record == found));
        if let Ok(contents) = recover(&bytes) {
            prop_assert!(contents.records.values().all(written));
        }
    }

    #[test]
    fn no_bytes_cause_a_panic(rest in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = recover(&rest);
        let _ = recover(&[HEADER.as_slice(), &rest].concat());
    }
}

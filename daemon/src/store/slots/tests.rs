//! Sequences of changes, cut off after any number of bytes. A successor finds the state before the change or the one
//! after it, wipes the rest, and can go on.

use std::collections::BTreeMap;

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
struct Memory {
    bytes: Vec<u8>,
    budget: usize,
}

impl Memory {
    fn write(&mut self, at: u64, new: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        let length = new.len().min(self.budget);
        self.bytes.resize(self.bytes.len().max(at + length), 0);
        self.bytes[at..at + length].copy_from_slice(&new[..length]);
        self.budget -= length;
        if length < new.len() { Err(io::Error::other("killed")) } else { Ok(()) }
    }

    fn apply(&mut self, slots: &mut Slots, change: &Change) -> io::Result<()> {
        match change {
            Put(number, record) => slots.put(&key(*number), record, &mut |at, bytes| self.write(at, bytes)),
            Remove(number) => slots.remove(&key(*number), &mut |at, bytes| self.write(at, bytes)),
        }
    }

    /// What a successor finds, after which it may write as much as it likes.
    fn recover(&mut self) -> Contents {
        self.budget = usize::MAX;
        let before = self.bytes.clone();
        let mut read = |at, buffer: &mut [u8]| {
            let at = usize::try_from(at).unwrap();
            buffer.copy_from_slice(&before[at..at + buffer.len()]);
            Ok(())
        };
        let length = before.len() as u64;
        Contents::read(length, &mut read, &mut |at, bytes| self.write(at, bytes)).unwrap()
    }
}

fn key(number: u8) -> Key {
    Key::from_bytes([number; KEY_LENGTH])
}

fn model(contents: &Contents) -> Model {
    assert!(!contents.is_damaged, "a change that was cut off is no damage");
    contents.records.iter().map(|(key, record)| (key.as_bytes()[0], record.clone())).collect()
}

fn apply(model: &mut Model, change: &Change) {
    match change {
        Put(number, record) => drop(model.insert(*number, record.clone())),
        Remove(number) => drop(model.remove(number)),
    }
}

/// Applies changes. With a stride, each is also cut off after every so many bytes.
fn run(changes: &[Change], stride: Option<usize>) -> (Memory, Slots, Model) {
    let mut memory = Memory { bytes: HEADER.to_vec(), budget: usize::MAX };
    let (mut slots, mut expected) = (Slots::default(), Model::new());
    for change in changes {
        let (before, image) = (expected.clone(), memory.bytes.clone());
        memory.budget = usize::MAX;
        memory.apply(&mut slots, change).unwrap();
        apply(&mut expected, change);
        let written = usize::MAX - memory.budget;
        assert_eq!(model(&Contents::of(&memory.bytes).unwrap()), expected);
        for cut in stride.into_iter().flat_map(|stride| (0..written).step_by(stride)) {
            let mut left = Memory { bytes: image.clone(), budget: usize::MAX };
            let mut slots = left.recover().slots;
            left.budget = cut;
            left.apply(&mut slots, change).unwrap_err();
            let found = left.recover();
            let found_model = model(&found);
            assert!(found_model == before || found_model == expected, "{change:?} cut off after {cut} bytes");
            assert_only_these(&left.bytes, &found_model);
            check_that_it_can_go_on(left, found);
        }
    }
    (memory, slots, expected)
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

fn check_that_it_can_go_on(mut memory: Memory, found: Contents) {
    let (mut expected, mut slots) = (model(&found), found.slots);
    for change in [Put(1, vec![1; 300]), Put(200, vec![2; 10]), Put(201, vec![3; 700]), Remove(200)] {
        memory.apply(&mut slots, &change).unwrap();
        apply(&mut expected, &change);
    }
    assert_eq!(model(&Contents::of(&memory.bytes).unwrap()), expected);
    assert_only_these(&memory.bytes, &expected);
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
    let (mut memory, mut slots, _) = run(&changes, None);
    for _ in 0..100 {
        let mut writes = Vec::new();
        let mut write = |at, bytes: &[u8]| {
            writes.push(bytes.len());
            memory.write(at, bytes)
        };
        slots.put(&key(17), b"new", &mut write).unwrap();
        assert_eq!(writes, [256, 256 - MARK]);
    }
    assert_eq!(memory.bytes.len(), 64 + 201 * 256, "slots are used again");
}

#[test]
fn a_failed_write_leaves_the_record_as_it_was() {
    let (mut memory, mut slots, mut expected) = run(&[Put(1, b"one".to_vec())], None);
    for length in [3, 300] {
        memory.budget = 100;
        memory.apply(&mut slots, &Put(1, vec![b'x'; length])).unwrap_err();
    }
    memory.budget = usize::MAX;
    assert_eq!(
        slots.record(&key(1), &mut |at, buffer| {
            buffer.copy_from_slice(&memory.bytes[usize::try_from(at).unwrap()..][..buffer.len()]);
            Ok(())
        }),
        Some(b"one".to_vec())
    );
    for change in [Put(2, b"two".to_vec()), Put(3, vec![b'y'; 300])] {
        memory.apply(&mut slots, &change).unwrap();
        apply(&mut expected, &change);
    }
    assert_eq!(model(&memory.recover()), expected);
    assert!(slots.put(&key(1), &vec![0; 1 << LARGEST], &mut |_, _| Ok(())).is_err(), "it fits in no slot");
}

#[test]
fn other_formats_and_versions_are_refused() {
    let version_1 = [b"tokendRM\x01\0".as_slice(), &[0; 4096]].concat();
    for bytes in [&[], [0; 4096].as_slice(), &HEADER[..63], &version_1] {
        assert!(Contents::of(bytes).is_err());
    }
}

#[test]
fn damage_costs_only_the_damaged_record() {
    let changes = [Put(1, b"one".to_vec()), Put(2, vec![b'2'; 600]), Put(3, b"three".to_vec())];
    let (memory, _, model) = run(&changes, None);
    // The first byte of the record, then its mark.
    for (at, is_reported) in [(64 + SLOT_HEAD, false), (64, true), (64 + 256, true), (64 + 256 + 4, true)] {
        let mut bytes = memory.bytes.clone();
        bytes[at] ^= 1;
        let lost = if at < 64 + 256 { 1 } else { 2 };
        let contents = Contents::of(&bytes).unwrap();
        assert_eq!(contents.is_damaged, is_reported);
        let found: Vec<u8> = contents.records.keys().map(|key| key.as_bytes()[0]).collect();
        assert!(found.len() == 2 && !found.contains(&lost), "{found:?} of {:?}", model.keys());
    }
    let garbage = [memory.bytes.as_slice(), &[1; 4096]].concat();
    assert!(Contents::of(&garbage).unwrap().is_damaged);
    let mut huge = Memory { bytes: memory.bytes, budget: usize::MAX };
    huge.bytes.resize(3 << LARGEST, 0);
    assert!(huge.recover().is_damaged, "nobody leaves so many zeros");
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
        let (mut memory, _, _) = run(&changes, None);
        for (index, flip) in flips {
            let at = index.index(memory.bytes.len());
            memory.bytes[at] ^= flip;
        }
        let written = |found: &Vec<u8>| changes.iter().any(|change| matches!(change, Put(_, record) if record == found));
        if let Ok(contents) = Contents::of(&memory.bytes) {
            prop_assert!(contents.records.values().all(written));
        }
    }

    #[test]
    fn no_bytes_cause_a_panic(rest in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = Contents::of(&rest);
        let _ = Contents::of(&[HEADER.as_slice(), &rest].concat());
    }
}

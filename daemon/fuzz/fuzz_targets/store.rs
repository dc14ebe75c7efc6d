//! The memory that outlives the process, after any changes, a kill in the middle of the last one, and any damage: it
//! is read without a panic, every record is one that was stored under its key, and without damage the last one or the
//! one before it. A successor can go on with it.
#![no_main]

use std::collections::HashMap;
use std::io;

use libfuzzer_sys::fuzz_target;
use tokend::store::key::Key;
use tokend::store::slots::{Contents, HEADER, Slots};

/// How many records there are, at most.
const KEYS: u8 = 5;

fuzz_target!(|input: &[u8]| {
    // Any bytes at all, and after a good header.
    let _ = Contents::of(input);
    let _ = Contents::of(&[HEADER.as_slice(), input].concat());
    let mut input = input.iter().copied();
    let mut next = || input.next().unwrap_or_default();
    let mut memory = Memory::new();
    for _ in 0..next() % 32 {
        memory.change(next(), next());
    }
    memory.budget = usize::from(next()) << (next() % 8);
    let in_doubt = memory.change(next(), next());
    let damage = next() % 4;
    for _ in 0..damage {
        let place = usize::from(u16::from_le_bytes([next(), next()])) % memory.bytes.len();
        memory.bytes[place] ^= next();
    }
    memory.check(in_doubt, damage == 0);
});

struct Memory {
    bytes: Vec<u8>,
    slots: Slots,
    /// How many bytes the process writes before it is killed.
    budget: usize,
    /// What was stored under each key, in order. An empty one stands for none.
    history: HashMap<Key, Vec<Vec<u8>>>,
    count: u32,
}

impl Memory {
    fn new() -> Self {
        let slots = Slots::default();
        Self { bytes: HEADER.to_vec(), slots, budget: usize::MAX, history: HashMap::new(), count: 0 }
    }

    /// Changes a record: of a size that is 0, removes it.
    fn change(&mut self, which: u8, size: u8) -> Key {
        let key = key(which);
        self.count += 1;
        // No two are the same, so that an old one is not taken for a new one.
        let fill = self.count.to_le_bytes();
        let record: Vec<u8> = fill.iter().copied().cycle().take(usize::from(size) * 8).collect();
        let (bytes, budget) = (&mut self.bytes, &mut self.budget);
        let mut write = |at, new: &[u8]| write(bytes, budget, at, new);
        let done = if record.is_empty() {
            self.slots.remove(&key, &mut write)
        } else {
            self.slots.put(&key, &record, &mut write)
        };
        assert!(done.is_ok() || self.budget == 0);
        self.history.entry(key).or_default().push(record);
        key
    }

    fn check(mut self, in_doubt: Key, is_undamaged: bool) {
        let before = self.bytes.clone();
        let mut read = |at: u64, buffer: &mut [u8]| {
            buffer.copy_from_slice(&before[usize::try_from(at).expect("it fits")..][..buffer.len()]);
            Ok(())
        };
        self.budget = usize::MAX;
        let (bytes, budget) = (&mut self.bytes, &mut self.budget);
        let mut write = |at, new: &[u8]| write(bytes, budget, at, new);
        let contents = Contents::read(before.len() as u64, &mut read, &mut write);
        let Ok(contents) = contents else { return assert!(!is_undamaged) };
        assert!(!(is_undamaged && contents.is_damaged));
        for (key, record) in &contents.records {
            assert!(self.history[key].contains(record), "a record that was never stored");
        }
        if is_undamaged {
            for (key, stored) in &self.history {
                let found = contents.records.get(key).map_or(&[][..], |record| record.as_slice());
                let may_be = if *key == in_doubt { 2 } else { 1 };
                let is_recent = stored.iter().rev().take(may_be).any(|record| record == found);
                let is_first = stored.len() < may_be && found.is_empty();
                assert!(is_recent || is_first, "neither the last record nor the one before it");
            }
        }
        self.slots = contents.slots;
        if !contents.is_damaged {
            let key = self.change(0, 1);
            let again = Contents::of(&self.bytes).expect("the header is as it was");
            assert_eq!(again.records.get(&key), self.history[&key].last());
        }
    }
}

fn key(which: u8) -> Key {
    Key::named(&format!("key {}", which % KEYS))
}

fn write(bytes: &mut Vec<u8>, budget: &mut usize, at: u64, new: &[u8]) -> io::Result<()> {
    let at = usize::try_from(at).expect("it fits");
    let length = new.len().min(*budget);
    bytes.resize(bytes.len().max(at + length), 0);
    bytes[at..at + length].copy_from_slice(&new[..length]);
    *budget -= length;
    if length < new.len() { Err(io::Error::other("killed")) } else { Ok(()) }
}

//! The memory that outlives the process, after any changes, a kill in the middle of the last one, and any damage: it
//! is read without a panic, every record is one that was kept under its key, and without damage the last or the one
//! before it. What was read can be written further.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use tokend::store::key::Key;
use tokend::store::layout::{Layout, Plan, Step, header, read};

/// How many records there are, at most.
const KEYS: u8 = 5;

fuzz_target!(|input: &[u8]| {
    // Any bytes at all, and after a good header.
    let _ = read(input);
    let _ = read(&[header().as_slice(), input].concat());
    let mut input = input.iter().copied();
    let mut next = || input.next().unwrap_or_default();
    let mut memory = Memory::new();
    for _ in 0..next() % 32 {
        memory.change(next(), next());
    }
    let cut = usize::from(next()) << (next() % 8);
    memory.cut_off_change(next(), next(), cut);
    let damage = next() % 4;
    for _ in 0..damage {
        let place = usize::from(u16::from_le_bytes([next(), next()])) % memory.bytes.len();
        memory.bytes[place] ^= next();
    }
    memory.check(damage == 0);
});

struct Memory {
    bytes: Vec<u8>,
    layout: Layout,
    /// What was kept under each key, in order. An empty one stands for none.
    history: HashMap<Key, Vec<Vec<u8>>>,
    /// The key of the change that was cut off.
    in_doubt: Option<Key>,
    count: u32,
}

impl Memory {
    fn new() -> Self {
        let (bytes, layout) = (header(), Layout::empty());
        Self { bytes, layout, history: HashMap::new(), in_doubt: None, count: 0 }
    }

    fn change(&mut self, which: u8, size: u8) {
        let (key, plan) = self.plan(which, size);
        let Some(plan) = plan else { return };
        for step in &plan.steps {
            self.carry_out(step, usize::MAX);
        }
        self.layout.commit(&plan);
        self.in_doubt = None;
        assert_eq!(
            self.layout.slot(&key).is_some(),
            self.history[&key].last().is_some_and(|last| !last.is_empty())
        );
    }

    /// Begins a change and is killed after so many bytes.
    fn cut_off_change(&mut self, which: u8, size: u8, mut bytes: usize) {
        let (key, plan) = self.plan(which, size);
        for step in plan.iter().flat_map(|plan| &plan.steps) {
            bytes = self.carry_out(step, bytes);
        }
        self.in_doubt = Some(key);
    }

    /// A change of a record: of a size that is 0, its removal.
    fn plan(&mut self, which: u8, size: u8) -> (Key, Option<Plan>) {
        let key = Key::of_the(&format!("key {}", which % KEYS));
        self.count += 1;
        // No two are the same, so that an old one is not taken for a new one.
        let fill = self.count.to_le_bytes();
        let record: Vec<u8> = fill.iter().copied().cycle().take(usize::from(size) * 8).collect();
        let plan =
            if record.is_empty() { self.layout.remove(&key) } else { self.layout.put(&key, &record).ok() };
        self.history.entry(key).or_default().push(record);
        (key, plan)
    }

    /// As much of a step as so many bytes: how many are left.
    fn carry_out(&mut self, step: &Step, bytes: usize) -> usize {
        if bytes == 0 {
            return 0;
        }
        let write = |memory: &mut Vec<u8>, at: u64, new: &[u8]| {
            let at = usize::try_from(at).expect("it fits");
            let length = new.len().min(bytes);
            memory[at..at + length].copy_from_slice(&new[..length]);
            bytes - length
        };
        match step {
            // A length is changed as a whole.
            Step::Grow(length) => {
                self.bytes.resize(usize::try_from(*length).expect("it fits"), 0);
                bytes
            }
            Step::Write(at, new) => write(&mut self.bytes, *at, new),
            Step::Wipe(at, length) => write(&mut self.bytes, *at, &vec![0; *length]),
        }
    }

    fn check(mut self, is_undamaged: bool) {
        let contents = match read(&self.bytes) {
            Ok(contents) => contents,
            Err(_) => return assert!(!is_undamaged),
        };
        assert!(!(is_undamaged && contents.is_damaged));
        for (key, record) in &contents.records {
            assert!(self.history[key].contains(record), "a record that was never kept");
        }
        if is_undamaged {
            for (key, kept) in &self.history {
                let found = contents.records.get(key).map_or(&[][..], |record| record.as_slice());
                let may_be = if self.in_doubt == Some(*key) { 2 } else { 1 };
                let is_recent = kept.iter().rev().take(may_be).any(|record| record == found);
                let is_first = kept.len() < may_be && found.is_empty();
                assert!(is_recent || is_first, "neither the last record nor the one before it");
            }
        }
        self.layout = contents.layout;
        for leftover in contents.leftovers {
            let step = self.layout.clear(leftover);
            self.carry_out(&step, usize::MAX);
        }
        if !contents.is_damaged {
            self.change(0, 1);
            let again = read(&self.bytes).expect("the header is as it was");
            let last = self.history[&Key::of_the("key 0")].last();
            assert_eq!(again.records.get(&Key::of_the("key 0")).map(|record| record.to_vec()).as_ref(), last);
        }
    }
}

//! The memory that outlives the process, after any changes, a kill in the middle of the last one, and any damage: it
//! is read without a panic, every record is one that was stored under its key, and without damage the last one or the
//! one before it. A successor can go on with it.
#![no_main]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use tokend::store::memory::{HEADER, Memory, Recovered};
use tokend::store::record::Key;

/// The number of keys.
const KEYS: u8 = 5;

fuzz_target!(|input: &[u8]| {
    // Any bytes at all, and after a good header.
    let _ = recover(&Bytes::new(input.to_vec()));
    let _ = recover(&Bytes::new([HEADER.as_slice(), input].concat()));
    let mut input = input.iter().copied();
    let mut next = || input.next().unwrap_or_default();
    let bytes = Bytes::new(Vec::new());
    let memory = Memory::begin(bytes.clone()).expect("nothing limits it");
    let mut writer = Writer { memory, history: HashMap::new(), count: 0 };
    for _ in 0..next() % 32 {
        writer.change(next(), next()).expect("nothing limits it");
    }
    bytes.budget.set(usize::from(next()) << (next() % 8));
    let in_doubt = next();
    let _ = writer.change(in_doubt, next());
    bytes.budget.set(usize::MAX);
    let damage = next() % 4;
    for _ in 0..damage {
        let mut bytes = bytes.bytes.borrow_mut();
        let place = usize::from(u16::from_le_bytes([next(), next()])) % bytes.len();
        bytes[place] ^= next();
    }
    check(writer, &bytes, key(in_doubt), damage == 0);
});

/// The bytes of a memory, whose writer is killed once it has written so many more bytes.
#[derive(Clone, Debug)]
struct Bytes {
    bytes: Rc<RefCell<Vec<u8>>>,
    budget: Rc<Cell<usize>>,
}

impl Bytes {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: Rc::new(RefCell::new(bytes)), budget: Rc::new(Cell::new(usize::MAX)) }
    }
}

impl FileExt for Bytes {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.bytes.borrow().get(usize::try_from(at).expect("it fits")..).unwrap_or_default().read(buffer)
    }

    fn write_at(&self, new: &[u8], at: u64) -> io::Result<usize> {
        let (at, mut bytes) = (usize::try_from(at).expect("it fits"), self.bytes.borrow_mut());
        let length = new.len().min(self.budget.get());
        let end = bytes.len().max(at + length);
        bytes.resize(end, 0);
        bytes[at..at + length].copy_from_slice(&new[..length]);
        self.budget.set(self.budget.get() - length);
        if length < new.len() { Err(io::Error::other("killed")) } else { Ok(length) }
    }
}

struct Writer {
    memory: Memory<Bytes>,
    /// What was stored under each key, in order. An empty record stands for a removed one.
    history: HashMap<Key, Vec<Vec<u8>>>,
    count: u32,
}

impl Writer {
    /// Stores a record of `size` times eight bytes, or removes it if `size` is 0.
    fn change(&mut self, which: u8, size: u8) -> io::Result<()> {
        let key = key(which);
        self.count += 1;
        // Each record differs, so that an old one is recognised.
        let fill = self.count.to_le_bytes();
        let record: Vec<u8> = fill.iter().copied().cycle().take(usize::from(size) * 8).collect();
        self.history.entry(key).or_default().push(record.clone());
        if record.is_empty() { self.memory.remove(&key) } else { self.memory.put(&key, &record) }
    }
}

fn check(mut writer: Writer, bytes: &Bytes, in_doubt: Key, is_undamaged: bool) {
    let Ok(Recovered { memory, records, is_damaged }) = recover(bytes) else {
        return assert!(!is_undamaged);
    };
    assert!(!(is_undamaged && is_damaged));
    for (key, record) in &records {
        assert!(writer.history[key].contains(record), "a record that was never stored");
    }
    if is_undamaged {
        for (key, stored) in &writer.history {
            let found = records.get(key).map_or(&[][..], |record| record.as_slice());
            let may_be = if *key == in_doubt { 2 } else { 1 };
            let is_recent = stored.iter().rev().take(may_be).any(|record| record == found);
            let is_first = stored.len() < may_be && found.is_empty();
            assert!(is_recent || is_first, "neither the last record nor the one before it");
        }
    }
    if !is_damaged {
        writer.memory = memory;
        writer.change(0, 1).expect("nothing limits it");
        let again = recover(bytes).expect("the header is as it was");
        assert_eq!(again.records.get(&key(0)), writer.history[&key(0)].last());
    }
}

fn recover(bytes: &Bytes) -> io::Result<Recovered<Bytes>> {
    let length = bytes.bytes.borrow().len() as u64;
    Memory::recover(bytes.clone(), length)
}

fn key(which: u8) -> Key {
    Key::named(&format!("key {}", which % KEYS))
}

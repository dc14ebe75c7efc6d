//! The bytes of the memory that outlives the process: how records lie in it, what a change of one writes, and how
//! they are found again. Pure: it plans writes and reads bytes, and does neither for a file.
//!
//! Each record has a cell of its own, and a cell has two slots. A change writes the slot that does not hold the
//! current state, in one go, so that a process that is killed meanwhile leaves the current state as it was; only
//! then is the former state wiped, which may be a token that was stolen or removed. Which slot is current is told by
//! its generation, and whether a slot was written to its end by its checksum. Nothing that is found here is trusted
//! before its checksum was right, and no bytes whatever lead to a panic.
//!
//! | at | what |
//! | --- | --- |
//! | 0 | header: magic (8 bytes), version (`u16`), 6 zero bytes, checksum of these (16 bytes), zero up to 64 |
//! | 64 | cells, one after the other; the first that is none ends them |
//!
//! | in a cell at | what |
//! | --- | --- |
//! | 0 | `cell`, the binary logarithm of a slot's size, its complement, 2 zero bytes |
//! | 8 | the first slot |
//! | 8 + size | the second slot |
//!
//! | in a slot at | what |
//! | --- | --- |
//! | 0 | generation (`u64`), 0 in a slot without a record |
//! | 8 | length of the record (`u32`) |
//! | 12 | checksum: the first 16 bytes of the SHA-256 of the above, key and record |
//! | 28 | key (32 bytes) |
//! | 60 | the record; zero from there to the slot's end |
//!
//! ResolvedIds are little-endian. A version is read by the releases that write it.

mod scan;

use std::collections::HashMap;

use ring::digest;
use zeroize::Zeroizing;

pub use self::scan::{Contents, Unreadable, read, record, scan};
use super::key::{KEY_LENGTH, Key};

/// The version of all this.
pub const VERSION: u16 = 1;

const MAGIC: &[u8; 8] = b"tokendRM";

/// Bytes before the first cell.
pub const HEADER: u64 = 64;

const CHECKSUM: usize = 16;
const CELL_HEAD: u64 = 8;
const CELL_MARK: &[u8; 4] = b"cell";
const SLOT_HEAD: usize = 8 + 4 + CHECKSUM + KEY_LENGTH;

/// The smallest slot has room for a short opaque token ...
const SMALLEST: u8 = 8;

/// ... and the largest for the largest reply that is read from a provider, which has a mebibyte.
const LARGEST: u8 = 21;

/// A record that was found, or is to be kept.
pub type Bytes = Zeroizing<Vec<u8>>;

/// Where the records lie, and which places are free.
#[derive(Debug)]
pub struct Layout {
    places: HashMap<Key, Place>,
    /// Cells without a record, by the size of their slots, so that one is found at once however many there are.
    free: HashMap<u8, Vec<Cell>>,
    end: u64,
    generation: u64,
}

/// A cell: where it begins, and the size of its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    at: u64,
    log: u8,
}

/// A record's cell, and which of its slots is current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    cell: Cell,
    current: u8,
}

/// One thing to do to the memory. ClockChanges are done in order, and each may be cut off anywhere.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes it so long, with zeros at the end.
    Grow(u64),
    /// Writes bytes.
    Write(u64, Bytes),
    /// Writes so many zeros.
    Wipe(u64, usize),
}

/// What a change does, and where the record is once it is done.
#[derive(Debug)]
pub struct Plan {
    /// To be done in order.
    pub steps: Vec<Step>,
    key: Key,
    place: Option<Place>,
    freed: Option<Cell>,
    generation: u64,
}

/// The record is larger than any slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

/// The header of a new memory.
pub fn header() -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.resize(16, 0);
    let checksum = checksum(&[&header]);
    header.extend_from_slice(&checksum);
    header.resize(64, 0);
    header
}

impl Layout {
    /// That of a memory with nothing but a header.
    pub fn empty() -> Self {
        Self { places: HashMap::new(), free: HashMap::new(), end: HEADER, generation: 0 }
    }

    /// What keeps a record: its key's older slot is written, or a cell of its own where it has none or has
    /// outgrown it.
    pub fn put(&self, key: &Key, record: &[u8]) -> Result<Plan, TooLarge> {
        let log = log_for(record.len()).ok_or(TooLarge)?;
        let held = self.places.get(key).copied();
        let generation = self.generation.saturating_add(1);
        let mut plan = Plan { steps: Vec::new(), key: *key, place: None, freed: None, generation };
        if let Some(held) = held.filter(|held| held.cell.log >= log) {
            let current = 1 - held.current;
            let slot = slot(held.cell.log, generation, key, record);
            plan.steps.push(Step::Write(held.cell.slot(current), slot));
            plan.steps.push(Step::Wipe(held.cell.slot(held.current), held.cell.slot_size()));
            plan.place = Some(Place { cell: held.cell, current });
            return Ok(plan);
        }
        let cell = self.place_for(log, &mut plan.steps);
        plan.steps.push(Step::Write(cell.slot(0), slot(log, generation, key, record)));
        plan.place = Some(Place { cell, current: 0 });
        if let Some(outgrown) = held.map(|held| held.cell) {
            plan.steps.push(outgrown.wipe());
            plan.freed = Some(outgrown);
        }
        Ok(plan)
    }

    /// What removes a record, if there is one.
    pub fn remove(&self, key: &Key) -> Option<Plan> {
        let cell = self.places.get(key)?.cell;
        let steps = vec![cell.wipe()];
        Some(Plan { steps, key: *key, place: None, freed: Some(cell), generation: self.generation })
    }

    /// Takes note that a plan has been carried out.
    pub fn commit(&mut self, plan: &Plan) {
        self.generation = plan.generation;
        match plan.place {
            Some(place) => {
                let free = self.free.get_mut(&place.cell.log);
                free.and_then(|cells| cells.pop_if(|free| *free == place.cell));
                self.end = self.end.max(place.cell.end());
                self.places.insert(plan.key, place);
            }
            None => drop(self.places.remove(&plan.key)),
        }
        plan.freed.into_iter().for_each(|cell| self.set_free(cell));
    }

    /// What empties a cell that has no current record. It may be used again then.
    pub fn clear(&mut self, leftover: Cell) -> Step {
        self.set_free(leftover);
        leftover.wipe()
    }

    /// Where the slot with the current state of a record is, and how long.
    pub fn slot(&self, key: &Key) -> Option<(u64, usize)> {
        let Place { cell, current } = self.places.get(key)?;
        Some((cell.slot(*current), cell.slot_size()))
    }

    /// A free cell, or a new one at the end.
    fn place_for(&self, log: u8, steps: &mut Vec<Step>) -> Cell {
        if let Some(cell) = self.free.get(&log).and_then(|cells| cells.last()) {
            return *cell;
        }
        let cell = Cell { at: self.end, log };
        steps.push(Step::Grow(cell.end()));
        let mark = [CELL_MARK.as_slice(), &[log, !log, 0, 0]].concat();
        steps.push(Step::Write(cell.at, Zeroizing::new(mark)));
        cell
    }

    fn set_free(&mut self, cell: Cell) {
        self.free.entry(cell.log).or_default().push(cell);
    }
}

impl Cell {
    fn slot_size(self) -> usize {
        1 << self.log
    }

    fn slots_length(self) -> usize {
        2 * self.slot_size()
    }

    fn slot(self, number: u8) -> u64 {
        self.at + CELL_HEAD + (u64::from(number) << self.log)
    }

    fn end(self) -> u64 {
        self.slot(2)
    }

    fn wipe(self) -> Step {
        Step::Wipe(self.slot(0), self.slots_length())
    }
}

fn slot(log: u8, generation: u64, key: &Key, record: &[u8]) -> Bytes {
    let generation = generation.to_le_bytes();
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes();
    let checksum = checksum(&[&generation, &length, key.as_bytes(), record]);
    // Of the whole size at once: a buffer that grows leaves copies behind. The zeros wipe what was there before.
    let mut slot = Zeroizing::new(Vec::with_capacity(1 << log));
    for part in [generation.as_slice(), &length, &checksum, key.as_bytes(), record] {
        slot.extend_from_slice(part);
    }
    slot.resize(1 << log, 0);
    slot
}

fn checksum(parts: &[&[u8]]) -> [u8; CHECKSUM] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().first_chunk().copied().unwrap_or_default()
}

/// The smallest slot that holds a record of such a length.
fn log_for(length: usize) -> Option<u8> {
    (SMALLEST..=LARGEST).find(|log| length.saturating_add(SLOT_HEAD) <= 1 << log)
}

#[cfg(test)]
mod tests;

//! How records are found in a memory that another process left, which may have been killed at any moment, or be
//! another program.

use std::collections::HashMap;

use zeroize::Zeroizing;

use super::{
    Bytes, CELL_HEAD, CELL_MARK, CHECKSUM, Cell, HEADER, LARGEST, Layout, MAGIC, Place, SMALLEST, VERSION,
    checksum,
};
use crate::store::key::{KEY_LENGTH, Key};

/// What was found.
#[derive(Debug)]
pub struct Contents {
    /// The current state of every record.
    pub records: HashMap<Key, Bytes>,
    /// Where they lie.
    pub layout: Layout,
    /// Cells without a current record that are not empty: what a kill in the middle of a change left behind.
    pub leftovers: Vec<Cell>,
    /// Whether there is something after the last cell that no cut-off change explains.
    pub is_damaged: bool,
}

/// Why nothing was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It was never made by this program, or not to its end.
    #[error("it does not begin as what tokend keeps there")]
    Foreign,
    /// Another release made it.
    #[error("it has version {0} of the format, and this release reads version {VERSION}")]
    Version(u16),
    /// The system refuses to read it.
    #[error("it cannot be read")]
    System,
}

/// Reads all bytes of a memory. Any bytes will do.
///
/// # Errors
/// What makes all of it unreadable. What makes one record so costs that record alone.
pub fn read(bytes: &[u8]) -> Result<Contents, Unreadable> {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    scan(length, |at, buffer| {
        let from = bytes.get(usize::try_from(at).ok()?..)?;
        buffer.copy_from_slice(from.get(..buffer.len())?);
        Some(())
    })
}

/// Reads a memory of so many bytes; `fetch` fills a buffer from a place on.
///
/// # Errors
/// As [`read`].
pub fn scan(
    length: u64,
    mut fetch: impl FnMut(u64, &mut [u8]) -> Option<()>,
) -> Result<Contents, Unreadable> {
    check_header(length, &mut fetch)?;
    let mut found = Found::default();
    let mut slots = Zeroizing::new(Vec::new());
    let mut at = HEADER;
    while let Some(cell) = cell_at(at, length, &mut fetch) {
        slots.resize(cell.slots_length(), 0);
        fetch(cell.slot(0), &mut slots).ok_or(Unreadable::System)?;
        found.take(cell, &slots);
        at = cell.end();
    }
    let is_damaged = !is_torn_tail(at, length, &mut fetch);
    Ok(Contents {
        records: found.records,
        layout: Layout {
            places: found.places,
            free: found.free,
            end: at,
            generation: found.generations.values().copied().max().unwrap_or_default(),
        },
        leftovers: found.leftovers,
        is_damaged,
    })
}

/// What a scan has found so far.
#[derive(Default)]
struct Found {
    records: HashMap<Key, Bytes>,
    places: HashMap<Key, Place>,
    generations: HashMap<Key, u64>,
    free: HashMap<u8, Vec<Cell>>,
    leftovers: Vec<Cell>,
}

impl Found {
    fn take(&mut self, cell: Cell, slots: &[u8]) {
        let (first, second) = slots.split_at(cell.slot_size().min(slots.len()));
        let newest = [(0, read_slot(first)), (1, read_slot(second))]
            .into_iter()
            .filter_map(|(number, slot)| Some((number, slot?)))
            .max_by_key(|(_, slot)| slot.generation);
        let Some((current, slot)) = newest else {
            if slots.iter().any(|byte| *byte != 0) {
                self.leftovers.push(cell);
            } else {
                self.free.entry(cell.log).or_default().push(cell);
            }
            return;
        };
        // A record that outgrew its cell is in two where the process was killed before the old one was emptied.
        if self.generations.get(&slot.key).is_some_and(|known| *known >= slot.generation) {
            self.leftovers.push(cell);
            return;
        }
        self.generations.insert(slot.key, slot.generation);
        self.records.insert(slot.key, slot.record);
        let outdated = self.places.insert(slot.key, Place { cell, current });
        self.leftovers.extend(outdated.map(|place| place.cell));
    }
}

struct Slot {
    generation: u64,
    key: Key,
    record: Bytes,
}

/// The record in a slot, if the slot is whole.
pub fn record(slot: &[u8]) -> Option<Bytes> {
    read_slot(slot).map(|slot| slot.record)
}

fn read_slot(bytes: &[u8]) -> Option<Slot> {
    let (generation, rest) = bytes.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (expected, rest) = rest.split_first_chunk::<CHECKSUM>()?;
    let (key, rest) = rest.split_first_chunk::<KEY_LENGTH>()?;
    if *generation == [0; 8] {
        return None;
    }
    let record = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let is_whole = checksum(&[generation, length, key, record]) == *expected;
    is_whole.then(|| Slot {
        generation: u64::from_le_bytes(*generation),
        key: Key::from_bytes(*key),
        record: Zeroizing::new(record.to_vec()),
    })
}

fn check_header(length: u64, fetch: &mut impl FnMut(u64, &mut [u8]) -> Option<()>) -> Result<(), Unreadable> {
    if length < HEADER {
        return Err(Unreadable::Foreign);
    }
    let mut found = [0; 32];
    fetch(0, &mut found).ok_or(Unreadable::System)?;
    let (told, rest) = found.split_at(16);
    let version = told.get(8..10).and_then(|version| version.first_chunk());
    let version = version.copied().map(u16::from_le_bytes).unwrap_or_default();
    if !told.starts_with(MAGIC) || rest != checksum(&[told]) {
        return Err(Unreadable::Foreign);
    }
    if version == VERSION { Ok(()) } else { Err(Unreadable::Version(version)) }
}

/// The cell at a place, if there is a whole one.
fn cell_at(at: u64, length: u64, fetch: &mut impl FnMut(u64, &mut [u8]) -> Option<()>) -> Option<Cell> {
    let mut head = [0; 8];
    if at.checked_add(CELL_HEAD)? > length {
        return None;
    }
    fetch(at, &mut head)?;
    let (mark, sizes) = head.split_at(4);
    let &[log, complement, 0, 0] = sizes else { return None };
    let is_cell = mark == CELL_MARK && log == !complement && (SMALLEST..=LARGEST).contains(&log);
    let cell = Cell { at, log };
    (is_cell && cell.end() <= length).then_some(cell)
}

/// Whether what follows the last cell is what a kill leaves while a cell is being added: nothing but zeros after
/// a part of the cell's first bytes.
fn is_torn_tail(at: u64, length: u64, fetch: &mut impl FnMut(u64, &mut [u8]) -> Option<()>) -> bool {
    // A cell is added with its whole size at once, so that no more than the largest can follow.
    let rest = usize::try_from(length.saturating_sub(at)).unwrap_or(usize::MAX);
    let most = usize::try_from(CELL_HEAD).unwrap_or_default() + (2 << LARGEST);
    if rest > most {
        return false;
    }
    let mut tail = Zeroizing::new(vec![0; rest]);
    if fetch(at, &mut tail).is_none() {
        return false;
    }
    let head = tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let (head, log) = (tail.get(..head).unwrap_or_default(), tail.get(4).copied().unwrap_or_default());
    let whole = [CELL_MARK.as_slice(), &[log, !log]].concat();
    whole.starts_with(head)
}

//! Where records lie in a file, and how a successor finds them again.
//!
//! Each record has a slot, whose size is a power of two. A change writes the new state into a free slot, in one write,
//! and only then wipes the slot of the former state. A process that is killed at any byte of that therefore leaves the
//! old state or the new one. Where it leaves both, the higher generation counts. No record is used before its checksum
//! was found right, and no bytes cause a panic.
//!
//! The file begins with [`HEADER`]. In a slot, with little-endian numbers:
//!
//! | at | what |
//! | --- | --- |
//! | 0 | `slot`, the binary logarithm of its size, the complement of that, 2 zero bytes |
//! | 8 | generation (`u64`), 0 in a free slot |
//! | 16 | length of the record (`u32`) |
//! | 20 | the first 16 bytes of the SHA-256 of generation, length, key and record |
//! | 36 | key (32 bytes), then the record, then zeros up to the end of the slot |

use std::collections::HashMap;
use std::io;

use ring::digest::{Context, SHA256};

use super::key::{KEY_LENGTH, Key};

/// The first bytes of a file, with the version of its format.
pub const HEADER: &[u8; 64] = b"tokend records, version 2. Written by tokend only..............\n";

/// Bytes of a slot that say how large it is. They stay when it is wiped.
const MARK: usize = 8;

const CHECKSUM: usize = 16;

/// Bytes of a slot before its record.
const SLOT_HEAD: usize = MARK + 8 + 4 + CHECKSUM + KEY_LENGTH;

/// The smallest slot has room for a short opaque token. The largest has room for the largest reply of a provider, which
/// is a mebibyte.
const SMALLEST: u8 = 8;
const LARGEST: u8 = 21;
const BLOCK: usize = 1 << SMALLEST;

/// Writes bytes at a place of the file.
pub type Write<'a> = dyn FnMut(u64, &[u8]) -> io::Result<()> + 'a;

/// Fills a buffer from a place of the file on.
pub type Read<'a> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'a;

/// Which slots hold records, and which are free.
#[derive(Debug)]
pub struct Slots {
    held: HashMap<Key, Slot>,
    /// By the logarithm of their size.
    free: HashMap<u8, Vec<Slot>>,
    end: u64,
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    at: u64,
    log: u8,
}

/// What a file holds.
#[derive(Debug)]
pub struct Contents {
    /// The records.
    pub records: HashMap<Key, Vec<u8>>,
    /// Where they lie.
    pub slots: Slots,
    /// Whether there are bytes that no killed process explains.
    pub is_damaged: bool,
}

impl Default for Slots {
    fn default() -> Self {
        Self { held: HashMap::new(), free: HashMap::new(), end: HEADER.len() as u64, generation: 0 }
    }
}

impl Slots {
    /// Stores a record in place of the one with this key.
    pub fn put(&mut self, key: &Key, record: &[u8], write: &mut Write<'_>) -> io::Result<()> {
        let log = (SMALLEST..=LARGEST).find(|log| record.len().saturating_add(SLOT_HEAD) <= 1 << log);
        let log = log.ok_or_else(|| io::Error::other("a record of more than two mebibytes"))?;
        let free = self.free.entry(log).or_default();
        let slot = free.last().copied().unwrap_or(Slot { at: self.end, log });
        self.generation = self.generation.saturating_add(1);
        write(slot.at, &encode(log, self.generation, key, record))?;
        free.pop();
        self.end = self.end.max(slot.end());
        let former = self.held.insert(*key, slot);
        former.map_or(Ok(()), |former| self.wipe(former, write))
    }

    /// Wipes a record, if there is one.
    pub fn remove(&mut self, key: &Key, write: &mut Write<'_>) -> io::Result<()> {
        self.held.remove(key).map_or(Ok(()), |slot| self.wipe(slot, write))
    }

    /// The record with this key.
    pub fn record(&self, key: &Key, read: &mut Read<'_>) -> Option<Vec<u8>> {
        let slot = self.held.get(key)?;
        let mut bytes = vec![0; slot.size()];
        read(slot.at, &mut bytes).ok()?;
        decode(&bytes).map(|(_, _, record)| record.to_vec())
    }

    fn wipe(&mut self, slot: Slot, write: &mut Write<'_>) -> io::Result<()> {
        write(slot.at + MARK as u64, &vec![0; slot.size() - MARK])?;
        self.free.entry(slot.log).or_default().push(slot);
        Ok(())
    }
}

impl Contents {
    /// Reads a file of so many bytes, and wipes what a killed process left half done.
    ///
    /// # Errors
    /// What makes the whole file unusable. Damage of one record costs only that record.
    pub fn read(length: u64, read: &mut Read<'_>, write: &mut Write<'_>) -> io::Result<Self> {
        let mut header = [0; HEADER.len()];
        if length < HEADER.len() as u64 || read(0, &mut header).is_err() || header != *HEADER {
            return Err(io::Error::other("it does not begin as the memory of this release of tokend"));
        }
        let (mut slots, mut is_damaged, mut at) = (Slots::default(), false, HEADER.len() as u64);
        let mut records: HashMap<Key, (u64, Vec<u8>)> = HashMap::new();
        let mut block = [0; BLOCK];
        while at.saturating_add(BLOCK as u64) <= length {
            read(at, &mut block)?;
            let Some(slot) = slot_at(at, &block) else {
                // A process that was killed while it added a slot leaves no more than a mark.
                is_damaged |= block.iter().skip(MARK).any(|byte| *byte != 0);
                at += BLOCK as u64;
                if at - slots.end > 1 << LARGEST {
                    is_damaged = true;
                    break;
                }
                continue;
            };
            if slot.end() > length {
                // Its writer was killed.
                break;
            }
            (at, slots.end) = (slot.end(), slot.end());
            let mut bytes = vec![0; slot.size()];
            read(slot.at, &mut bytes)?;
            match decode(&bytes) {
                Some((generation, key, record))
                    if records.get(&key).is_none_or(|known| known.0 < generation) =>
                {
                    slots.generation = slots.generation.max(generation);
                    records.insert(key, (generation, record.to_vec()));
                    let former = slots.held.insert(key, slot);
                    former.map_or(Ok(()), |former| slots.wipe(former, write))?;
                }
                _ => slots.wipe(slot, write)?,
            }
        }
        let rest = usize::try_from(length - slots.end).unwrap_or(usize::MAX);
        if rest > 0 && !is_damaged {
            write(slots.end, &vec![0; rest.min(1 << LARGEST)])?;
        }
        let records = records.into_iter().map(|(key, (_, record))| (key, record)).collect();
        Ok(Self { records, slots, is_damaged })
    }

    /// Reads a copy of a file.
    ///
    /// # Errors
    /// As [`Contents::read`].
    pub fn of(bytes: &[u8]) -> io::Result<Self> {
        let mut read = |at, buffer: &mut [u8]| {
            let from = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.get(..buffer.len()));
            buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        Self::read(bytes.len() as u64, &mut read, &mut |_, _| Ok(()))
    }
}

impl Slot {
    fn size(self) -> usize {
        1 << self.log
    }

    fn end(self) -> u64 {
        self.at.saturating_add(1 << self.log)
    }
}

/// The slot that begins at a place with these bytes.
fn slot_at(at: u64, bytes: &[u8]) -> Option<Slot> {
    let log = *bytes.get(4)?;
    let is_slot = bytes.starts_with(&mark(log)) && (SMALLEST..=LARGEST).contains(&log);
    is_slot.then_some(Slot { at, log })
}

fn mark(log: u8) -> [u8; MARK] {
    [b's', b'l', b'o', b't', log, !log, 0, 0]
}

fn encode(log: u8, generation: u64, key: &Key, record: &[u8]) -> Vec<u8> {
    let generation = generation.to_le_bytes();
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes();
    let checksum = checksum(&[&generation, &length, key.as_bytes(), record]);
    let mut slot = [mark(log).as_slice(), &generation, &length, &checksum, key.as_bytes(), record].concat();
    slot.resize(1 << log, 0);
    slot
}

/// Generation, key and record of a slot, if it holds a whole record.
fn decode(slot: &[u8]) -> Option<(u64, Key, &[u8])> {
    let (generation, rest) = slot.get(MARK..)?.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (expected, rest) = rest.split_first_chunk::<CHECKSUM>()?;
    let (key, rest) = rest.split_first_chunk::<KEY_LENGTH>()?;
    let record = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let is_whole = *generation != [0; 8] && checksum(&[generation, length, key, record]) == *expected;
    is_whole.then_some((u64::from_le_bytes(*generation), Key::from_bytes(*key), record))
}

fn checksum(parts: &[&[u8]]) -> [u8; CHECKSUM] {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;

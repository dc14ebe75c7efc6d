//! The memory that outlives the process: an unnamed file that the service manager keeps open while the daemon is not
//! running.
//!
//! Each record has a slot, whose size is a power of two. A change writes the new state into a free slot, in one write,
//! and only then wipes the slot of the former state. A process that is killed at any byte therefore leaves the old state
//! or the new one. Where it leaves both, the higher generation counts.
//!
//! After a header of 64 bytes follow the slots, with little-endian numbers:
//!
//! | at | what |
//! | --- | --- |
//! | 0 | `slot`, the binary logarithm of its size, the complement of that, 2 zero bytes |
//! | 8 | generation (`u64`), 0 in a free slot |
//! | 16 | length of the record (`u32`) |
//! | 20 | the first 16 bytes of the SHA-256 of generation, length, key and record |
//! | 36 | key (32 bytes), then the record, then zeros up to the end of the slot |

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use ring::digest::{Context, SHA256};

use super::record::{KEY_LENGTH, Key};

/// `MFD_NOEXEC_SEAL`: the file can never be made executable. Linux before 6.3 rejects the flag.
const MFD_NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(0x0008);

/// The first bytes of the file, which name the format and its version.
pub const HEADER: &[u8; 64] = b"tokend records, version 2. Written by tokend only..............\n";

/// The length of the mark at the start of a slot, which states the slot's size. Wiping keeps the mark.
const MARK: usize = 8;

const CHECKSUM: usize = 16;

/// Bytes of a slot before its record.
const SLOT_HEAD: usize = MARK + 8 + 4 + CHECKSUM + KEY_LENGTH;

/// The smallest slot has room for a short opaque token, the largest for the largest reply of a provider, a mebibyte.
const SMALLEST: u8 = 8;
const LARGEST: u8 = 21;
const BLOCK: usize = 1 << SMALLEST;

#[derive(Debug)]
pub struct Memory<F = File> {
    file: F,
    held: HashMap<Key, Slot>,
    /// Free slots, by the binary logarithm of their size.
    free: HashMap<u8, Vec<Slot>>,
    end: u64,
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    at: u64,
    log2: u8,
}

/// The contents of the previous process's memory.
#[derive(Debug)]
pub struct Recovered<F = File> {
    /// The memory, ready for further writes.
    pub memory: Memory<F>,
    pub records: HashMap<Key, Vec<u8>>,
    /// Whether there are bytes that a killed writer cannot have left.
    pub is_damaged: bool,
}

impl Memory {
    pub fn create() -> io::Result<Self> {
        let create = |flags| memfd_create("tokend-store", MFdFlags::MFD_CLOEXEC | flags);
        let file = match create(MFD_NOEXEC_SEAL) {
            Err(Errno::EINVAL) => create(MFdFlags::empty())?,
            made => made?,
        };
        Self::begin(File::from(file))
    }

    /// Takes over the memory that the previous process left with the service manager.
    pub fn adopt(fd: OwnedFd) -> io::Result<Recovered> {
        let file = File::from(fd);
        let length = file.metadata()?.len();
        Self::recover(file, length)
    }
}

impl<F: FileExt> Memory<F> {
    pub fn begin(file: F) -> io::Result<Self> {
        file.write_all_at(HEADER, 0)?;
        Ok(Self::recover(file, HEADER.len() as u64)?.memory)
    }

    /// Reads a memory of this length, and wipes what a killed process left half done. Damage costs only its record.
    pub fn recover(file: F, length: u64) -> io::Result<Recovered<F>> {
        let mut header = [0; HEADER.len()];
        if length < HEADER.len() as u64 || file.read_exact_at(&mut header, 0).is_err() || header != *HEADER {
            return Err(io::Error::other("it is not in the format of this release of tokend"));
        }
        let (mut at, mut is_damaged) = (HEADER.len() as u64, false);
        let mut memory = Self { file, held: HashMap::new(), free: HashMap::new(), end: at, generation: 0 };
        let mut records: HashMap<Key, (u64, Vec<u8>)> = HashMap::new();
        let mut block = [0; BLOCK];
        while at.saturating_add(BLOCK as u64) <= length {
            memory.file.read_exact_at(&mut block, at)?;
            let Some(slot) = slot_at(at, &block) else {
                // A process that was killed while it added a slot leaves no more than a mark.
                is_damaged |= block.iter().skip(MARK).any(|byte| *byte != 0);
                at += BLOCK as u64;
                if at - memory.end > 1 << LARGEST {
                    is_damaged = true;
                    break;
                }
                continue;
            };
            if slot.end() > length {
                // Its writer was killed.
                break;
            }
            (at, memory.end) = (slot.end(), slot.end());
            match decode(&memory.bytes(slot)?) {
                Some((generation, key, record))
                    if records.get(&key).is_none_or(|known| known.0 < generation) =>
                {
                    memory.generation = memory.generation.max(generation);
                    records.insert(key, (generation, record.to_vec()));
                    let former = memory.held.insert(key, slot);
                    former.map_or(Ok(()), |former| memory.wipe(former))?;
                }
                _ => memory.wipe(slot)?,
            }
        }
        let rest = usize::try_from(length - memory.end).unwrap_or(usize::MAX);
        if rest > 0 && !is_damaged {
            memory.file.write_all_at(&vec![0; rest.min(1 << LARGEST)], memory.end)?;
        }
        let records = records.into_iter().map(|(key, (_, record))| (key, record)).collect();
        Ok(Recovered { memory, records, is_damaged })
    }

    /// Stores a record in place of the one with this key.
    pub fn put(&mut self, key: &Key, record: &[u8]) -> io::Result<()> {
        let log2 = (SMALLEST..=LARGEST).find(|log2| record.len().saturating_add(SLOT_HEAD) <= 1 << log2);
        let log2 = log2.ok_or_else(|| io::Error::other("a record of more than two mebibytes"))?;
        let free = self.free.entry(log2).or_default();
        let slot = free.last().copied().unwrap_or(Slot { at: self.end, log2 });
        self.generation = self.generation.saturating_add(1);
        self.file.write_all_at(&encode(log2, self.generation, key, record), slot.at)?;
        free.pop();
        self.end = self.end.max(slot.end());
        self.held.insert(*key, slot).map_or(Ok(()), |former| self.wipe(former))
    }

    /// Wipes a record, if there is one.
    pub fn remove(&mut self, key: &Key) -> io::Result<()> {
        self.held.remove(key).map_or(Ok(()), |slot| self.wipe(slot))
    }

    pub fn record(&self, key: &Key) -> Option<Vec<u8>> {
        let bytes = self.bytes(*self.held.get(key)?).ok()?;
        decode(&bytes).map(|(_, _, record)| record.to_vec())
    }

    fn bytes(&self, slot: Slot) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; slot.size()];
        self.file.read_exact_at(&mut bytes, slot.at)?;
        Ok(bytes)
    }

    fn wipe(&mut self, slot: Slot) -> io::Result<()> {
        self.file.write_all_at(&vec![0; slot.size() - MARK], slot.at + MARK as u64)?;
        self.free.entry(slot.log2).or_default().push(slot);
        Ok(())
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Slot {
    fn size(self) -> usize {
        1 << self.log2
    }

    fn end(self) -> u64 {
        self.at.saturating_add(1 << self.log2)
    }
}

/// The slot that begins at a place with these bytes.
fn slot_at(at: u64, bytes: &[u8]) -> Option<Slot> {
    let log2 = *bytes.get(4)?;
    let is_slot = bytes.starts_with(&mark(log2)) && (SMALLEST..=LARGEST).contains(&log2);
    is_slot.then_some(Slot { at, log2 })
}

fn mark(log2: u8) -> [u8; MARK] {
    [b's', b'l', b'o', b't', log2, !log2, 0, 0]
}

fn encode(log2: u8, generation: u64, key: &Key, record: &[u8]) -> Vec<u8> {
    let generation = generation.to_le_bytes();
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes();
    let checksum = checksum(&[&generation, &length, &key.0, record]);
    let mut slot = Vec::with_capacity(1 << log2);
    for part in [mark(log2).as_slice(), &generation, &length, &checksum, &key.0, record] {
        slot.extend_from_slice(part);
    }
    slot.resize(1 << log2, 0);
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
    is_whole.then_some((u64::from_le_bytes(*generation), Key(*key), record))
}

fn checksum(parts: &[&[u8]]) -> [u8; CHECKSUM] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;

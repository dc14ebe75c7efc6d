//! The memory that outlives the process: a file without a name, kept open by the service manager, and written in
//! place. What lies where in it is for [`super::layout`] to say.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use zeroize::Zeroizing;

use super::key::Key;
use super::layout::{self, Bytes, Layout, Plan, Step, TooLarge, Unreadable};

/// For `/proc/PID/fd` and `/proc/meminfo`; no other meaning.
const NAME: &str = "tokend-store";

/// Can never be made executable. Kernels before 6.3 do not know it.
const MFD_NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(0x0008);

/// Zeros are written in pieces of this size.
const ZEROS: [u8; 4096] = [0; 4096];

/// Records in memory that outlives the process.
#[derive(Debug)]
pub struct Memory {
    file: File,
    layout: Layout,
}

/// What was found in a memory that the process before left.
#[derive(Debug)]
pub struct Recovered {
    /// The memory, to be written on.
    pub memory: Memory,
    /// Its records.
    pub records: HashMap<Key, Bytes>,
    /// Whether a part of it makes no sense.
    pub is_damaged: bool,
}

/// Why a record is not kept.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    /// It has no room.
    #[error("a record of more than two mebibytes")]
    TooLarge,
    /// The kernel gives no more memory.
    #[error("writing memory: {0}")]
    System(#[from] io::Error),
}

impl Memory {
    /// A new one without records.
    pub fn create() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = match memfd_create(NAME, flags | MFD_NOEXEC_SEAL) {
            Err(Errno::EINVAL) => memfd_create(NAME, flags)?,
            made => made?,
        };
        // It grows, and whoever reads it while it does need not fear that it shrinks under them.
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL))?;
        let file = File::from(file);
        file.write_all_at(&layout::header(), 0)?;
        Ok(Self { file, layout: Layout::empty() })
    }

    /// The one behind a descriptor that the process before left with the service manager.
    pub fn adopt(fd: OwnedFd) -> Result<Recovered, Unreadable> {
        let is_ours = fcntl(&fd, FcntlArg::F_GET_SEALS)
            .is_ok_and(|seals| SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK));
        if !is_ours {
            return Err(Unreadable::Foreign);
        }
        let file = File::from(fd);
        let length = file.metadata().map_err(|_| Unreadable::System)?.len();
        let contents = layout::scan(length, |at, buffer| file.read_exact_at(buffer, at).ok())?;
        let mut memory = Self { file, layout: contents.layout };
        for leftover in contents.leftovers {
            let step = memory.layout.clear(leftover);
            memory.carry_out(&step).map_err(|_| Unreadable::System)?;
        }
        Ok(Recovered { memory, records: contents.records, is_damaged: contents.is_damaged })
    }

    /// Keeps a record in place of the one with this key.
    pub fn put(&mut self, key: &Key, record: &[u8]) -> Result<(), NotKept> {
        let plan = self.layout.put(key, record).map_err(|TooLarge| NotKept::TooLarge)?;
        Ok(self.carry_out_all(&plan)?)
    }

    /// The record with this key as it is now.
    pub fn record(&self, key: &Key) -> Option<Bytes> {
        let (at, length) = self.layout.slot(key)?;
        let mut slot = Zeroizing::new(vec![0; length]);
        self.file.read_exact_at(&mut slot, at).ok()?;
        layout::record(&slot)
    }

    /// Wipes a record, if there is one.
    pub fn remove(&mut self, key: &Key) -> io::Result<()> {
        let Some(plan) = self.layout.remove(key) else { return Ok(()) };
        self.carry_out_all(&plan)
    }

    /// A plan that fails half-way is not committed: the next one begins from the same state.
    fn carry_out_all(&mut self, plan: &Plan) -> io::Result<()> {
        plan.steps.iter().try_for_each(|step| self.carry_out(step))?;
        self.layout.commit(plan);
        Ok(())
    }

    fn carry_out(&self, step: &Step) -> io::Result<()> {
        match step {
            // What a process that was killed has made longer already cannot be made shorter.
            Step::Grow(length) if self.file.metadata()?.len() >= *length => Ok(()),
            Step::Grow(length) => self.file.set_len(*length),
            Step::Write(at, bytes) => self.file.write_all_at(bytes, *at),
            Step::Wipe(at, length) => self.wipe(*at, *length),
        }
    }

    fn wipe(&self, mut at: u64, mut length: usize) -> io::Result<()> {
        while length > 0 {
            let zeros = ZEROS.get(..length).unwrap_or(&ZEROS);
            self.file.write_all_at(zeros, at)?;
            at += zeros.len() as u64;
            length -= zeros.len();
        }
        Ok(())
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key::from_bytes([1; 32]);

    fn left(memory: &Memory) -> Recovered {
        Memory::adopt(memory.as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    #[test]
    fn what_one_process_keeps_the_next_one_finds() {
        let mut memory = Memory::create().unwrap();
        memory.put(&KEY, b"one").unwrap();
        memory.put(&KEY, b"two").unwrap();
        let mut next = left(&memory);
        assert_eq!(next.records.get(&KEY).map(|record| record.as_slice()), Some(b"two".as_slice()));
        assert!(!next.is_damaged);
        next.memory.put(&KEY, &[b'x'; 5_000]).unwrap();
        next.memory.put(&Key::from_bytes([2; 32]), b"three").unwrap();
        let third = left(&next.memory);
        assert_eq!(third.records.len(), 2);
        assert_eq!(third.records[&KEY].as_slice(), [b'x'; 5_000]);
    }

    #[test]
    fn what_is_removed_or_outgrown_is_nowhere_any_more() {
        let mut memory = Memory::create().unwrap();
        let other = Key::from_bytes([2; 32]);
        memory.put(&other, b"a first secret").unwrap();
        memory.put(&other, b"a first secret again").unwrap();
        memory.remove(&other).unwrap();
        memory.put(&KEY, b"a second secret").unwrap();
        memory.put(&KEY, &[b'x'; 1_000]).unwrap();
        assert!(!bytes(&memory).windows(6).any(|bytes| bytes == b"secret"));
    }

    /// All that is in it.
    fn bytes(memory: &Memory) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(memory.file.metadata().unwrap().len()).unwrap()];
        memory.file.read_exact_at(&mut all, 0).unwrap();
        all
    }

    #[test]
    fn what_a_process_that_was_killed_did_not_come_to_wipe_is_wiped_by_the_next_one() {
        let mut memory = Memory::create().unwrap();
        memory.put(&KEY, b"a secret").unwrap();
        // It outgrows its cell, and all is done but the last step.
        let plan = memory.layout.put(&KEY, &[b'x'; 1_000]).unwrap();
        let (_wipe, done) = plan.steps.split_last().unwrap();
        for step in done {
            memory.carry_out(step).unwrap();
        }
        let next = left(&memory);
        assert_eq!(next.records[&KEY].as_slice(), [b'x'; 1_000]);
        assert!(!bytes(&memory).windows(6).any(|bytes| bytes == b"secret"));
    }

    #[test]
    fn what_a_process_that_was_killed_made_longer_is_written_to_all_the_same() {
        let memory = Memory::create().unwrap();
        let plan = memory.layout.put(&KEY, &[b'x'; 10_000]).unwrap();
        memory.carry_out(&plan.steps[0]).unwrap();
        let mut next = left(&memory);
        assert!(next.records.is_empty() && !next.is_damaged);
        next.memory.put(&KEY, b"a record").unwrap();
        assert_eq!(left(&next.memory).records[&KEY].as_slice(), b"a record");
    }

    #[test]
    fn it_cannot_be_made_shorter_and_other_files_are_not_taken_for_it() {
        let memory = Memory::create().unwrap();
        assert!(memory.file.set_len(10).is_err());
        let foreign = tempfile::tempfile().unwrap();
        assert_eq!(Memory::adopt(foreign.into()).unwrap_err(), Unreadable::Foreign);
        let unsealed = memfd_create("foreign", MFdFlags::MFD_CLOEXEC).unwrap();
        assert_eq!(Memory::adopt(unsealed).unwrap_err(), Unreadable::Foreign);
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        assert_eq!(Memory::adopt(reader).unwrap_err(), Unreadable::Foreign);
    }
}

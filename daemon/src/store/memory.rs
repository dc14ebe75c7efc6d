//! The memory that outlives the process: an unnamed file that the service manager keeps open while the daemon is not
//! running. Module `slots` says what lies where in it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::key::Key;
use super::slots::{Contents, HEADER, Slots};

/// Shown in `/proc/PID/fd`; it has no other meaning.
const NAME: &str = "tokend-store";

/// Can never be made executable. Kernels before 6.3 do not know it.
const MFD_NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(0x0008);

/// Records in memory that outlives the process.
#[derive(Debug)]
pub struct Memory {
    file: File,
    slots: Slots,
}

/// What the process before left in its memory.
#[derive(Debug)]
pub struct Recovered {
    /// The memory, ready for further writes.
    pub memory: Memory,
    /// Its records.
    pub records: HashMap<Key, Vec<u8>>,
    /// Whether a part of it is damaged.
    pub is_damaged: bool,
}

impl Memory {
    /// Creates one without records.
    pub fn create() -> io::Result<Self> {
        let file = match memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFD_NOEXEC_SEAL) {
            Err(Errno::EINVAL) => memfd_create(NAME, MFdFlags::MFD_CLOEXEC)?,
            made => made?,
        };
        let file = File::from(file);
        file.write_all_at(HEADER, 0)?;
        Ok(Self { file, slots: Slots::default() })
    }

    /// Takes over the memory that the process before left with the service manager.
    pub fn adopt(fd: OwnedFd) -> io::Result<Recovered> {
        let file = File::from(fd);
        let mut read = |at, buffer: &mut [u8]| file.read_exact_at(buffer, at);
        let mut write = |at, bytes: &[u8]| file.write_all_at(bytes, at);
        let Contents { records, slots, is_damaged } =
            Contents::read(file.metadata()?.len(), &mut read, &mut write)?;
        Ok(Recovered { memory: Self { file, slots }, records, is_damaged })
    }

    /// Stores a record in place of the one with this key.
    pub fn put(&mut self, key: &Key, record: &[u8]) -> io::Result<()> {
        self.slots.put(key, record, &mut |at, bytes| self.file.write_all_at(bytes, at))
    }

    /// The record with this key.
    pub fn record(&self, key: &Key) -> Option<Vec<u8>> {
        self.slots.record(key, &mut |at, buffer| self.file.read_exact_at(buffer, at))
    }

    /// Wipes a record, if there is one.
    pub fn remove(&mut self, key: &Key) -> io::Result<()> {
        self.slots.remove(key, &mut |at, bytes| self.file.write_all_at(bytes, at))
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

    fn recovered(memory: &Memory) -> Recovered {
        Memory::adopt(memory.as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    #[test]
    fn the_next_process_finds_the_records() {
        let mut memory = Memory::create().unwrap();
        memory.put(&KEY, b"one").unwrap();
        memory.put(&KEY, b"two").unwrap();
        let mut next = recovered(&memory);
        assert_eq!(next.records[&KEY], b"two");
        assert!(!next.is_damaged);
        next.memory.put(&KEY, &[b'x'; 5_000]).unwrap();
        next.memory.put(&Key::from_bytes([2; 32]), b"three").unwrap();
        assert_eq!(next.memory.record(&KEY).unwrap(), [b'x'; 5_000]);
        let third = recovered(&next.memory);
        assert_eq!(third.records.len(), 2);
        assert_eq!(third.records[&KEY], [b'x'; 5_000]);
    }

    #[test]
    fn other_files_are_refused() {
        let foreign = tempfile::tempfile().unwrap();
        foreign.write_all_at(&[b'x'; 1_000], 0).unwrap();
        assert!(Memory::adopt(foreign.into()).is_err());
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        assert!(Memory::adopt(reader).is_err());
    }
}

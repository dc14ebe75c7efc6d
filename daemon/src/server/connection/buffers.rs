//! Room for bytes, which connections share.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::UNWRITTEN_MAX;
use crate::server::session::LastHeld;

/// Bytes that are read at once.
const READ_MAX: usize = 4 * 1024;

/// Room for the bytes of a turn, which connections share: an idle connection has none.
#[derive(Debug)]
pub struct Buffers {
    pub input: Box<[u8]>,
    pub(super) output: Vec<u8>,
    pub(super) last: LastHeld,
    /// The most bytes of output since they were wiped.
    used: usize,
}

impl Default for Buffers {
    fn default() -> Self {
        let (input, output) = (vec![0; READ_MAX].into(), Vec::new());
        Self { input, output, last: LastHeld::default(), used: 0 }
    }
}

impl Buffers {
    /// Makes room for the next turn. The bytes stay until [`Buffers::wipe`].
    pub(super) fn clear(&mut self) {
        self.used = self.used.max(self.output.len());
        self.output.clear();
    }

    /// Leaves no token behind, and not much memory after a long answer.
    pub fn wipe(&mut self) {
        self.clear();
        self.last.forget();
        self.output.resize(mem::take(&mut self.used), 0);
        self.output.clear();
        self.output.shrink_to(2 * UNWRITTEN_MAX);
    }
}

/// The buffers of the tasks, for a turn. They are wiped when it ends, also by a panic.
#[derive(Debug)]
pub struct InTurn<'a>(MutexGuard<'a, Buffers>);

impl<'a> InTurn<'a> {
    pub fn of(buffers: &'a Mutex<Buffers>) -> Self {
        Self(buffers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Deref for InTurn<'_> {
    type Target = Buffers;

    fn deref(&self) -> &Buffers {
        &self.0
    }
}

impl DerefMut for InTurn<'_> {
    fn deref_mut(&mut self) -> &mut Buffers {
        &mut self.0
    }
}

impl Drop for InTurn<'_> {
    fn drop(&mut self) {
        self.0.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiped_buffers_hold_no_answer_of_any_turn() {
        let mut buffers = Buffers::default();
        for answer in [&b"a long secret"[..], b"short"] {
            buffers.output.extend_from_slice(answer);
            buffers.clear();
        }
        buffers.wipe();
        // SAFETY: so many bytes were written before.
        #[expect(unsafe_code, reason = "nothing else shows what is left")]
        unsafe {
            buffers.output.set_len(13);
        }
        assert_eq!(buffers.output, [0; 13]);
    }
}

//! Leaves nothing of a secret on the stack.
//!
//! A hash function has the block that it works on there. The heap is wiped when it is freed and the stack is not: what
//! stays behind is overwritten sooner or later, and where it is not, it may be copied with the unused bytes of some
//! other value into memory that is kept for long.

use std::hint::black_box;

use zeroize::Zeroize;

/// Some times more than what is called in this way needs.
const DEPTH: usize = 16 * 1024;

/// Does some work, and wipes the stack that it has used.
pub fn wiped_after<T>(work: impl FnOnce() -> T) -> T {
    let done = on_frames_below(work);
    wipe();
    done
}

/// Not a part of its caller, whose own frame is not wiped.
#[inline(never)]
fn on_frames_below<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// Takes the place of what was called before it.
#[inline(never)]
fn wipe() {
    let mut area = [0_u8; DEPTH];
    black_box(&mut area).zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_done() {
        assert_eq!(wiped_after(|| "done"), "done");
    }
}

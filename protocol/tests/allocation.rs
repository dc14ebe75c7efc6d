//! A length that lies costs no memory: the largest single allocation of a decoder is bounded by the
//! direction's limit, whatever a peer promises.

#![expect(unsafe_code, reason = "an allocator that counts can be written in no other way")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokend_protocol::{Message, REPLY_MAX, REQUEST_MAX, Reply, Request, decode, read_frame};

struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Largest = Largest;

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The largest single allocation while `work` runs. The only test of this program, so nothing else runs.
fn largest_during(work: impl FnOnce()) -> usize {
    LARGEST.store(0, Ordering::Relaxed);
    work();
    LARGEST.load(Ordering::Relaxed)
}

/// What the list type of serde reserves at most before it has seen an element. Only replies have such lists.
const LIST_RESERVE: usize = 1024 * 1024;

#[test]
fn a_length_that_lies_reserves_no_more_than_the_limits_allow() {
    let lies: Vec<Vec<u8>> =
        (8..64).map(|bit| [&[0xfd][..], &(1_u64 << bit).to_le_bytes()].concat()).collect();
    for lie in &lies {
        for variant in 0..=u8::try_from(Request::HIGHEST.max(Reply::HIGHEST)).unwrap() {
            let body = [&[1, 0, 0, 0, 1, variant], &lie[..], lie].concat();
            let request = largest_during(|| assert!(decode::<Request>(&body).is_err()));
            assert!(request <= 8 * REQUEST_MAX, "request {variant}: {request} bytes");
            let reply = largest_during(|| drop(decode::<Reply>(&body)));
            assert!(reply <= (8 * REPLY_MAX).max(LIST_RESERVE), "reply {variant}: {reply} bytes");
        }
    }
    let frame = largest_during(|| {
        let error = read_frame::<Request>(&mut &[0xff; 64][..]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    });
    assert!(frame < 1024, "a frame of 4 GiB: {frame} bytes");
}

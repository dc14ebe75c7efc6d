//! Any bytes on a socket: neither codec panics, both understand the same, and what was understood can be
//! written and understood again.
#![no_main]

use std::fmt::Debug;

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tokend_protocol::{BadFrame, Codec, Frame, Message, Reply, Request, decode, encode, read_frame};
use tokio_util::codec::Decoder;

fuzz_target!(|wire: &[u8]| {
    check::<Request>(wire);
    check::<Reply>(wire);
});

fn check<M: Message + PartialEq + Debug>(wire: &[u8]) {
    let frames = by_blocking::<M>(wire);
    assert_eq!(by_tokio::<M>(wire), frames);
    for frame in frames.into_iter().flatten() {
        let mut again = Vec::new();
        encode(&frame, &mut again).expect("what was read is within the limit");
        assert_eq!(decode(&again[4..]), Ok(frame));
    }
}

fn by_blocking<M: Message>(mut wire: &[u8]) -> Vec<Result<Frame<M>, BadFrame>> {
    std::iter::from_fn(|| read_frame(&mut wire).ok().flatten()).collect()
}

fn by_tokio<M: Message>(wire: &[u8]) -> Vec<Result<Frame<M>, BadFrame>> {
    let mut codec = Codec::<M, M>::new();
    let mut wire = BytesMut::from(wire);
    std::iter::from_fn(|| codec.decode(&mut wire).ok().flatten()).collect()
}

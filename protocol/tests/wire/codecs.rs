//! The blocking functions and the tokio codec are two faces of one format.
#![cfg(feature = "tokio")]

use std::io;

use bytes::BytesMut;
use tokend_protocol::{
    BadFrame, CallOptions, Codec, Fault, Frame, GetRequest, Message, REPLY_MAX, REQUEST_MAX, Reply, Request,
    Secret, TokenReply, VERSION, Variant, decode_get, encode, read_frame, write_frame,
};
use tokio_util::codec::{Decoder, Encoder};

use crate::samples::{self, Sample};

/// Writes with the one and reads with the other, both ways.
fn check_both_ways<M: Message + Clone + PartialEq + std::fmt::Debug>(frame: &Frame<M>) {
    let mut by_blocking = Vec::new();
    write_frame(&mut by_blocking, frame).unwrap();
    let mut codec = Codec::<M, M>::new();
    let mut by_tokio = BytesMut::new();
    codec.encode(frame.clone(), &mut by_tokio).unwrap();
    assert_eq!(by_tokio, by_blocking[..]);
    assert_eq!(read_frame(&mut &by_tokio[..]).unwrap(), Some(Ok(frame.clone())));
    assert_eq!(codec.decode(&mut by_tokio).unwrap(), Some(Ok(frame.clone())));
    assert!(by_tokio.is_empty());
}

#[test]
fn only_a_get_without_more_is_recognized() {
    let options = CallOptions { deadline_ms: 1_000, min_ttl_ms: 5 };
    let body = |variant| {
        let get = GetRequest { name: "psb".parse().unwrap(), options, variant };
        let mut wire = Vec::new();
        encode(&Frame { id: 7, message: Request::Get(get) }, &mut wire).unwrap();
        wire.split_off(4)
    };
    let plain = body(Variant::default());
    assert_eq!(decode_get(&plain), Some(("psb", options)));
    let with = |place: usize, byte: u8| {
        let mut changed = plain.clone();
        changed[place] = byte;
        changed
    };
    for length in 0..plain.len() {
        assert_eq!(decode_get(&plain[..length]), None, "{length} bytes");
    }
    assert_eq!(decode_get(&[&plain[..], &[0]].concat()), None, "a byte too many");
    assert_eq!(decode_get(&with(0, VERSION + 1)), None, "another version");
    for message in 1..=u8::try_from(Request::HIGHEST).unwrap() {
        assert_eq!(decode_get(&with(5, message)), None, "message {message}");
    }
    assert_eq!(decode_get(&body(Variant { scope: vec!["a".to_owned()], ..Variant::default() })), None);
}

#[test]
fn both_write_the_same_bytes_and_read_each_other() {
    for (_, sample) in samples::all() {
        match sample {
            Sample::Request(frame) => check_both_ways(&frame),
            Sample::Reply(frame) => check_both_ways(&frame),
        }
    }
}

#[test]
fn frames_that_arrive_byte_by_byte_come_out_in_order() {
    let frames: Vec<Frame<Request>> = samples::all()
        .into_iter()
        .filter_map(|(_, sample)| if let Sample::Request(frame) = sample { Some(frame) } else { None })
        .collect();
    let mut sent = Vec::new();
    for frame in &frames {
        write_frame(&mut sent, frame).unwrap();
    }
    let mut codec = Codec::<Request, Reply>::new();
    let mut buffer = BytesMut::new();
    let mut received = Vec::new();
    for byte in sent {
        buffer.extend_from_slice(&[byte]);
        received.extend(codec.decode(&mut buffer).unwrap().map(Result::unwrap));
    }
    assert_eq!(received, frames);
}

#[test]
fn a_bad_body_is_an_item_and_the_stream_goes_on() {
    let mut buffer = BytesMut::from(&[0, 0, 0, 6, 1, 0, 0, 0, 5, 0xff, 0, 0, 0, 0][..]);
    Encoder::encode(
        &mut Codec::<Reply, Request>::new(),
        Frame { id: 6, message: Request::Version },
        &mut buffer,
    )
    .unwrap();
    let mut codec = Codec::<Request, Reply>::new();
    let mut next = || codec.decode(&mut buffer).unwrap();
    assert_eq!(next(), Some(Err(BadFrame { id: 5, fault: Fault::Malformed })));
    assert_eq!(next(), Some(Err(BadFrame { id: 0, fault: Fault::Cut(0) })));
    assert_eq!(next(), Some(Ok(Frame { id: 6, message: Request::Version })));
    assert_eq!(next(), None);
}

#[test]
fn an_oversized_length_is_an_error_before_its_body_arrives() {
    let length = |size: usize| BytesMut::from(&u32::try_from(size).unwrap().to_be_bytes()[..]);
    let mut daemon = Codec::<Request, Reply>::new();
    let refused = daemon.decode(&mut length(REQUEST_MAX + 1)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    assert_eq!(Codec::<Request, Reply>::new().decode(&mut length(REQUEST_MAX)).unwrap(), None);
    let mut client = Codec::<Reply, Request>::new();
    let refused = client.decode(&mut length(REPLY_MAX + 1)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    assert_eq!(Codec::<Reply, Request>::new().decode(&mut length(REPLY_MAX)).unwrap(), None);
}

#[test]
fn an_oversized_message_leaves_the_frames_before_it_as_they_were() {
    let Sample::Reply(small) =
        samples::all().into_iter().find(|(file, _)| file == "reply-0-token.bin").unwrap().1
    else {
        panic!("the sample is another direction");
    };
    let Reply::Token(token) = small.message.clone() else { panic!("the sample is another message") };
    let token = TokenReply { token: Secret::from("x".repeat(REPLY_MAX)), ..token };
    let mut codec = Codec::<Request, Reply>::new();
    let mut buffer = BytesMut::new();
    codec.encode(small, &mut buffer).unwrap();
    let before = buffer.clone();
    let refused = codec.encode(Frame { id: 2, message: Reply::Token(token) }, &mut buffer).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(buffer, before);
}

//! What is not a message is told apart from what is, keeps its request id, and costs one frame at most.

use std::io::{self, Read};

use tokend_protocol::{
    BadFrame, BadList, CallOptions, EncodeError, ErrorCode, ErrorReply, Fault, Frame, GetRequest,
    HEADER_BYTES, List, ListEntry, ListReply, Message, REPLY_MAX, REQUEST_MAX, Reply, Request, Secret, State,
    TokenReply, Variant, decode, encode, read_frame, write_frame,
};

use crate::samples::{self, Sample};

const ID: u32 = 0x0102_0304;

/// A body of version 1 with the request id [`ID`].
fn body(message: &[u8]) -> Vec<u8> {
    [&[1, 1, 2, 3, 4], message].concat()
}

fn malformed() -> BadFrame {
    BadFrame { id: ID, fault: Fault::Malformed }
}

fn request(bytes: &[u8]) -> Result<Frame<Request>, BadFrame> {
    decode(&body(bytes))
}

/// The fault of a body cut after so many bytes, as that of its own direction.
fn fault_of(sample: &Sample, body: &[u8]) -> Option<BadFrame> {
    match sample {
        Sample::Request(_) => decode::<Request>(body).err(),
        Sample::Reply(_) => decode::<Reply>(body).err(),
    }
}

#[test]
fn a_body_cut_anywhere_is_refused() {
    for (file, sample) in samples::all() {
        let wire = sample.to_wire();
        let body = &wire[4..];
        for cut in 0..body.len() {
            let expected = if cut < HEADER_BYTES {
                BadFrame { id: 0, fault: Fault::Cut(cut) }
            } else {
                BadFrame { id: 1, fault: Fault::Malformed }
            };
            assert_eq!(fault_of(&sample, &body[..cut]), Some(expected), "{file} cut after {cut}");
        }
    }
}

#[test]
fn a_stream_cut_anywhere_ends_in_an_error_and_between_frames_in_none() {
    for (file, sample) in samples::all() {
        let wire = sample.to_wire();
        for cut in 1..wire.len() {
            let kind = match sample {
                Sample::Request(_) => read_frame::<Request>(&mut &wire[..cut]).err().map(|e| e.kind()),
                Sample::Reply(_) => read_frame::<Reply>(&mut &wire[..cut]).err().map(|e| e.kind()),
            };
            assert_eq!(kind, Some(io::ErrorKind::UnexpectedEof), "{file} cut after {cut}");
        }
    }
    assert!(read_frame::<Request>(&mut io::empty()).unwrap().is_none());
}

#[test]
fn trailing_bytes_are_refused_and_counted() {
    for (file, sample) in samples::all() {
        let wire = sample.to_wire();
        let longer = [&wire[4..], &[0, 0, 0]].concat();
        let expected = BadFrame { id: 1, fault: Fault::TrailingBytes(3) };
        assert_eq!(fault_of(&sample, &longer), Some(expected), "{file}");
    }
}

#[test]
fn another_version_is_named_with_the_id_and_nothing_behind_it_is_read() {
    for version in [0, 2, 255] {
        let body = [version, 1, 2, 3, 4, 0xff, 0xff];
        assert_eq!(decode::<Request>(&body), Err(BadFrame { id: ID, fault: Fault::Version(version) }));
    }
}

#[test]
fn unknown_numbers_are_refused() {
    let unknown = |number| BadFrame { id: ID, fault: Fault::UnknownMessage(number) };
    let beyond = |highest: u32| [u8::try_from(highest + 1).unwrap()];
    assert_eq!(request(&beyond(Request::HIGHEST)), Err(unknown(Request::HIGHEST + 1)));
    assert_eq!(request(&[0xfc, 0xff, 0xff, 0xff, 0xff]), Err(unknown(u32::MAX)));
    assert_eq!(decode::<Reply>(&body(&beyond(Reply::HIGHEST))), Err(unknown(Reply::HIGHEST + 1)));
    let list_with_state = |state: u8| decode::<Reply>(&body(&[2, 1, 1, b'a', state, 0, 0]));
    assert!(list_with_state(5).is_ok());
    assert_eq!(list_with_state(6), Err(malformed()), "one past the last state");
}

#[test]
fn only_what_the_specification_allows_is_a_number_a_bool_or_an_option() {
    let get = |deadline: &[u8]| request(&[&[0, 1, b'a'], deadline, &[0, 0, 0, 0, 0]].concat());
    assert!(get(&[0xfc, 0xff, 0xff, 0xff, 0xff]).is_ok(), "the greatest u32");
    assert!(get(&[0xfb, 0x01, 0x00]).is_ok(), "a longer form than needed");
    assert_eq!(get(&[0xfd, 1, 0, 0, 0, 0, 0, 0, 0]), Err(malformed()), "a u64 where a u32 stands");
    assert_eq!(get(&[0xff]), Err(malformed()), "a reserved first byte");
    assert_eq!(request(&[2, 2]), Err(malformed()), "an option that is neither none nor some");
    assert_eq!(decode::<Reply>(&body(&[2, 0, 2])), Err(malformed()), "a bool that is neither");
}

#[test]
fn a_name_inside_a_message_is_checked_as_any_other() {
    let get = |name: &[u8]| {
        let length = u8::try_from(name.len()).ok().filter(|length| *length < 251);
        let length = length.map_or_else(
            || [&[0xfb][..], &u16::try_from(name.len()).unwrap().to_le_bytes()].concat(),
            |length| vec![length],
        );
        request(&[&[0][..], &length, name, &[0, 0, 0, 0, 0, 0]].concat())
    };
    let longest = [b'x'; 255];
    for good in [&b"psb"[..], b"a.b_c-d@e:f+g", &longest] {
        let Ok(Frame { message: Request::Get(GetRequest { name, .. }), .. }) = get(good) else {
            panic!("{good:?} is refused");
        };
        assert_eq!(name.as_str().as_bytes(), good);
    }
    for bad in
        [&b""[..], b"a/b", b"..", b"-a", b"a\0b", b"a\nb", b"a b", b"\xff\xfe", "ä".as_bytes(), &[b'x'; 300]]
    {
        assert_eq!(get(bad), Err(malformed()), "{bad:?}");
    }
}

#[test]
fn a_length_that_promises_more_than_there_is_is_refused() {
    let greatest = [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let one_more = [4];
    let too_long = BadFrame { id: ID, fault: Fault::List(BadList::TooLong(List::Tokens)) };
    for (length, fault_of_list) in [(&greatest[..], too_long), (&one_more, malformed())] {
        let name = [&[0], length, b"psb"].concat();
        assert_eq!(request(&name), Err(malformed()), "a text of length {length:?}");
        let names = [&[6], length, &b"\x01a\0\0\0\x01b\0\0\0\x01c\0\0\0"[..]].concat();
        assert_eq!(request(&names), Err(fault_of_list), "a list of length {length:?}");
    }
}

#[test]
fn an_oversized_length_is_refused_before_its_body_arrives() {
    let refused = |length: usize, read: fn(&mut &[u8]) -> Option<io::ErrorKind>| {
        let wire = u32::try_from(length).unwrap().to_be_bytes();
        read(&mut &wire[..])
    };
    let as_request: fn(&mut &[u8]) -> _ = |wire| read_frame::<Request>(wire).err().map(|e| e.kind());
    let as_reply: fn(&mut &[u8]) -> _ = |wire| read_frame::<Reply>(wire).err().map(|e| e.kind());
    assert_eq!(
        refused(REQUEST_MAX, as_request),
        Some(io::ErrorKind::UnexpectedEof),
        "allowed, but nothing follows"
    );
    assert_eq!(refused(REQUEST_MAX + 1, as_request), Some(io::ErrorKind::InvalidData));
    assert_eq!(refused(REPLY_MAX, as_reply), Some(io::ErrorKind::UnexpectedEof));
    assert_eq!(refused(REPLY_MAX + 1, as_reply), Some(io::ErrorKind::InvalidData));
    assert_eq!(refused(u32::MAX as usize, as_reply), Some(io::ErrorKind::InvalidData));
}

#[test]
fn an_oversized_message_is_not_written_and_leaves_the_buffer_as_it_was() {
    let token = Secret::from("x".repeat(REPLY_MAX));
    let Sample::Reply(Frame { message: Reply::Token(small), .. }) =
        samples::all().into_iter().find(|(file, _)| file == "reply-0-token.bin").unwrap().1
    else {
        panic!("the sample is another message");
    };
    let frame = Frame { id: 1, message: Reply::Token(TokenReply { token, ..small }) };
    let mut wire = b"before".to_vec();
    let refused = encode(&frame, &mut wire);
    assert!(
        matches!(refused, Err(EncodeError::TooLarge { size, max: REPLY_MAX }) if size > REPLY_MAX),
        "{refused:?}"
    );
    assert_eq!(wire, b"before");
    let mut written = Vec::new();
    assert_eq!(write_frame(&mut written, &frame).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(written, b"");
}

#[test]
fn a_message_of_exactly_the_limit_passes_both_ways() {
    let reply = |length: usize| {
        let message = "x".repeat(length);
        let code = ErrorCode::Unavailable;
        Reply::Error(ErrorReply { code, message, class: None, next_attempt: None, best_ttl_ms: None })
    };
    // Header, number, code, a length of five bytes, three options without a value, no extensions.
    let fixed = HEADER_BYTES + 1 + 1 + 5 + 3 + 1;
    let largest = Frame { id: ID, message: reply(REPLY_MAX - fixed) };
    let mut wire = Vec::new();
    encode(&largest, &mut wire).unwrap();
    assert_eq!(wire.len() - 4, REPLY_MAX);
    assert_eq!(decode(&wire[4..]), Ok(largest));
    let larger = Frame { id: ID, message: reply(REPLY_MAX - fixed + 1) };
    let refused = encode(&larger, &mut wire);
    assert_eq!(refused, Err(EncodeError::TooLarge { size: REPLY_MAX + 1, max: REPLY_MAX }));
}

/// Numbers that take one byte on the wire count for more in the decoder's own limit.
#[test]
fn a_full_page_of_the_shortest_entries_can_be_read() {
    let entry = ListEntry { name: samples::name("a"), state: State::Fresh };
    let fits = (REPLY_MAX - HEADER_BYTES - 1 - 5 - 1 - 1) / 3;
    let message = Reply::List(ListReply { tokens: vec![entry; fits], more: true });
    let frame = Frame { id: ID, message };
    let mut wire = Vec::new();
    encode(&frame, &mut wire).unwrap();
    assert!(wire.len() - 4 > REPLY_MAX - 3, "the page is full");
    assert!(decode(&wire[4..]) == Ok(frame));
}

#[test]
fn the_frame_behind_a_bad_body_can_be_read() {
    let mut wire = Vec::new();
    for bad in [&[][..], &[1, 0, 0], &[9, 0, 0, 0, 7], &body(&[0xff]), &body(&[7, 0, 0])] {
        wire.extend_from_slice(&u32::try_from(bad.len()).unwrap().to_be_bytes());
        wire.extend_from_slice(bad);
    }
    write_frame(&mut wire, &Frame { id: ID, message: Request::Version }).unwrap();
    let mut reader = &wire[..];
    let faults: Vec<BadFrame> =
        (0..5).map(|_| read_frame::<Request>(&mut reader).unwrap().unwrap().unwrap_err()).collect();
    let expected = [
        BadFrame { id: 0, fault: Fault::Cut(0) },
        BadFrame { id: 0, fault: Fault::Cut(3) },
        BadFrame { id: 7, fault: Fault::Version(9) },
        malformed(),
        BadFrame { id: ID, fault: Fault::TrailingBytes(1) },
    ];
    assert_eq!(faults, expected);
    let good = read_frame::<Request>(&mut reader).unwrap().unwrap();
    assert_eq!(good, Ok(Frame { id: ID, message: Request::Version }));
    assert!(read_frame::<Request>(&mut reader).unwrap().is_none());
}

/// Gives one byte at a time, and an interruption before each.
struct Trickle<'a> {
    rest: &'a [u8],
    interrupted: bool,
}

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let size = buffer.len().min(1);
        self.rest.read(&mut buffer[..size])
    }
}

#[test]
fn a_frame_that_arrives_byte_by_byte_is_read_whole() {
    for (file, sample) in samples::all() {
        let wire = sample.to_wire();
        let mut reader = Trickle { rest: &wire, interrupted: false };
        let read = match sample {
            Sample::Request(_) => Sample::Request(read_frame(&mut reader).unwrap().unwrap().unwrap()),
            Sample::Reply(_) => Sample::Reply(read_frame(&mut reader).unwrap().unwrap().unwrap()),
        };
        assert_eq!(read, sample, "{file}");
    }
}

#[test]
fn an_error_text_does_not_repeat_what_was_received() {
    let secret = b"correct-horse/battery";
    let bad = [&[0, 21], &secret[..], &[0, 0]].concat();
    let error = request(&bad).unwrap_err();
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains("horse"), "{shown}");
    }
}

#[test]
fn unknown_extensions_are_skipped() {
    let version = |extensions: &[u8]| request(&[&[7], extensions].concat());
    let expected = Ok(Frame { id: ID, message: Request::Version });
    for extensions in [&[0][..], &[1, 5, 0], &[2, 5, 3, 1, 2, 3, 0xfb, 0xe8, 0x03, 0]] {
        assert_eq!(version(extensions), expected, "{extensions:?}");
    }
    assert_eq!(version(&[]), Err(malformed()), "no list");
    assert_eq!(version(&[1]), Err(malformed()), "an element that is missing");
    assert_eq!(version(&[1, 5, 2, 9]), Err(malformed()), "an element that is cut");
    assert_eq!(version(&[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Err(malformed()));
    let trailing = BadFrame { id: ID, fault: Fault::TrailingBytes(1) };
    assert_eq!(version(&[1, 5, 1, 9, 7]), Err(trailing));
}

#[test]
fn the_limits_are_those_of_the_specification() {
    assert_eq!((Request::BODY_MAX, Reply::BODY_MAX), (16_384, 262_144));
    let options = CallOptions { deadline_ms: 0, min_ttl_ms: 0 };
    let request = GetRequest { name: samples::name("a"), options, variant: Variant::default() };
    let get = Frame { id: ID, message: Request::Get(request) };
    let mut wire = Vec::new();
    encode(&get, &mut wire).unwrap();
    assert_eq!(wire, [0, 0, 0, 14, 1, 1, 2, 3, 4, 0, 1, b'a', 0, 0, 0, 0, 0, 0]);
}

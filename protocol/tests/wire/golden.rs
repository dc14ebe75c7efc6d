//! The wire format cannot change by accident: golden frames on disk, and the specification beside them.
//!
//! A frame file is never edited. A new variant gets a new sample in `samples`, and one run with
//! `WRITE_GOLDEN=1` writes the files that are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use tokend_protocol::{ErrorClass, ErrorCode, Message, RejectOutcome, Reply, Request, State};

use crate::samples::{self, CLASSES, CODES, OUTCOMES, STATES, Sample};

const SPECIFICATION: &str = include_str!("../../PROTOCOL.md");

#[test]
fn golden_frames_decode_to_what_they_were_and_encode_to_the_same_bytes() {
    for (file, sample) in samples::all() {
        let path = samples::golden_path(&file);
        if !path.exists() && std::env::var_os("WRITE_GOLDEN").is_some() {
            std::fs::write(&path, sample.to_wire()).unwrap();
        }
        let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(golden[..4], u32::try_from(golden.len() - 4).unwrap().to_be_bytes(), "{file}");
        let decoded = sample.read_same_direction(&golden);
        assert_eq!(decoded, sample, "{file}");
        assert_eq!(decoded.to_wire(), golden, "{file}");
    }
}

#[test]
fn every_golden_frame_has_a_sample() {
    let known: BTreeSet<String> = samples::all().into_iter().map(|(file, _)| file).collect();
    let on_disk = std::fs::read_dir(samples::golden_path("")).unwrap();
    let on_disk: BTreeSet<String> =
        on_disk.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(on_disk, known);
}

/// The matches below are exhaustive, so that a new variant does not compile before it has a number here;
/// and the numbers are compared with what stands in the frames.
#[test]
fn every_variant_has_a_golden_frame_with_its_number() {
    let mut requests = BTreeSet::new();
    let mut replies = BTreeSet::new();
    for (file, sample) in samples::all() {
        let on_wire = std::fs::read(samples::golden_path(&file)).unwrap()[9];
        match sample {
            Sample::Request(frame) => {
                assert_eq!(request_number(&frame.message), on_wire, "{file}");
                requests.insert(on_wire);
            }
            Sample::Reply(frame) => {
                assert_eq!(reply_number(&frame.message), on_wire, "{file}");
                replies.insert(on_wire);
            }
        }
    }
    assert_eq!(requests, numbers::<Request>().collect());
    assert_eq!(replies, numbers::<Reply>().collect());
    assert_eq!(STATES.map(state_number), std::array::from_fn(number));
    assert_eq!(CLASSES.map(class_number), std::array::from_fn(number));
    assert_eq!(OUTCOMES.map(outcome_number), std::array::from_fn(number));
    assert_eq!(CODES.map(code_number), std::array::from_fn(number));
}

#[test]
fn the_specification_lists_every_value_with_its_number() {
    list_in_specification(STATES.map(|value| (state_number(value), value)));
    list_in_specification(CLASSES.map(|value| (class_number(value), value)));
    list_in_specification(OUTCOMES.map(|value| (outcome_number(value), value)));
    list_in_specification(CODES.map(|value| (code_number(value), value)));
}

#[test]
fn the_hexdumps_in_the_specification_are_the_golden_frames() {
    let dumps = dumps_in_specification();
    for (file, bytes) in &dumps {
        assert_eq!(bytes, &std::fs::read(samples::golden_path(file)).unwrap(), "{file}");
    }
    let shown = |prefix: &str| dumps.keys().any(|file| file.starts_with(prefix));
    for number in numbers::<Request>() {
        assert!(shown(&format!("request-{number}-")), "no hexdump of request {number}");
    }
    for number in numbers::<Reply>() {
        assert!(shown(&format!("reply-{number}-")), "no hexdump of reply {number}");
    }
}

/// The numbers of all messages of a direction.
fn numbers<M: Message>() -> impl Iterator<Item = u8> {
    0..=u8::try_from(M::HIGHEST).unwrap()
}

fn number(index: usize) -> u8 {
    u8::try_from(index).unwrap()
}

fn list_in_specification<T: Debug>(values: impl IntoIterator<Item = (u8, T)>) {
    for (number, value) in values {
        let row = format!("| {number} | `{value:?}` |");
        assert!(SPECIFICATION.contains(&row), "no table of the specification has the row {row}");
    }
}

/// The blocks that begin with a file's name: each line is bytes, at least two spaces, and their meaning.
fn dumps_in_specification() -> BTreeMap<String, Vec<u8>> {
    let mut dumps = BTreeMap::new();
    let text: Vec<&str> = SPECIFICATION.lines().map(str::trim).collect();
    for block in text.split(|line| line.starts_with("```")) {
        let Some((file, lines)) = block.split_first().filter(|(file, _)| is_frame_name(file)) else {
            continue;
        };
        let bytes = lines.iter().flat_map(|line| line.split("  ").next().unwrap().split(' '));
        let bytes =
            bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap_or_else(|_| panic!("{file}: {byte:?}")));
        dumps.insert((*file).to_owned(), bytes.collect());
    }
    dumps
}

fn is_frame_name(line: &str) -> bool {
    line.strip_suffix(".bin").is_some_and(|stem| stem.starts_with("request-") || stem.starts_with("reply-"))
}

fn request_number(request: &Request) -> u8 {
    match request {
        Request::Get(_) => 0,
        Request::Headers(_) => 1,
        Request::List(_) => 2,
        Request::Status(_) => 3,
        Request::Refresh(_) => 4,
        Request::Reject(_) => 5,
        Request::Watch(_) => 6,
        Request::Version => 7,
        Request::Explain(_) => 8,
    }
}

fn reply_number(reply: &Reply) -> u8 {
    match reply {
        Reply::Token(_) => 0,
        Reply::Headers(_) => 1,
        Reply::List(_) => 2,
        Reply::Status(_) => 3,
        Reply::Refreshed(_) => 4,
        Reply::Rejected(_) => 5,
        Reply::Event(_) => 6,
        Reply::Version(_) => 7,
        Reply::Error(_) => 8,
        Reply::Explained(_) => 9,
    }
}

fn state_number(state: State) -> u8 {
    match state {
        State::Fresh => 0,
        State::Refreshing => 1,
        State::Degraded => 2,
        State::Pending => 3,
        State::Unavailable => 4,
        State::NeedsOperator => 5,
    }
}

fn class_number(class: ErrorClass) -> u8 {
    match class {
        ErrorClass::Unreachable => 0,
        ErrorClass::Timeout => 1,
        ErrorClass::Tls => 2,
        ErrorClass::Throttled => 3,
        ErrorClass::Server => 4,
        ErrorClass::Malformed => 5,
        ErrorClass::Refused => 6,
        ErrorClass::Secret => 7,
        ErrorClass::Internal => 8,
    }
}

fn outcome_number(outcome: RejectOutcome) -> u8 {
    match outcome {
        RejectOutcome::Replaced => 0,
        RejectOutcome::Superseded => 1,
        RejectOutcome::Unchanged => 2,
        RejectOutcome::TooSoon => 3,
    }
}

fn code_number(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::NotAllowed => 0,
        ErrorCode::UnknownToken => 1,
        ErrorCode::Unavailable => 2,
        ErrorCode::NeedsOperator => 3,
        ErrorCode::DeadlineExceeded => 4,
        ErrorCode::InvalidRequest => 5,
        ErrorCode::UnsupportedVersion => 6,
        ErrorCode::Overloaded => 7,
        ErrorCode::MinTtlUnreachable => 8,
        ErrorCode::ShuttingDown => 9,
        ErrorCode::UnknownRequest => 10,
    }
}

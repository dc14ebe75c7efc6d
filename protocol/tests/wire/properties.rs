//! Properties of every message, and of every sequence of bytes.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tokend_protocol::{
    Attribute, BootInstant, CallOptions, CallerHeader, Count, DaemonStatus, Deviation, ErrorClass, ErrorCode,
    ErrorReply, EventReply, ExplainRequest, ExplainedCondition, ExplainedList, ExplainedReply, ExplainedRule,
    Fingerprint, Frame, GetRequest, Header, HeadersReply, HeadersRequest, HeldToken, LastError, ListEntry,
    ListReply, Message, PageRequest, RefreshRequest, RefreshedReply, RejectOutcome, RejectRequest,
    RejectedReply, Reply, Request, Secret, State, StatusReply, StatusRequest, Subject, SubjectFacts,
    TERMS_MAX, Timestamp, TokenFrame, TokenInfo, TokenName, TokenReply, TokenStatus, Variant, VariantStatus,
    VersionReply, WatchRequest, WatchedToken, decode, decode_get, encode,
};

use crate::samples::{self, CLASSES, CODES, OUTCOMES, STATES};

proptest! {
    #[test]
    fn a_request_survives_the_wire(id: u32, message in request()) {
        survives(&Frame { id, message });
    }

    #[test]
    fn a_plain_get_is_recognized(id: u32, name in name(), options in options()) {
        let get = GetRequest { name: name.clone(), options, variant: Variant::default() };
        let mut wire = Vec::new();
        encode(&Frame { id, message: Request::Get(get) }, &mut wire).unwrap();
        prop_assert_eq!(decode_get(&wire[4..]), Some((name.as_str(), options)));
    }

    #[test]
    fn a_token_frame_is_the_frame_of_the_reply(ids: [u32; 3], reply in token()) {
        let frame = TokenFrame::new(&reply).unwrap();
        let (mut copied, mut encoded) = (Vec::new(), Vec::new());
        for id in ids {
            frame.append(id, &reply.token, &mut copied);
            encode(&Frame { id, message: Reply::Token(reply.clone()) }, &mut encoded).unwrap();
        }
        prop_assert_eq!(copied, encoded);
    }

    #[test]
    fn a_reply_survives_the_wire(id: u32, message in reply()) {
        survives(&Frame { id, message });
    }

    #[test]
    fn any_bytes_are_a_message_or_a_fault(body in vec(any::<u8>(), 0..600)) {
        is_consistent::<Request>(&body);
        is_consistent::<Reply>(&body);
        a_plain_get_is_a_get(&body);
    }

    #[test]
    fn any_bytes_behind_a_good_header_are_a_message_or_a_fault(variant in 0..=highest(), rest in vec(0..8_u8, 0..200)) {
        let body = [&[1, 0, 0, 0, 1, variant], &rest[..]].concat();
        is_consistent::<Request>(&body);
        is_consistent::<Reply>(&body);
        a_plain_get_is_a_get(&body);
    }

    #[test]
    fn a_request_that_is_refused_by_one_side_is_refused_by_the_other(terms in vec("[a-e]{1,3}", 0..80)) {
        let written = terms.iter().flat_map(|term| [&[u8::try_from(term.len()).unwrap()], term.as_bytes()].concat());
        let count = u8::try_from(terms.len()).unwrap();
        let body = [&[1, 0, 0, 0, 1, 0, 1, b'a', 0, 0, count][..], &written.collect::<Vec<u8>>(), &[0, 0, 0]].concat();
        let is_good = terms.len() <= TERMS_MAX && terms.iter().collect::<HashSet<_>>().len() == terms.len();
        let options = CallOptions { deadline_ms: 0, min_ttl_ms: 0 };
        let variant = Variant { scope: terms, ..Variant::default() };
        let message = Request::Get(GetRequest { name: "a".parse().unwrap(), options, variant });
        let frame = Frame { id: 1, message };
        prop_assert_eq!(encode(&frame, &mut Vec::new()).is_ok(), is_good);
        let decoded = decode::<Request>(&body);
        prop_assert_eq!(decoded.is_ok(), is_good);
        prop_assert!(!is_good || decoded == Ok(frame));
    }

    #[test]
    fn a_changed_byte_is_a_message_or_a_fault(pick: prop::sample::Index, place: prop::sample::Index, byte: u8) {
        let all = samples::all();
        let (_, sample) = pick.get(&all);
        let wire = sample.to_wire();
        let mut body = wire[4..].to_vec();
        let place = place.index(body.len());
        body[place] = byte;
        is_consistent::<Request>(&body);
        is_consistent::<Reply>(&body);
        a_plain_get_is_a_get(&body);
    }
}

/// The highest number of a message in either direction.
fn highest() -> u8 {
    u8::try_from(Request::HIGHEST.max(Reply::HIGHEST)).unwrap()
}

fn survives<M: Message + PartialEq + std::fmt::Debug>(frame: &Frame<M>) {
    let mut wire = Vec::new();
    encode(frame, &mut wire).unwrap();
    assert_eq!(decode::<M>(&wire[4..]).as_ref(), Ok(frame));
}

/// `decode_get` agrees with `decode`, and leaves it to its caller to check the name.
fn a_plain_get_is_a_get(body: &[u8]) {
    let Some((name, options)) = decode_get(body) else { return };
    match (decode::<Request>(body).map(|frame| frame.message), name.parse::<TokenName>()) {
        (Ok(Request::Get(get)), Ok(name)) => {
            assert_eq!(get, GetRequest { name, options, variant: Variant::default() });
        }
        (Err(_), Err(_)) => (),
        other => panic!("{other:?}"),
    }
}

/// A message that was read can be written in no more bytes, and reads the same again.
fn is_consistent<M: Message + PartialEq + std::fmt::Debug>(body: &[u8]) {
    if let Ok(frame) = decode::<M>(body) {
        let mut wire = Vec::new();
        encode(&frame, &mut wire).unwrap();
        assert!(wire.len() - 4 <= body.len(), "{frame:?}");
        assert_eq!(decode::<M>(&wire[4..]), Ok(frame));
    }
}

fn request() -> impl Strategy<Value = Request> {
    let page = || option::of(name()).prop_map(|after| PageRequest { after });
    let header = (text(), text()).prop_map(|(name, value)| CallerHeader { name, value });
    let headers = (name(), options(), vec(header, 0..5), vec(text(), 0..5), variant()).prop_map(
        |(name, options, supplied, omitted, variant)| HeadersRequest {
            name,
            options,
            supplied,
            omitted,
            variant,
        },
    );
    let watched = (name(), variant()).prop_map(|(name, variant)| WatchedToken { name, variant });
    prop_oneof![
        (name(), options(), variant()).prop_map(|(name, options, variant)| Request::Get(GetRequest {
            name,
            options,
            variant
        })),
        headers.prop_map(Request::Headers),
        page().prop_map(Request::List),
        (option::of(name()), option::of(name()))
            .prop_map(|(name, after)| Request::Status(StatusRequest { name, after })),
        (name(), any::<u32>(), variant()).prop_map(|(name, deadline_ms, variant)| {
            Request::Refresh(RefreshRequest { name, deadline_ms, variant })
        }),
        (name(), fingerprint(), any::<u32>(), variant()).prop_map(
            |(name, fingerprint, deadline_ms, variant)| {
                Request::Reject(RejectRequest { name, fingerprint, deadline_ms, variant })
            }
        ),
        (vec(watched, 0..3), any::<bool>())
            .prop_map(|(tokens, with_tokens)| Request::Watch(WatchRequest { tokens, with_tokens })),
        Just(Request::Version),
        (name(), variant(), subject()).prop_map(|(name, variant, subject)| {
            Request::Explain(ExplainRequest { name, variant, subject })
        }),
    ]
    .prop_filter("a list repeats an element", |request| request.check().is_ok())
}

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        Just(Subject::Caller),
        text().prop_map(Subject::User),
        any::<u32>().prop_map(Subject::Process),
        text().prop_map(Subject::Unit),
    ]
}

fn explained() -> impl Strategy<Value = ExplainedReply> {
    let condition = (text(), any::<bool>(), text()).prop_map(|(condition, holds, fact)| ExplainedCondition {
        condition,
        holds,
        fact,
    });
    let rule = (text(), any::<bool>(), vec(condition, 0..3))
        .prop_map(|(rule, matches, conditions)| ExplainedRule { rule, matches, conditions });
    let list = (text(), vec(rule, 0..3)).prop_map(|(of, rules)| ExplainedList { of, rules });
    let said = (any::<bool>(), text(), option::of(text()), any::<u32>());
    (said, subject_facts(), vec(list, 0..3)).prop_map(|(said, facts, lists)| {
        let (allowed, reason, operator, omitted) = said;
        ExplainedReply { allowed, reason, facts, operator, lists, omitted }
    })
}

fn subject_facts() -> impl Strategy<Value = SubjectFacts> {
    let numbers = any::<(Option<u32>, Option<u32>, Vec<u32>, Option<u32>)>();
    let words = || option::of(text());
    (numbers, words(), words(), words(), words()).prop_map(
        |(numbers, unit, user_unit, invocation_id, exe)| {
            let (uid, gid, groups, pid) = numbers;
            SubjectFacts { uid, gid, groups, pid, unit, user_unit, invocation_id, exe }
        },
    )
}

fn variant() -> impl Strategy<Value = Variant> {
    (vec(text(), 0..3), vec(text(), 0..3), vec(text(), 0..3))
        .prop_map(|(scope, resource, audience)| Variant { scope, resource, audience })
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        token().prop_map(Reply::Token),
        (info(), vec(header(), 0..5))
            .prop_map(|(info, headers)| Reply::Headers(HeadersReply { info, headers })),
        (vec(list_entry(), 0..20), any::<bool>())
            .prop_map(|(tokens, more)| Reply::List(ListReply { tokens, more })),
        (daemon_status(), vec(token_status(), 0..5), any::<bool>())
            .prop_map(|(daemon, tokens, more)| Reply::Status(StatusReply { daemon, tokens, more })),
        (info(), any::<bool>())
            .prop_map(|(info, changed)| Reply::Refreshed(RefreshedReply { info, changed })),
        (outcome(), info()).prop_map(|(outcome, info)| Reply::Rejected(RejectedReply { outcome, info })),
        event().prop_map(Reply::Event),
        (text(), any::<u8>(), any::<u8>(), any::<u32>()).prop_map(
            |(daemon, oldest, newest, highest_request)| {
                Reply::Version(VersionReply { daemon, oldest, newest, highest_request })
            }
        ),
        error().prop_map(Reply::Error),
        explained().prop_map(Reply::Explained),
    ]
}

fn name() -> impl Strategy<Value = TokenName> {
    "[a-zA-Z0-9][a-zA-Z0-9._@:+-]{0,254}".prop_map(|text| text.parse().unwrap())
}

fn text() -> impl Strategy<Value = String> {
    ".{0,300}"
}

fn secret() -> impl Strategy<Value = Secret> {
    text().prop_map(Secret::from)
}

fn header() -> impl Strategy<Value = Header> {
    (text(), secret()).prop_map(|(name, value)| Header { name, value })
}

fn options() -> impl Strategy<Value = CallOptions> {
    any::<(u32, u32)>().prop_map(|(deadline_ms, min_ttl_ms)| CallOptions { deadline_ms, min_ttl_ms })
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp)
}

fn boot_instant() -> impl Strategy<Value = BootInstant> {
    any::<u64>().prop_map(BootInstant)
}

fn fingerprint() -> impl Strategy<Value = Fingerprint> {
    any::<[u8; 8]>().prop_map(Fingerprint)
}

fn state() -> impl Strategy<Value = State> {
    prop::sample::select(&STATES[..])
}

fn class() -> impl Strategy<Value = ErrorClass> {
    prop::sample::select(&CLASSES[..])
}

fn outcome() -> impl Strategy<Value = RejectOutcome> {
    prop::sample::select(&OUTCOMES[..])
}

fn code() -> impl Strategy<Value = ErrorCode> {
    prop::sample::select(&CODES[..])
}

fn info() -> impl Strategy<Value = TokenInfo> {
    (held(), state(), option::of(class()), option::of(time())).prop_map(
        |(held, state, last_error, next_attempt)| {
            let HeldToken { issued_at, expires_at, expires_at_wall, fingerprint } = held;
            TokenInfo { issued_at, expires_at, expires_at_wall, state, last_error, next_attempt, fingerprint }
        },
    )
}

fn held() -> impl Strategy<Value = HeldToken> {
    (boot_instant(), boot_instant(), time(), fingerprint()).prop_map(
        |(issued_at, expires_at, expires_at_wall, fingerprint)| HeldToken {
            issued_at,
            expires_at,
            expires_at_wall,
            fingerprint,
        },
    )
}

fn list_entry() -> impl Strategy<Value = ListEntry> {
    (name(), state()).prop_map(|(name, state)| ListEntry { name, state })
}

fn daemon_status() -> impl Strategy<Value = DaemonStatus> {
    (text(), any::<u32>(), time(), any::<u32>(), option::of(time()), attributes(), counts()).prop_map(
        |(version, pid, started_at, connections, reload_failed_at, attributes, counts)| DaemonStatus {
            version,
            pid,
            started_at,
            connections,
            reload_failed_at,
            attributes,
            counts,
        },
    )
}

fn attributes() -> impl Strategy<Value = Vec<Attribute>> {
    vec((text(), text()).prop_map(|(name, value)| Attribute { name, value }), 0..5)
}

fn counts() -> impl Strategy<Value = Vec<Count>> {
    vec((text(), any::<u64>()).prop_map(|(name, value)| Count { name, value }), 0..5)
}

fn token_status() -> impl Strategy<Value = TokenStatus> {
    let last_error =
        (class(), text(), time()).prop_map(|(class, message, at)| LastError { class, message, at });
    let deviation = (text(), any::<u64>()).prop_map(|(kind, count)| Deviation { kind, count });
    let parts = (name(), text(), state(), option::of(held()), option::of(last_error));
    let numbers = (any::<u32>(), option::of(time()), any::<u64>(), any::<u64>());
    let variants = (any::<u32>(), vec(variant_status(), 0..3));
    let lists = (vec(deviation, 0..5), attributes(), counts(), variants);
    (parts, numbers, lists).prop_map(
        |(
            (name, provider, state, held, last_error),
            (failures, next_attempt, requests, hand_outs),
            (deviations, attributes, counts, (variants_held, variants)),
        )| {
            TokenStatus {
                name,
                provider,
                state,
                held,
                last_error,
                failures,
                next_attempt,
                requests,
                hand_outs,
                deviations,
                attributes,
                counts,
                variants_held,
                variants,
            }
        },
    )
}

fn variant_status() -> impl Strategy<Value = VariantStatus> {
    (variant(), state(), option::of(held()), option::of(class()), option::of(time())).prop_map(
        |(variant, state, held, last_error, next_attempt)| VariantStatus {
            variant,
            state,
            held,
            last_error,
            next_attempt,
        },
    )
}

fn token() -> impl Strategy<Value = TokenReply> {
    (info(), secret(), text(), option::of(text())).prop_map(|(info, token, token_type, scope)| TokenReply {
        info,
        token,
        token_type,
        scope,
    })
}

fn event() -> impl Strategy<Value = EventReply> {
    let condition = (state(), option::of(held()), option::of(class()), option::of(time()));
    (any::<u32>(), name(), condition, option::of(token())).prop_map(
        |(index, name, (state, held, last_error, next_attempt), token)| EventReply {
            index,
            name,
            state,
            held,
            last_error,
            next_attempt,
            token,
        },
    )
}

fn error() -> impl Strategy<Value = ErrorReply> {
    (code(), text(), option::of(class()), option::of(time()), option::of(any::<u64>())).prop_map(
        |(code, message, class, next_attempt, best_ttl_ms)| ErrorReply {
            code,
            message,
            class,
            next_attempt,
            best_ttl_ms,
        },
    )
}

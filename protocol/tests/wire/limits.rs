//! The lists of a request are bounded and repeat nothing, and both sides say so.

use tokend_protocol::{
    BadFrame, BadList, CallOptions, CallerHeader, EncodeError, Fault, Frame, HEADERS_MAX, HeadersRequest,
    List, Request, TERMS_MAX, Variant, WATCHED_TOKENS_MAX, WatchRequest, WatchedToken, decode, encode,
};

use crate::samples;

/// A request with a list, and the bytes of the message before and after this list.
struct Place {
    list: List,
    before: &'static [u8],
    element: fn(usize) -> Vec<u8>,
    after: &'static [u8],
    request: fn(usize) -> Request,
}

const PLACES: [Place; 6] = [
    Place {
        list: List::Scopes,
        before: b"\x01\x01a\0\0\0\0",
        element: text,
        after: &[0; 3],
        request: scopes,
    },
    Place {
        list: List::Resources,
        before: b"\x01\x01a\0\0\0\0\0",
        element: text,
        after: &[0; 2],
        request: resources,
    },
    Place {
        list: List::Audiences,
        before: b"\x01\x01a\0\0\0\0\0\0",
        element: text,
        after: &[0; 1],
        request: audiences,
    },
    Place {
        list: List::SuppliedHeaders,
        before: b"\x01\x01a\0\0",
        element: header,
        after: &[0; 5],
        request: supplied,
    },
    Place {
        list: List::OmittedHeaders,
        before: b"\x01\x01a\0\0\0",
        element: text,
        after: &[0; 4],
        request: omitted,
    },
    Place { list: List::Tokens, before: b"\x06", element: watched, after: &[0; 2], request: watch },
];

fn term(number: usize) -> String {
    format!("t{number:03}")
}

fn text(number: usize) -> Vec<u8> {
    [&[4], term(number).as_bytes()].concat()
}

fn watched(number: usize) -> Vec<u8> {
    [text(number), vec![0; 3]].concat()
}

fn header(number: usize) -> Vec<u8> {
    [text(number), vec![1, b'v']].concat()
}

fn terms(count: usize) -> Vec<String> {
    (0..count).map(term).collect()
}

fn headers(change: impl FnOnce(&mut HeadersRequest)) -> Request {
    let mut request = HeadersRequest {
        name: samples::name("a"),
        options: CallOptions { deadline_ms: 0, min_ttl_ms: 0 },
        supplied: Vec::new(),
        omitted: Vec::new(),
        variant: Variant::default(),
    };
    change(&mut request);
    Request::Headers(request)
}

fn scopes(count: usize) -> Request {
    headers(|request| request.variant.scope = terms(count))
}

fn resources(count: usize) -> Request {
    headers(|request| request.variant.resource = terms(count))
}

fn audiences(count: usize) -> Request {
    headers(|request| request.variant.audience = terms(count))
}

fn supplied(count: usize) -> Request {
    let header = |name| CallerHeader { name, value: "v".to_owned() };
    headers(|request| request.supplied = terms(count).into_iter().map(header).collect())
}

fn omitted(count: usize) -> Request {
    headers(|request| request.omitted = terms(count))
}

fn watch(count: usize) -> Request {
    let watched = |term: String| WatchedToken { name: samples::name(&term), variant: Variant::default() };
    Request::Watch(WatchRequest {
        tokens: terms(count).into_iter().map(watched).collect(),
        with_tokens: false,
    })
}

fn encoded(request: Request) -> Result<Vec<u8>, EncodeError> {
    let mut wire = Vec::new();
    encode(&Frame { id: 1, message: request }, &mut wire)?;
    Ok(wire[4..].to_vec())
}

impl Place {
    /// The body of a request with this list, whatever the limits are.
    fn body(&self, promised: usize, elements: impl Iterator<Item = usize>) -> Vec<u8> {
        let length = u8::try_from(promised).ok().filter(|length| *length < 251).map_or_else(
            || [&[0xfb][..], &u16::try_from(promised).unwrap().to_le_bytes()].concat(),
            |length| vec![length],
        );
        let elements: Vec<u8> = elements.flat_map(self.element).collect();
        [&[1, 0, 0, 0, 1], self.before, &length, &elements, self.after].concat()
    }
}

#[test]
fn a_full_list_passes_and_one_element_more_is_refused_by_both_sides() {
    for place in PLACES {
        let (list, max) = (place.list, place.list.max());
        let full = encoded((place.request)(max)).unwrap();
        assert_eq!(full, place.body(max, 0..max), "{list}");
        assert!(decode::<Request>(&full).is_ok(), "{list}");
        let fault = BadList::TooLong(list);
        assert_eq!(encoded((place.request)(max + 1)), Err(EncodeError::List(fault)), "{list}");
        let refused = Err(BadFrame { id: 1, fault: Fault::List(fault) });
        assert_eq!(decode::<Request>(&place.body(max + 1, 0..=max)), refused, "{list}");
        assert_eq!(
            decode::<Request>(&place.body(9999, 0..0)),
            refused,
            "{list}: refused by its length alone"
        );
        assert!(fault.to_string().contains(&format!("at most {max} {list}")), "{fault}");
    }
}

#[test]
fn a_repeated_element_is_refused_by_both_sides() {
    for place in PLACES {
        let list = place.list;
        let refused = Err(BadFrame { id: 1, fault: Fault::List(BadList::Repeated(list)) });
        assert_eq!(decode::<Request>(&place.body(3, [7, 8, 7].into_iter())), refused, "{list}");
    }
    let mut variant = Variant { scope: vec!["a".into(), "b".into()], ..Variant::default() };
    variant.audience = vec!["a".into(), "a".into()];
    let twice = headers(|request| request.variant = variant);
    assert_eq!(encoded(twice), Err(EncodeError::List(BadList::Repeated(List::Audiences))));
}

#[test]
fn variants_of_one_token_are_different_tokens_to_watch() {
    let watched = |scope: &str| {
        let variant = Variant { scope: vec![scope.to_owned()], ..Variant::default() };
        WatchedToken { name: samples::name("a"), variant }
    };
    let watch = |scopes: [&str; 2]| {
        encoded(Request::Watch(WatchRequest { tokens: scopes.map(watched).to_vec(), with_tokens: false }))
    };
    assert!(watch(["read", "write"]).is_ok());
    assert_eq!(watch(["read", "read"]), Err(EncodeError::List(BadList::Repeated(List::Tokens))));
}

#[test]
fn headers_that_differ_only_in_case_are_the_same() {
    let header = |name: &str| CallerHeader { name: name.into(), value: "v".into() };
    let twice = headers(|request| request.supplied = vec![header("X-Key"), header("x-key")]);
    assert_eq!(encoded(twice), Err(EncodeError::List(BadList::Repeated(List::SuppliedHeaders))));
    let scopes = headers(|request| request.variant.scope = vec!["Read".into(), "read".into()]);
    assert!(encoded(scopes).is_ok(), "scopes are case-sensitive");
}

#[test]
fn the_limits_are_those_of_the_specification() {
    assert_eq!((TERMS_MAX, HEADERS_MAX, WATCHED_TOKENS_MAX), (64, 64, 256));
}

//! The limits of messages, in one place. Decoding checks them before it allocates; encoding checks them too, so that a
//! caller gets the error before anything is sent.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use crate::{CallerHeader, Request, Variant, WatchedToken};

/// The largest body of a request, in bytes. A request is a name and a few headers.
pub const REQUEST_MAX: usize = 16 * 1024;

/// The largest body of a reply, in bytes. A token of 64 KiB and a page of a status fit.
pub const REPLY_MAX: usize = 256 * 1024;

/// The longest name of a token, in bytes: as long as a file name may be (`NAME_MAX`).
pub const TOKEN_NAME_MAX: usize = 255;

/// The most scopes in a request, the most resources, and the most audiences.
pub const TERMS_MAX: usize = 64;

/// The most headers that a request supplies, and the most that it leaves out.
pub const HEADERS_MAX: usize = 64;

/// The most tokens in one Watch.
pub const WATCHED_TOKENS_MAX: usize = 256;

/// A list in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// [`Variant::scope`]
    Scopes,
    /// [`Variant::resource`]
    Resources,
    /// [`Variant::audience`]
    Audiences,
    /// [`HeadersRequest::supplied`](crate::HeadersRequest::supplied)
    SuppliedHeaders,
    /// [`HeadersRequest::omitted`](crate::HeadersRequest::omitted)
    OmittedHeaders,
    /// [`WatchRequest::tokens`](crate::WatchRequest::tokens)
    Tokens,
}

/// Why a list in a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadList {
    /// The list has more elements than [`List::max`].
    #[error("a request has at most {max} {0}: send fewer", max = .0.max())]
    TooLong(List),
    /// The list has the same element twice. Headers are the same if their names differ only in case.
    #[error("one of the {0} is in the request twice: send each of them once")]
    Repeated(List),
}

impl List {
    const ALL: [Self; 6] = [
        Self::Scopes,
        Self::Resources,
        Self::Audiences,
        Self::SuppliedHeaders,
        Self::OmittedHeaders,
        Self::Tokens,
    ];

    /// The most elements of the list.
    pub const fn max(self) -> usize {
        match self {
            Self::Scopes | Self::Resources | Self::Audiences => TERMS_MAX,
            Self::SuppliedHeaders | Self::OmittedHeaders => HEADERS_MAX,
            Self::Tokens => WATCHED_TOKENS_MAX,
        }
    }

    fn check<T: Ord>(self, elements: impl ExactSizeIterator<Item = T>) -> Result<(), BadList> {
        if elements.len() > self.max() {
            return Err(BadList::TooLong(self));
        }
        let mut elements: Vec<T> = elements.collect();
        elements.sort_unstable();
        let is_repeated = elements.windows(2).any(|pair| matches!(pair, [one, next] if one == next));
        if is_repeated { Err(BadList::Repeated(self)) } else { Ok(()) }
    }

    fn read<'de, T: Deserialize<'de>, D: Deserializer<'de>>(self, encoded: D) -> Result<Vec<T>, D::Error> {
        encoded.deserialize_seq(Bounded(self, PhantomData))
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scopes => "scopes",
            Self::Resources => "resources",
            Self::Audiences => "audiences",
            Self::SuppliedHeaders => "supplied headers",
            Self::OmittedHeaders => "omitted headers",
            Self::Tokens => "tokens",
        })
    }
}

impl BadList {
    /// The fault that ended the decoding of a request, from its text: serde passes on nothing else.
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        List::ALL.into_iter().map(Self::TooLong).find(|fault| fault.to_string() == text)
    }
}

impl Request {
    /// The number of elements of all lists of the request, which says how much work it is.
    pub fn elements(&self) -> usize {
        match self {
            Self::Get(request) => request.variant.elements(),
            Self::Headers(request) => {
                request.supplied.len() + request.omitted.len() + request.variant.elements()
            }
            Self::Refresh(request) => request.variant.elements(),
            Self::Reject(request) => request.variant.elements(),
            Self::Explain(request) => request.variant.elements(),
            Self::Watch(request) => {
                let of_variants = request.tokens.iter().map(|token| token.variant.elements());
                request.tokens.len() + of_variants.sum::<usize>()
            }
            Self::List(_) | Self::Status(_) | Self::Version => 0,
        }
    }

    pub(crate) fn check_lists(&self) -> Result<(), BadList> {
        match self {
            Self::Get(request) => request.variant.check(),
            Self::Headers(request) => {
                let supplied = request.supplied.iter().map(|header| header.name.to_ascii_lowercase());
                List::SuppliedHeaders.check(supplied)?;
                List::OmittedHeaders.check(request.omitted.iter().map(|name| name.to_ascii_lowercase()))?;
                request.variant.check()
            }
            Self::Refresh(request) => request.variant.check(),
            Self::Reject(request) => request.variant.check(),
            Self::Explain(request) => request.variant.check(),
            Self::Watch(request) => {
                request.tokens.iter().try_for_each(|token| token.variant.check())?;
                let tokens = request.tokens.iter().map(|WatchedToken { name, variant }| {
                    (name, &variant.scope, &variant.resource, &variant.audience)
                });
                List::Tokens.check(tokens)
            }
            Self::List(_) | Self::Status(_) | Self::Version => Ok(()),
        }
    }
}

impl Variant {
    fn elements(&self) -> usize {
        self.scope.len() + self.resource.len() + self.audience.len()
    }

    fn check(&self) -> Result<(), BadList> {
        List::Scopes.check(self.scope.iter())?;
        List::Resources.check(self.resource.iter())?;
        List::Audiences.check(self.audience.iter())
    }
}

/// Reads a list, and refuses one that is too long before anything is allocated for it.
struct Bounded<T>(List, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {} {}", self.0.max(), self.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut encoded: A) -> Result<Vec<T>, A::Error> {
        let too_long = || A::Error::custom(BadList::TooLong(self.0));
        let promised = encoded.size_hint().unwrap_or(0);
        if promised > self.0.max() {
            return Err(too_long());
        }
        let mut elements = Vec::with_capacity(promised);
        while let Some(element) = encoded.next_element()? {
            elements.push(element);
            if elements.len() > self.0.max() {
                return Err(too_long());
            }
        }
        Ok(elements)
    }
}

/// The variant of a request. The variants of a status are what the configuration makes them, without a limit.
#[derive(Deserialize)]
#[serde(remote = "Variant")]
pub(crate) struct BoundedVariant {
    #[serde(deserialize_with = "scopes")]
    scope: Vec<String>,
    #[serde(deserialize_with = "resources")]
    resource: Vec<String>,
    #[serde(deserialize_with = "audiences")]
    audience: Vec<String>,
}

fn scopes<'de, D: Deserializer<'de>>(encoded: D) -> Result<Vec<String>, D::Error> {
    List::Scopes.read(encoded)
}

fn resources<'de, D: Deserializer<'de>>(encoded: D) -> Result<Vec<String>, D::Error> {
    List::Resources.read(encoded)
}

fn audiences<'de, D: Deserializer<'de>>(encoded: D) -> Result<Vec<String>, D::Error> {
    List::Audiences.read(encoded)
}

pub(crate) fn supplied<'de, D: Deserializer<'de>>(encoded: D) -> Result<Vec<CallerHeader>, D::Error> {
    List::SuppliedHeaders.read(encoded)
}

pub(crate) fn omitted<'de, D: Deserializer<'de>>(encoded: D) -> Result<Vec<String>, D::Error> {
    List::OmittedHeaders.read(encoded)
}

pub(crate) fn watched<'de, D: Deserializer<'de>>(encoded: D) -> Result<Vec<WatchedToken>, D::Error> {
    List::Tokens.read(encoded)
}

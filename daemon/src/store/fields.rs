//! How a record is written: numbered fields, each with its length, so that a release can add one and another
//! release that does not know it passes it over.

use std::time::Duration;

use zeroize::Zeroizing;

use super::layout::Bytes;
use crate::clock::Instant;

/// What a field says. A number is given once and never again to anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    WrittenAt = 1,
    WrittenWall = 2,
    WrittenBoot = 3,
    Token = 10,
    SentAt = 11,
    Lifetime = 12,
    LongestLife = 13,
    Jitter = 14,
    TokenType = 15,
    Scope = 16,
    Failures = 20,
    Class = 21,
    Message = 22,
    Detail = 23,
    FailedAt = 24,
    NextAttempt = 25,
    LastUsed = 30,
    UnusedRenewals = 31,
    VariantOf = 32,
    Key = 33,
    CutOff = 34,
    QuietUntil = 40,
    TryAt = 41,
    FingerprintKey = 50,
}

/// Bytes of a field before its value.
const HEAD: usize = 5;

/// A record that is being written. Nothing of it stays behind in memory: its room is made at the beginning.
pub(super) struct Writer(Bytes);

impl Writer {
    /// With room for so many bytes of texts and a few numbers.
    pub(super) fn with_room_for(texts: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(texts + 512)))
    }

    pub(super) fn put(&mut self, tag: Tag, value: &[u8]) {
        self.0.push(tag as u8);
        self.0.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend_from_slice(value);
    }

    pub(super) fn put_instant(&mut self, tag: Tag, value: Instant) {
        self.put(tag, &value.nanos_since_boot().to_le_bytes());
    }

    pub(super) fn put_span(&mut self, tag: Tag, value: Duration) {
        self.put(tag, &u64::try_from(value.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
    }

    pub(super) fn put_count(&mut self, tag: Tag, value: u32) {
        self.put(tag, &value.to_le_bytes());
    }

    pub(super) fn finish(self) -> Bytes {
        self.0
    }
}

/// The fields of a record that was found.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Those of a record, if it is made of fields from beginning to end.
    pub(super) fn of(record: &'a [u8]) -> Option<Self> {
        let mut rest = record;
        while !rest.is_empty() {
            (_, _, rest) = field(rest)?;
        }
        Some(Self(record))
    }

    /// The value of a field; of the first where there are several.
    pub(super) fn find(self, tag: Tag) -> Option<&'a [u8]> {
        let mut rest = self.0;
        while let Some((found, value, next)) = field(rest) {
            if found == tag as u8 {
                return Some(value);
            }
            rest = next;
        }
        None
    }

    pub(super) fn array<const N: usize>(self, tag: Tag) -> Option<[u8; N]> {
        self.find(tag)?.try_into().ok()
    }

    pub(super) fn text(self, tag: Tag) -> Option<&'a str> {
        str::from_utf8(self.find(tag)?).ok()
    }

    pub(super) fn instant(self, tag: Tag) -> Option<Instant> {
        self.array(tag).map(i64::from_le_bytes).map(Instant::from_nanos_since_boot)
    }

    pub(super) fn span(self, tag: Tag) -> Option<Duration> {
        self.array(tag).map(u64::from_le_bytes).map(Duration::from_nanos)
    }

    pub(super) fn count(self, tag: Tag) -> Option<u32> {
        self.array(tag).map(u32::from_le_bytes)
    }
}

/// The first field, and what follows it.
fn field(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([tag, length @ ..], rest) = bytes.split_first_chunk::<HEAD>()?;
    let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    Some((*tag, value, rest))
}

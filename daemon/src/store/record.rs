//! What is kept of a credential and of an issuer, and its bytes.
//!
//! As much as a restart must not change: the token with its life, and the part of its schedule that chance or the
//! past decided, so that no renewal becomes earlier and no back-off shorter. What only counts for people, such as
//! how many requests were sent, begins anew.

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{ErrorClass, Secret};
use zeroize::Zeroizing;

use super::fields::{Fields, Tag, Writer};
use super::key::Key;
use super::layout::Bytes;
use super::moment::{Moment, Uptime};
use crate::clock::{Instant, Validity};

/// The state of a credential.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Its token, which may have expired.
    pub token: Option<KeptToken>,
    /// Why it was not renewed, since it was the last time.
    pub failure: Option<KeptFailure>,
    /// When somebody last used it.
    pub last_used: Option<Instant>,
    /// Renewals in a row between which nobody did.
    pub unused_renewals: u32,
    /// Token requests in a row during which the process ended. One that is under way is counted.
    pub interrupted_requests: u32,
    /// The credential that it is a variant of.
    pub variant_of: Option<Key>,
}

/// A token and what its schedule is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptToken {
    /// The access token.
    pub secret: Secret,
    /// From when to when it is valid.
    pub life: Validity,
    /// The longest lifetime with which the provider gave it.
    pub longest_life: Duration,
    /// The jitter of its renewal.
    pub jitter: f64,
    /// The token type for the `Authorization` header.
    pub token_type: Arc<str>,
    /// The granted scopes, where the provider named them.
    pub scope: Option<Arc<str>>,
}

/// Attempts that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptFailure {
    /// How many in a row.
    pub failures: u32,
    /// The last of them.
    pub failed: Failed,
    /// When the next is due.
    pub next_attempt: Option<Instant>,
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What can be done about it.
    pub class: ErrorClass,
    /// What happened, in words fit for a caller.
    pub message: Arc<str>,
    /// More for an operator alone.
    pub detail: Option<Arc<str>>,
    /// When.
    pub at: Instant,
}

impl Failed {
    /// Whether an operator has to do something before it can end.
    pub fn needs_operator(&self) -> bool {
        matches!(self.class, ErrorClass::Refused | ErrorClass::Secret)
    }
}

/// The condition of an issuer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottleRecord {
    /// Until when it asked for no requests.
    pub quiet_until: Option<Instant>,
    /// Failures in a row.
    pub failures: u32,
    /// What the last of them was.
    pub class: Option<ErrorClass>,
    /// When it may be tried again, while it is down.
    pub try_at: Option<Instant>,
}

impl Record {
    /// Its bytes, written at a moment under a key.
    pub fn encode(&self, key: &Key, written: &Moment) -> Bytes {
        let words =
            |failed: &Failed| failed.message.len() + failed.detail.as_ref().map_or(0, |text| text.len());
        let scope = |token: &KeptToken| token.scope.as_ref().map_or(0, |scope| scope.len());
        let texts = self.token.as_ref().map_or(0, |token| token.secret.expose().len() + scope(token))
            + self.failure.as_ref().map_or(0, |failure| words(&failure.failed));
        let mut writer = Writer::with_room_for(texts);
        put_moment(&mut writer, written);
        writer.put(Tag::Key, key.as_bytes());
        if let Some(KeptToken { secret, life, longest_life, jitter, token_type, scope }) = &self.token {
            writer.put(Tag::Token, secret.expose().as_bytes());
            writer.put_instant(Tag::SentAt, life.sent_at);
            writer.put_span(Tag::Lifetime, life.lifetime);
            writer.put_span(Tag::LongestLife, *longest_life);
            writer.put(Tag::TokenType, token_type.as_bytes());
            if let Some(scope) = scope {
                writer.put(Tag::Scope, scope.as_bytes());
            }
            writer.put(Tag::Jitter, &jitter.to_le_bytes());
        }
        if let Some(failure) = &self.failure {
            put_failure(&mut writer, failure);
        }
        if let Some(at) = self.last_used {
            writer.put_instant(Tag::LastUsed, at);
        }
        writer.put_count(Tag::UnusedRenewals, self.unused_renewals);
        writer.put_count(Tag::CutOff, self.interrupted_requests);
        if let Some(base) = &self.variant_of {
            writer.put(Tag::VariantOf, base.as_bytes());
        }
        writer.finish()
    }

    /// The record in these bytes, if it is one of this key, its points in time as they are now.
    pub fn decode(bytes: &[u8], key: &Key, now: &Moment, uptime: Uptime) -> Option<Self> {
        let fields = Fields::of(bytes)?;
        if key_of(bytes)? != *key {
            return None;
        }
        let written = moment(fields)?;
        let rebase = |point| written.rebase(point, now, uptime);
        Some(Self {
            token: token(fields, &written, rebase),
            failure: failure(fields, rebase),
            last_used: fields.instant(Tag::LastUsed).map(rebase),
            unused_renewals: fields.count(Tag::UnusedRenewals).unwrap_or_default(),
            interrupted_requests: fields.count(Tag::CutOff).unwrap_or_default(),
            variant_of: fields.array(Tag::VariantOf).map(Key::from_bytes),
        })
    }

    /// The record without a token that has expired.
    #[must_use]
    pub fn as_of(mut self, now: Instant) -> Self {
        self.token = self.token.filter(|token| token.life.is_usable(now, Duration::ZERO));
        self
    }

    /// Whether it still matters: by its token, or by a failure after which it is not time yet.
    pub fn says_anything(&self, now: Instant) -> bool {
        let waits = |failure: &KeptFailure| failure.next_attempt.is_some_and(|at| at > now);
        self.is_usable(now) || self.failure.as_ref().is_some_and(waits)
    }

    /// Whether a valid token is in it.
    pub fn is_usable(&self, now: Instant) -> bool {
        self.token.as_ref().is_some_and(|token| token.life.is_usable(now, Duration::ZERO))
    }
}

impl ThrottleRecord {
    /// Its bytes, written at a moment.
    pub fn encode(&self, written: &Moment) -> Bytes {
        let mut writer = Writer::with_room_for(0);
        put_moment(&mut writer, written);
        writer.put_count(Tag::Failures, self.failures);
        if let Some(class) = self.class {
            writer.put(Tag::Class, class.as_str().as_bytes());
        }
        for (tag, point) in [(Tag::QuietUntil, self.quiet_until), (Tag::TryAt, self.try_at)] {
            if let Some(point) = point {
                writer.put_instant(tag, point);
            }
        }
        writer.finish()
    }

    /// The condition in these bytes.
    pub fn decode(bytes: &[u8], now: &Moment, uptime: Uptime) -> Option<Self> {
        let fields = Fields::of(bytes)?;
        let written = moment(fields)?;
        let rebase = |point| written.rebase(point, now, uptime);
        Some(Self {
            quiet_until: fields.instant(Tag::QuietUntil).map(rebase),
            failures: fields.count(Tag::Failures).unwrap_or_default(),
            class: fields.text(Tag::Class).and_then(class),
            try_at: fields.instant(Tag::TryAt).map(rebase),
        })
    }
}

/// The key that a record was written under.
pub fn key_of(record: &[u8]) -> Option<Key> {
    Fields::of(record)?.array(Tag::Key).map(Key::from_bytes)
}

/// The bytes of a record that says nothing but when it was written.
pub fn encode_mark(written: &Moment) -> Bytes {
    let mut writer = Writer::with_room_for(0);
    put_moment(&mut writer, written);
    writer.finish()
}

/// The bytes of the record that has the key of fingerprints.
pub fn encode_fingerprint_key(secret: &[u8; 32], key: &Key, written: &Moment) -> Bytes {
    let mut writer = Writer::with_room_for(0);
    put_moment(&mut writer, written);
    writer.put(Tag::Key, key.as_bytes());
    writer.put(Tag::FingerprintKey, secret);
    writer.finish()
}

/// The key of fingerprints in these bytes.
pub fn decode_fingerprint_key(bytes: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    Fields::of(bytes)?.array(Tag::FingerprintKey).map(Zeroizing::new)
}

fn put_moment(writer: &mut Writer, written: &Moment) {
    writer.put_instant(Tag::WrittenAt, written.at);
    writer.put_span(Tag::WrittenWall, written.wall);
    if let Some(boot) = &written.boot {
        writer.put(Tag::WrittenBoot, boot);
    }
}

fn moment(fields: Fields<'_>) -> Option<Moment> {
    Some(Moment {
        at: fields.instant(Tag::WrittenAt)?,
        wall: fields.span(Tag::WrittenWall)?,
        boot: fields.array(Tag::WrittenBoot),
    })
}

fn put_failure(writer: &mut Writer, KeptFailure { failures, failed, next_attempt }: &KeptFailure) {
    writer.put_count(Tag::Failures, *failures);
    writer.put(Tag::Class, failed.class.as_str().as_bytes());
    writer.put(Tag::Message, failed.message.as_bytes());
    if let Some(detail) = &failed.detail {
        writer.put(Tag::Detail, detail.as_bytes());
    }
    writer.put_instant(Tag::FailedAt, failed.at);
    if let Some(at) = next_attempt {
        writer.put_instant(Tag::NextAttempt, *at);
    }
}

/// A token that was asked for after it was written down is none that this program wrote, and would live too long.
fn token(fields: Fields<'_>, written: &Moment, rebase: impl Fn(Instant) -> Instant) -> Option<KeptToken> {
    let life = Validity { sent_at: fields.instant(Tag::SentAt)?, lifetime: fields.span(Tag::Lifetime)? };
    if life.sent_at > written.at {
        return None;
    }
    Some(KeptToken {
        secret: Secret::from(Zeroizing::new(fields.text(Tag::Token)?.to_owned())),
        life: Validity { sent_at: rebase(life.sent_at), ..life },
        longest_life: fields.span(Tag::LongestLife).unwrap_or(life.lifetime),
        jitter: f64::from_le_bytes(fields.array(Tag::Jitter)?),
        token_type: fields.text(Tag::TokenType).unwrap_or("Bearer").into(),
        scope: fields.text(Tag::Scope).map(Into::into),
    })
}

fn failure(fields: Fields<'_>, rebase: impl Fn(Instant) -> Instant) -> Option<KeptFailure> {
    Some(KeptFailure {
        failures: fields.count(Tag::Failures)?,
        failed: Failed {
            class: class(fields.text(Tag::Class)?)?,
            message: fields.text(Tag::Message)?.into(),
            detail: fields.text(Tag::Detail).map(Into::into),
            at: rebase(fields.instant(Tag::FailedAt)?),
        },
        next_attempt: fields.instant(Tag::NextAttempt).map(rebase),
    })
}

fn class(word: &str) -> Option<ErrorClass> {
    use ErrorClass::{Internal, Malformed, Refused, Secret, Server, Throttled, Timeout, Tls, Unreachable};
    [Unreachable, Timeout, Tls, Throttled, Server, Malformed, Refused, Secret, Internal]
        .into_iter()
        .find(|class| class.as_str() == word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: Key = Key::from_bytes([7; 32]);

    fn at(seconds: u64) -> Instant {
        Instant::at(Duration::from_secs(seconds))
    }

    fn moment_at(seconds: u64) -> Moment {
        Moment { at: at(seconds), wall: Duration::from_secs(1_700_000_000 + seconds), boot: Some([b'x'; 36]) }
    }

    fn full() -> Record {
        let failed = Failed {
            class: ErrorClass::Throttled,
            message: "asked for fewer requests".into(),
            detail: Some("slow down".into()),
            at: at(190),
        };
        Record {
            token: Some(KeptToken {
                secret: Secret::from("a token".to_owned()),
                life: Validity { sent_at: at(100), lifetime: Duration::from_secs(3_600) },
                longest_life: Duration::from_secs(7_200),
                jitter: 0.25,
                token_type: "Bearer".into(),
                scope: Some("aisp pisp".into()),
            }),
            failure: Some(KeptFailure { failures: 3, failed, next_attempt: Some(at(400)) }),
            last_used: Some(at(150)),
            unused_renewals: 1,
            interrupted_requests: 2,
            variant_of: Some(Key::from_bytes([9; 32])),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let now = moment_at(200);
        for record in [full(), Record::default(), Record { failure: None, ..full() }] {
            let bytes = record.encode(&KEY, &now);
            assert_eq!(Record::decode(&bytes, &KEY, &moment_at(300), Uptime::SameBoot), Some(record));
        }
        let issuer = ThrottleRecord {
            quiet_until: Some(at(900)),
            failures: 4,
            class: Some(ErrorClass::Server),
            try_at: Some(at(300)),
        };
        for issuer in [issuer, ThrottleRecord::default()] {
            assert_eq!(ThrottleRecord::decode(&issuer.encode(&now), &now, Uptime::SameBoot), Some(issuer));
        }
    }

    #[test]
    fn a_token_from_the_future_is_none() {
        let bytes = full().encode(&KEY, &moment_at(99));
        let read = Record::decode(&bytes, &KEY, &moment_at(99), Uptime::SameBoot).unwrap();
        assert_eq!(read, Record { token: None, ..full() });
    }

    #[test]
    fn after_a_reboot_all_points_have_moved_together() {
        let bytes = full().encode(&KEY, &moment_at(200));
        let now = Moment { at: at(20), wall: Duration::from_secs(1_700_000_260), boot: Some([b'y'; 36]) };
        let carried = Record::decode(&bytes, &KEY, &now, Uptime::Unknown).unwrap();
        let (token, failure) = (carried.token.unwrap(), carried.failure.unwrap());
        assert_eq!(token.life.remaining(now.at), Duration::from_secs(3_600 - 160));
        assert_eq!(token.life.lifetime, Duration::from_secs(3_600), "the schedule is made of the whole life");
        assert_eq!(failure.next_attempt, Some(at(160)));
    }

    #[test]
    fn a_record_of_another_key_is_not_read() {
        let now = moment_at(200);
        let bytes = full().encode(&KEY, &now);
        assert_eq!(Record::decode(&bytes, &Key::from_bytes([8; 32]), &now, Uptime::SameBoot), None);
    }

    #[test]
    fn a_field_that_a_later_release_adds_is_passed_over() {
        let now = moment_at(200);
        let mut bytes = full().encode(&KEY, &now);
        bytes.extend_from_slice(&[200, 3, 0, 0, 0, 1, 2, 3]);
        assert_eq!(Record::decode(&bytes, &KEY, &now, Uptime::SameBoot), Some(full()));
    }

    proptest! {
        #[test]
        fn a_part_of_a_record_is_never_taken_for_more_than_it_says(cut in 0_usize..400) {
            let now = moment_at(200);
            let mut bytes = full().encode(&KEY, &now);
            bytes.truncate(cut);
            if let Some(read) = Record::decode(&bytes, &KEY, &now, Uptime::SameBoot) {
                prop_assert!(read.token.is_none() || read.token == full().token);
                prop_assert!(read.failure.is_none() || read.failure.unwrap().failures == 3);
            }
        }

        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&bytes, &KEY, &moment_at(200), Uptime::Unknown);
            let _ = ThrottleRecord::decode(&bytes, &moment_at(200), Uptime::Unknown);
        }
    }
}

//! The stored records of credentials and throttles, their keys, and the handles for storing them.
//!
//! They hold what a restart must preserve, so that no renewal comes earlier and no back-off gets shorter. Counters
//! for the status are not stored. The format is JSON, and unknown fields are ignored. A field must keep its name and
//! its type. An added one needs a default.

use std::sync::Arc;
use std::time::Duration;

use ring::digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokend_protocol::{ErrorClass, Fingerprint, Secret};

use super::Store;
use crate::clock::{Instant, Validity};
use crate::config::CredentialSettings;

pub const KEY_LENGTH: usize = 32;

/// The key under which a record is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key(pub [u8; KEY_LENGTH]);

impl Key {
    /// The key of a credential: a hash of its settings as JSON.
    ///
    /// Equal settings must have equal keys in every release, or an upgrade would lose every token. So no serialized
    /// setting may change its name, place or shape. An added one is skipped where it means what earlier releases did.
    pub fn of_credential(settings: &CredentialSettings) -> Self {
        Self::hash(&("credential", settings))
    }

    pub fn of_throttle(name: &str) -> Self {
        // The word must stay: the keys of stored records depend on it.
        Self::hash(&("issuer", name))
    }

    /// The key of a singleton record.
    pub fn named(name: &str) -> Self {
        Self::hash(&("name", name))
    }

    fn hash(value: &impl Serialize) -> Self {
        // Fails only for a path that is not UTF-8, and a configuration has none.
        let json = serde_json::to_vec(value).unwrap_or_default();
        let hash = digest::digest(&digest::SHA256, &json);
        Self(hash.as_ref().first_chunk().copied().unwrap_or_default())
    }
}

/// The state of a credential.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    pub token: Option<Token>,
    pub failure: Option<FailureRecord>,
    /// When a caller last used it.
    pub last_used: Option<Instant>,
    /// Renewals in a row without a use in between.
    pub unused_renewals: u32,
    /// Token requests in a row that the end of the process interrupted. The one that is under way counts.
    pub interrupted_requests: u32,
    /// The credential that it is a variant of.
    pub variant_of: Option<Key>,
}

/// A token and what its schedule depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Token {
    #[serde(serialize_with = "write_secret", deserialize_with = "read_secret")]
    pub secret: Secret,
    /// Names the token in logs and replies. Not stored: zero until the engine computes it again.
    #[serde(skip, default = "no_fingerprint")]
    pub fingerprint: Fingerprint,
    pub validity: Validity,
    /// The longest lifetime that the provider stated for this token: some providers return the same token again with
    /// what is left of it.
    pub longest_lifetime: Duration,
    /// The jitter of its renewal, in `0..1`. Rolled once, because rolling at each check would favour early renewals.
    pub jitter: f64,
    /// The granted scopes, separated by spaces, where the provider named them.
    pub scope: Option<Arc<str>>,
}

/// Renewals in a row that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureRecord {
    pub failures: u32,
    pub failed: Failed,
    pub next_attempt: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub class: ErrorClass,
    /// The message for callers.
    pub message: Arc<str>,
    /// Further details for operators only.
    pub detail: Option<Arc<str>>,
    pub at: Instant,
    /// Whether it lasts until an operator changes something.
    #[serde(default)]
    pub needs_operator: bool,
}

/// The state of the throttle of a client, or of the circuit breaker of a token endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThrottleRecord {
    /// The end of the client's `Retry-After`.
    pub quiet_until: Option<Instant>,
    /// Failures in a row.
    pub failures: u32,
    pub class: Option<ErrorClass>,
    /// When the endpoint is probed again, while the breaker is open.
    pub try_at: Option<Instant>,
}

/// A moment on the clock that lifetimes count on, and in wall time since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub at: Instant,
    pub wall: Duration,
}

/// A record as it is written.
#[derive(Serialize, Deserialize)]
struct Written<T> {
    at: Moment,
    record: T,
}

impl Failed {
    /// A failure without details.
    pub fn new(class: ErrorClass, message: impl Into<Arc<str>>, at: Instant) -> Self {
        let needs_operator = matches!(class, ErrorClass::Refused | ErrorClass::Secret);
        Self { class, message: message.into(), detail: None, at, needs_operator }
    }
}

impl Moment {
    /// Converts an instant that was written at `self` to the clock as it is at `now`. The host may have rebooted since
    /// if the record was on the disk, not in memory.
    ///
    /// Across a reboot only the wall clock tells how much time passed, and it may have been set. No token gets more life
    /// than it had left when it was written.
    fn rebase(self, instant: Instant, now: Self, may_have_rebooted: bool) -> Instant {
        // A record that was written later than now is from another boot, even if it was in memory.
        if !may_have_rebooted && self.at <= now.at {
            return instant;
        }
        // Without a reboot exactly `now.at - self.at` has passed; after a reboot at least that, if it is positive.
        let elapsed = now.wall.saturating_sub(self.wall).max(now.at.since(self.at));
        now.at.before(elapsed).after(instant.since(self.at)).before(self.at.since(instant))
    }
}

impl Record {
    /// Decodes a record, with its instants converted to `now`. An expired token is left out.
    pub fn decode(bytes: &[u8], now: Moment, may_have_rebooted: bool) -> Option<Self> {
        let Written { at: written, record: mut this }: Written<Self> = serde_json::from_slice(bytes).ok()?;
        let rebase = |instant: &mut Instant| *instant = written.rebase(*instant, now, may_have_rebooted);
        // A token whose request is later than its record is corrupt, and would be valid for too long.
        this.token = this.token.filter(|token| token.validity.sent_at <= written.at);
        if let Some(token) = &mut this.token {
            rebase(&mut token.validity.sent_at);
        }
        if let Some(failure) = &mut this.failure {
            rebase(&mut failure.failed.at);
            failure.next_attempt.as_mut().map(rebase);
        }
        this.last_used.as_mut().map(rebase);
        this.token = this.token.filter(|token| token.validity.is_usable(now.at, Duration::ZERO));
        Some(this)
    }
}

impl ThrottleRecord {
    pub fn decode(bytes: &[u8], now: Moment, may_have_rebooted: bool) -> Option<Self> {
        let Written { at: written, record }: Written<Self> = serde_json::from_slice(bytes).ok()?;
        let rebase =
            |instant: Option<Instant>| instant.map(|instant| written.rebase(instant, now, may_have_rebooted));
        Some(Self { quiet_until: rebase(record.quiet_until), try_at: rebase(record.try_at), ..record })
    }
}

/// The bytes of any record, written at this moment.
pub fn encode(record: &impl Serialize, at: Moment) -> Vec<u8> {
    // Records consist of numbers, texts and options, so that this does not fail.
    serde_json::to_vec(&Written { at, record }).unwrap_or_default()
}

/// A record without instants.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice::<Written<T>>(bytes).ok().map(|written| written.record)
}

/// Handle for persisting the state of one credential, with the key of its base token. The default one stores nothing.
#[derive(Clone, Debug, Default)]
pub struct RecordWriter(pub(super) Option<(Arc<Store>, Key, Option<Box<Key>>)>);

/// Persists the state of one throttle. The default one stores nothing.
#[derive(Clone, Debug, Default)]
pub struct ThrottleWriter(pub(super) Option<(Arc<Store>, Key)>);

impl RecordWriter {
    /// Stores the state after a success: in memory at once, then on the disk, for which it waits a bounded time.
    pub async fn renewed(&self, record: Record) {
        let written = self.put_in_memory(record);
        if let (Some((store, key, _)), Some(bytes)) = (&self.0, written)
            && let Some(files) = &store.files
        {
            files.write(*key, bytes).await;
        }
    }

    /// Stores the state before a token request or after a failed one, in memory only: a reboot is a reason to try again.
    pub fn changed(&self, record: Record) {
        self.put_in_memory(record);
    }

    /// Wipes the record, unless another credential has the same key. To be called once, when the credential is not
    /// configured any more.
    pub fn discard(&self) {
        let Some((store, key, _)) = &self.0 else { return };
        let mut state = store.lock();
        match state.claims.get_mut(key) {
            Some(claims) if *claims > 1 => *claims -= 1,
            _ => {
                state.claims.remove(key);
                state.write(|memory| memory.remove(key));
                store.submit(*key, None);
            }
        }
    }

    fn put_in_memory(&self, record: Record) -> Option<Vec<u8>> {
        let (store, key, variant_of) = self.0.as_ref()?;
        let mut state = store.lock();
        // A discarded credential stores nothing. A failure of one of two credentials of a key may not replace the token.
        let claims = state.claims.get(key)?;
        if record.token.is_none() && *claims > 1 {
            return None;
        }
        let bytes = encode(&Record { variant_of: variant_of.as_deref().copied(), ..record }, store.now());
        state.write(|memory| memory.put(key, &bytes));
        Some(bytes)
    }
}

impl ThrottleWriter {
    /// Stores the state, in memory only.
    pub fn changed(&self, record: &ThrottleRecord) {
        let Some((store, key)) = &self.0 else { return };
        let bytes = encode(record, store.now());
        store.lock().write(|memory| memory.put(key, &bytes));
    }
}

/// The one place besides the wire where a token is serialized.
fn write_secret<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

fn read_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::from)
}

fn no_fingerprint() -> Fingerprint {
    Fingerprint([0; 8])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::at(Duration::from_secs(seconds))
    }

    fn moment(at: u64, wall: u64) -> Moment {
        Moment { at: Instant::at(Duration::from_secs(at)), wall: Duration::from_secs(wall) }
    }

    fn full() -> Record {
        let failed = Failed {
            class: ErrorClass::Throttled,
            message: "asked for fewer requests".into(),
            detail: Some("slow down".into()),
            at: at(190),
            needs_operator: false,
        };
        Record {
            token: Some(Token {
                secret: Secret::from("a \"token\"".to_owned()),
                fingerprint: no_fingerprint(),
                validity: Validity { sent_at: at(100), lifetime: Duration::from_secs(3_600) },
                longest_lifetime: Duration::from_secs(7_200),
                jitter: 0.1,
                scope: Some("aisp pisp".into()),
            }),
            failure: Some(FailureRecord { failures: 3, failed, next_attempt: Some(at(400)) }),
            last_used: Some(at(150)),
            unused_renewals: 1,
            interrupted_requests: 2,
            variant_of: Some(Key([9; 32])),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let (written, now) = (moment(200, 1_000), moment(300, 5_000));
        for record in [full(), Record::default(), Record { failure: None, ..full() }] {
            let bytes = encode(&record, written);
            assert_eq!(Record::decode(&bytes, now, false), Some(record));
        }
        let throttle = ThrottleRecord {
            quiet_until: Some(at(900)),
            failures: 4,
            class: Some(ErrorClass::Server),
            try_at: Some(at(300)),
        };
        for throttle in [throttle, ThrottleRecord::default()] {
            let bytes = encode(&throttle, written);
            assert_eq!(ThrottleRecord::decode(&bytes, now, false), Some(throttle));
        }
    }

    #[test]
    fn a_token_that_is_expired_or_from_the_future_is_dropped() {
        let without_token = Some(Record { token: None, ..full() });
        for (written, now) in [(99, 99), (200, 3_700)] {
            let bytes = encode(&full(), moment(written, 1_000));
            assert_eq!(Record::decode(&bytes, moment(now, 1_000), false), without_token);
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_missing_ones_have_defaults() {
        let text = String::from_utf8(encode(&full(), moment(200, 0))).unwrap();
        let text =
            text.replace("\"jitter\"", "\"color\":[1],\"jitter\"").replace("{\"at\"", "{\"x\":null,\"at\"");
        assert_eq!(Record::decode(text.as_bytes(), moment(200, 0), false), Some(full()));
        let older = encode(&serde_json::json!({}), moment(200, 0));
        assert_eq!(Record::decode(&older, moment(200, 0), false), Some(Record::default()));
    }

    #[test]
    fn within_one_boot_a_set_wall_clock_changes_nothing() {
        let (written, now) = (moment(1_000, 50_000), moment(1_010, 90_000));
        assert_eq!(written.rebase(at(4_000), now, false), at(4_000));
    }

    #[test]
    fn after_a_reboot_all_instants_move_by_the_wall_clock() {
        let bytes = encode(&full(), moment(200, 50_000));
        let now = moment(20, 50_060);
        let read = Record::decode(&bytes, now, true).unwrap();
        let (token, failure) = (read.token.unwrap(), read.failure.unwrap());
        assert_eq!(token.validity.remaining(now.at), Duration::from_secs(3_599 - 160));
        assert_eq!(token.validity.lifetime, Duration::from_secs(3_600), "the schedule depends on all of it");
        assert_eq!(failure.next_attempt, Some(at(160)));
        assert_eq!(failure.failed.at, at(20).before(Duration::from_secs(70)), "before the boot");
    }

    #[test]
    fn a_record_from_the_future_is_converted_as_after_a_reboot() {
        let (written, now) = (moment(1_000, 50_000), moment(30, 50_100));
        assert_eq!(written.rebase(at(1_600), now, false), at(530));
    }

    #[test]
    fn at_least_the_uptime_has_passed_if_the_wall_clock_was_set_back() {
        let (written, now) = (moment(1_000, 50_000), moment(1_500, 40_000));
        assert_eq!(written.rebase(at(1_600), now, true), at(1_600), "100 s are left");
    }

    proptest! {
        #[test]
        fn no_clock_lengthens_a_lifetime(
            written in (0_u64..10_000_000, 0_u64..10_000_000),
            now in (0_u64..10_000_000, 0_u64..10_000_000),
            left in 0_u64..10_000_000,
        ) {
            let (written, now) = (moment(written.0, written.1), moment(now.0, now.1));
            let expiry = written.at.after(Duration::from_secs(left));
            for may_have_rebooted in [false, true] {
                let expiry = written.rebase(expiry, now, may_have_rebooted);
                prop_assert!(expiry.since(now.at) <= Duration::from_secs(left));
            }
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..600) {
            let mut part = encode(&full(), moment(200, 0));
            part.truncate(cut);
            for bytes in [bytes, part] {
                let read = Record::decode(&bytes, moment(200, 0), true);
                prop_assert!(read.is_none_or(|read| read == full()));
                let _ = ThrottleRecord::decode(&bytes, moment(200, 0), true);
            }
        }
    }

    mod keys {
        use std::collections::HashSet;
        use std::time::Duration;

        use super::super::*;
        use crate::config::{
            BasicEncoding, ClientAuthentication, ClientSettings, Endpoint, Grant, TermSet, Terms,
            UserPassword,
        };
        use crate::oauth::request::tests::settings;
        use crate::secret_source::SecretSource;

        fn base() -> CredentialSettings {
            let secrets = vec![SecretSource::Credential("a".into())];
            settings(ClientAuthentication::SecretPost { secrets })
        }

        fn terms(words: &[&str]) -> TermSet {
            words.iter().map(|word| (*word).to_owned()).collect()
        }

        fn client(settings: &mut CredentialSettings) -> &mut ClientSettings {
            Arc::make_mut(&mut settings.client)
        }

        /// The keys of settings of which no two are the same.
        fn keys() -> Vec<Key> {
            let basic = |encoding| ClientAuthentication::SecretBasic {
                secrets: vec![SecretSource::Command(vec!["a".into()])],
                encoding,
            };
            let user = UserPassword { username: "u".into(), password: SecretSource::Environment("a".into()) };
            let changed = |change: &dyn Fn(&mut CredentialSettings)| {
                let mut settings = base();
                change(&mut settings);
                Key::of_credential(&settings)
            };
            let file = vec![SecretSource::File("a".into())];
            vec![
                Key::of_credential(&base()),
                changed(&|s| {
                    client(s).endpoint = Endpoint::Issuer("https://id.example/token".parse().unwrap());
                }),
                changed(&|s| {
                    client(s).endpoint = Endpoint::Token("https://id.example/other".parse().unwrap());
                }),
                changed(&|s| client(s).client_id = "other".into()),
                changed(&|s| client(s).authentication = ClientAuthentication::None),
                changed(&|s| {
                    client(s).authentication = ClientAuthentication::SecretPost { secrets: file.clone() }
                }),
                changed(&|s| client(s).authentication = basic(BasicEncoding::Form)),
                changed(&|s| client(s).authentication = basic(BasicEncoding::Raw)),
                changed(&|s| s.grant = Grant::Password(Box::new(user.clone()))),
                changed(&|s| s.terms.scope = terms(&["a"])),
                changed(&|s| s.terms.scope = terms(&["a", "b"])),
                changed(&|s| s.terms.resource = terms(&["a"])),
                changed(&|s| s.terms.audience = terms(&["a"])),
                changed(&|s| drop(s.params.insert("a".into(), "b".into()))),
                changed(&|s| client(s).accept = "*/*".into()),
                changed(&|s| client(s).ca_file = Some("/a".into())),
                changed(&|s| client(s).proxy = Some("http://proxy.example".parse().unwrap())),
                changed(&|s| s.default_lifetime = Duration::from_secs(1)),
            ]
        }

        #[test]
        fn every_setting_changes_the_key() {
            assert_eq!(keys().iter().collect::<HashSet<_>>().len(), keys().len());
        }

        #[test]
        fn the_order_of_terms_does_not_matter() {
            let with = |words| {
                Key::of_credential(&CredentialSettings {
                    terms: Terms { scope: terms(words), ..Terms::default() },
                    ..base()
                })
            };
            assert_eq!(with(&["a", "b"]), with(&["b", "a", "b"]));
        }

        #[test]
        fn keys_are_the_same_in_every_release() {
            let all: Vec<u8> = keys().iter().flat_map(|key| key.0).collect();
            let hash = digest::digest(&digest::SHA256, &all);
            let start: &[u8] = &[0xc7, 0xc4, 0x42, 0xf6, 0xb5, 0xb3, 0x03, 0x82];
            assert!(hash.as_ref().starts_with(start), "an upgrade would lose every token: {hash:?}");
        }
    }
}

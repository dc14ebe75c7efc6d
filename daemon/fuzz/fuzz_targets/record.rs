//! Whatever a record says: it is read or not, a token in it lives no longer than it was given, and what was read is
//! written and read again as it was.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokend::clock::Instant;
use tokend::store::key::Key;
use tokend::store::moment::{Moment, Uptime};
use tokend::store::record::{ThrottleRecord, Record, decode_fingerprint_key, key_of};

fuzz_target!(|input: &[u8]| {
    let key = key_of(input).unwrap_or_else(|| Key::of_the("another"));
    let _ = decode_fingerprint_key(input);
    for (at, wall) in [(0, 0), (3_600_000_000_000, 1_700_000_000), (i64::MAX, u64::MAX)] {
        let at = Instant::from_nanos_since_boot(at);
        let now = Moment { at, wall: Duration::from_secs(wall), boot: Some([7; 36]) };
        for uptime in [Uptime::SameBoot, Uptime::Unknown] {
            let _ = ThrottleRecord::decode(input, &now, uptime);
            let Some(record) = Record::decode(input, &key, &now, uptime) else { continue };
            if let Some(token) = &record.token {
                assert!(token.life.remaining(now.at) <= token.life.lifetime);
            }
            // Once more, because points in time that are centuries away are written as the last that can be.
            let again =
                |record: &Record| Record::decode(&record.encode(&key, &now), &key, &now, Uptime::SameBoot);
            let written = again(&record).expect("what was read can be written and read");
            assert_eq!(again(&written).as_ref(), Some(&written));
            let _ = record.as_of(now.at).is_usable(now.at);
        }
    }
});

//! Any bytes as a record: decoding never panics, a token is valid for no longer than its lifetime, and a decoded
//! record survives encoding and decoding.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokend::clock::Instant;
use tokend::store::record::{self, Moment, Record, ThrottleRecord};

fuzz_target!(|input: &[u8]| {
    let _ = record::decode::<[u8; 32]>(input);
    for (at, wall) in [(0, 0), (3_600, 1_700_000_000), (u64::MAX, u64::MAX)] {
        let now = Moment { at: Instant::at(Duration::from_secs(at)), wall: Duration::from_secs(wall) };
        for rebooted in [false, true] {
            let _ = ThrottleRecord::decode(input, now, rebooted);
            let Some(record) = Record::decode(input, now, rebooted) else { continue };
            if let Some(token) = &record.token {
                assert!(token.validity.remaining(now.at) <= token.validity.lifetime);
            }
            let again = Record::decode(&record::encode(&record, now), now, false);
            assert_eq!(again.as_ref(), Some(&record));
        }
    }
});

//! `Retry-After` in both its forms beside any `Date`: seconds are taken as they are, and a date never causes a wait
//! beyond the year 10000.
#![no_main]

use std::time::Duration;

use http::header::{DATE, RETRY_AFTER};
use libfuzzer_sys::fuzz_target;
use tokend::oauth::reply::HttpReply;

// Two lines: the values of Retry-After and Date.
fuzz_target!(|input: &str| {
    let (retry, date) = input.split_once('\n').unwrap_or((input, ""));
    let (Ok(wait), Ok(date)) = (retry.parse(), date.parse()) else { return };
    let headers = [(RETRY_AFTER, wait), (DATE, date)].into_iter().collect();
    let reply = HttpReply { headers, ..HttpReply::default() };
    for wall in [0, 1_700_000_000, u64::MAX] {
        let wall = Duration::from_secs(wall);
        let waits = reply.retry_after(wall);
        if let Ok(seconds) = retry.parse::<u64>() {
            let signed = retry.starts_with('+');
            assert_eq!(waits, (!signed).then_some(Duration::from_secs(seconds)));
        } else if !retry.trim().bytes().all(|byte| byte.is_ascii_digit()) {
            // The year of a date has four digits.
            assert!(waits.is_none_or(|waits| waits.as_secs() < 8000 * 366 * 24 * 60 * 60));
        }
    }
});

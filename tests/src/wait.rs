//! Waiting for a condition instead of for time to pass.

use std::thread;
use std::time::{Duration, Instant};

/// How long a condition may take before the test fails. Far more than any needs, for the sake of machines
/// that are busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(5);

/// Calls `probe` until it gives a value.
///
/// # Panics
/// When that takes longer than [`PATIENCE`], naming what was waited for.
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, probe).unwrap_or_else(|| panic!("{what}: not within {PATIENCE:?}"))
}

/// Calls `probe` until it gives a value, or `None` once `limit` has passed.
pub fn within<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(PAUSE);
    }
}

//! Waiting for a condition instead of for time to pass.

use std::thread;
use std::time::{Duration, Instant};

/// How long a condition may take before the test fails. Far longer than any needs: the machine may be very busy.
pub const PATIENCE: Duration = Duration::from_secs(180);

const PAUSE: Duration = Duration::from_millis(5);

/// Calls `probe` until it returns a value.
///
/// # Panics
/// When that takes longer than [`PATIENCE`], naming what was waited for.
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, probe).unwrap_or_else(|| panic!("{what}: not within {PATIENCE:?}"))
}

/// Calls `probe` until it returns a value; returns `None` once `limit` has passed.
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

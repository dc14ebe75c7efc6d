//! The size of the large tests, and their reports.

use std::env;

/// A number at full size, where `TOKEND_TESTS_FULL=1` asks for it, or one that suits every test run.
pub fn size(full: usize, usual: usize) -> usize {
    if env::var("TOKEND_TESTS_FULL").is_ok_and(|value| value == "1") { full } else { usual }
}

/// Prints the figures of a large test.
#[expect(clippy::print_stderr, reason = "figures are for whoever runs the test")]
pub fn report(figures: &str) {
    eprintln!("{figures}");
}

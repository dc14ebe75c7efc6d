//! Proofs by numbers: how large they are, and what came of them.

use std::env;

/// A number at full size, where `TOKEND_TESTS_FULL=1` asks for it, or one that suits every test run.
pub fn size(full: usize, usual: usize) -> usize {
    if env::var("TOKEND_TESTS_FULL").is_ok_and(|value| value == "1") { full } else { usual }
}

/// Shows the figures to whoever ran the proof for them.
#[expect(clippy::print_stderr, reason = "figures are for whoever runs the test")]
pub fn report(figures: &str) {
    eprintln!("{figures}");
}

//! Nothing is lost, whatever dies and when: the proofs by numbers.
//!
//! They run at a size that suits every test run, and at full size with `TOKEND_TESTS_FULL=1`:
//!
//!     TOKEND_TESTS_FULL=1 cargo test -p tokend-tests --test hot_restart -- --nocapture

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

mod rotating;

/// A number at full size, or one that suits every test run.
fn size(full: usize, usual: usize) -> usize {
    if std::env::var("TOKEND_TESTS_FULL").is_ok_and(|value| value == "1") { full } else { usual }
}

/// The figures of a proof, for whoever ran it for them.
#[expect(clippy::print_stderr, reason = "figures are for whoever runs the test")]
fn report(figures: &str) {
    eprintln!("{figures}");
}

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

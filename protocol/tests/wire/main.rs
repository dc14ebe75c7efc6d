//! The wire format as others see it: golden frames, bad input, both codecs, and properties.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics is a test that failed"
)]

mod bad_input;
mod codecs;
mod golden;
mod limits;
mod properties;
mod samples;

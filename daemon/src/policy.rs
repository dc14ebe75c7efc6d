//! Decisions without I/O: pure functions of their arguments.

pub mod access;
pub mod quota;
pub mod refresh;

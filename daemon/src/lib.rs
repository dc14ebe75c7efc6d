//! To be written.

pub mod config;
pub mod policy;
pub mod secret_source;

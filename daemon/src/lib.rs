//! The daemon as a library, so that tests can start it in process. `ARCHITECTURE.md` says what each module may import.

#![allow(missing_docs, reason = "only tests link this library; items whose name suffices have no comment")]

pub mod access;
pub mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod fingerprint;
pub mod init;
pub mod oauth;
pub mod peer;
pub mod process;
pub mod quota;
pub mod secret_source;
pub mod server;
pub mod signing_key;
pub mod store;

pub use process::daemon::Daemon;

//! The daemon as a library: all of it but the command line, so that tests can start it in process.
//!
//! `ARCHITECTURE.md` shows how the parts hang together.

pub mod allowance;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connection;
pub mod credential;
pub mod daemon;
pub mod departure;
pub mod directory;
pub mod fingerprint;
pub mod harden;
pub mod issuer;
pub mod logging;
pub mod peer;
pub mod policy;
pub mod provider;
pub mod registry;
pub mod run;
pub mod secret_source;
pub mod seldom;
pub mod server;
pub mod session;
pub mod shared;
pub mod socket;
pub mod stack;
pub mod store;
pub mod stream;
pub mod swap;
pub mod systemd;
pub mod turns;
pub mod variants;

pub use daemon::Daemon;

//! The units as they are installed, run by a real systemd that is booted for it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod audit;
mod credential;
mod egress;
mod host;
mod identity;
mod inheritance;
mod init;
mod load;
mod memory;
mod metrics;
mod package;
mod restart;
mod sandbox;
mod service;
mod sync;
mod units;

//! The end-to-end suites: the real programs, watched from outside.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod access;
mod activation;
mod attacks;
mod audit;
mod client_keys;
mod clients;
mod configuration;
mod container;
mod dialects;
mod egress;
mod explain;
mod fault_table;
mod faults;
mod hardening;
mod hostile_peers;
mod http;
mod http2;
mod init;
mod log;
mod memory;
mod notify;
mod outbound;
mod packaging;
mod peer_exit;
mod picture;
mod providers;
mod proxy;
mod refresh;
mod reload;
mod requests;
mod restart;
mod rotation;
mod sealed;
mod secrecy;
mod shutdown;
mod source;
mod sync;
mod test_users;
mod traffic;
mod variants;
mod watch;

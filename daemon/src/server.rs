//! Serves local callers: accepts connections, authorizes and answers requests, limits and audits them.

pub mod accept;
pub mod audit;
pub mod connection;
pub mod fair_queue;
pub mod log_throttle;
pub mod peer_exit;
pub mod server_state;
pub mod session;
pub mod stream;

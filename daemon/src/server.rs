//! Serves local callers: accepts connections, authorizes and answers requests, limits and audits them.

pub mod accept;
pub mod audit;
pub mod connection;
pub mod fair_queue;
pub mod server_state;
pub mod session;
pub mod stream;

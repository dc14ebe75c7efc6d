//! A reverse proxy for one token and one upstream: requests get the headers of the token, replies are passed on as they come.
//!
//! `main.rs` is the program. This library is for its tests.

mod forward;
mod serve;
mod upstream;

pub use self::forward::Proxy;
pub use self::serve::Connections;
pub use self::upstream::{BadUpstream, Upstream};

//! The daemon's way out: connections to providers, and news of the host's network.
//!
//! Either the process opens them itself, or it asks another one, `tokend-egress`, which has the network and no
//! secret. What is opened there is passed as a descriptor (`SCM_RIGHTS`, unix(7)), and encrypted by who asked: so the
//! process with the secrets needs neither a network nor a name service, and the one with the network sees what anybody
//! on the way sees.
//!
//! `tokend-egress` keeps nothing that is worth a look at its memory, and so does nothing against one; it sees names,
//! ports and what the daemon then encrypts. The exception is a provider on loopback that is spoken to without TLS:
//! to a helper that somebody has taken over, what is sent there is readable.

pub mod channel;
pub mod cli;
pub mod connect;
pub mod connection;
pub mod helper;
pub mod log;
pub mod network;
pub mod passed;
pub mod run;
#[cfg(test)]
mod scene;
pub mod server;
pub mod socket;
pub mod wire;

use std::io;

pub use connect::ConnectError;
pub use connection::Connection;
pub use helper::Helper;

/// Who opens connections.
#[derive(Clone, Debug)]
pub enum Egress {
    /// This process itself.
    Direct,
    /// Another one, which has the network.
    Helper(Helper),
}

impl Egress {
    /// A connection to a host, by its name or address, an IPv6 address in brackets or without.
    ///
    /// It takes no more than [`connect::TIMEOUT`], and is given up when the future is dropped.
    pub async fn connect(&self, host: &str, port: u16) -> Result<Connection, ConnectError> {
        match self {
            Self::Direct => connect::connect(host, port).await.map(Connection::new),
            Self::Helper(helper) => helper.connect(host, port).await,
        }
    }

    /// Calls `changed` after each change of the host's network that matters. Runs until it is dropped.
    ///
    /// # Errors
    /// What the kernel says where it does not tell this process of changes. A helper that tells of none is asked again.
    pub async fn watch_network(&self, changed: impl Fn()) -> io::Result<()> {
        match self {
            Self::Direct => network::watch(changed).await,
            Self::Helper(helper) => match helper.watch_network(changed).await {},
        }
    }
}

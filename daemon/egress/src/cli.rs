//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Opens tokend's connections to providers, in a process that has the network and no secrets.
#[derive(Debug, Parser)]
#[command(name = "tokend-egress", version)]
pub struct Cli {
    /// Where to listen. Ignored when systemd passes a socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// What to log: a level, or a list of target=level. At debug each connection is logged, with its host and port.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

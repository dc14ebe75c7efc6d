//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Source;
use crate::process::logging::LogFormat;

/// Owns the OAuth 2.0 credentials of this host and hands access tokens to local processes.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Another thing to do than to serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Which configuration to read.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Where to listen, instead of what the configuration says. Ignored when systemd passes a socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The form of the log on standard error.
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    pub log_format: LogFormat,
    /// What to log: a level, or a list of target=level. The audit trail is logged whatever the level; only
    /// its own target, `tokend::server::audit=LEVEL`, silences it.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

/// Another thing to do than to serve.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Checks a configuration and lists every fault in it, each with its file, line and key.
    Check {
        /// Which configuration to check.
        #[command(flatten)]
        config: ConfigArgs,
        /// The user who must be able to read all files. By default user tokend if root runs this and that user exists,
        /// otherwise the user who runs it.
        #[arg(long, value_name = "USER")]
        as_user: Option<String>,
    },
}

/// Which configuration to read.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration; drop-ins are read from FILE.d/*.toml.
    #[arg(long, value_name = "FILE", default_value = "/etc/tokend/tokend.toml")]
    config: PathBuf,
    /// Reach every provider through the Unix socket PATH/HOST:PORT, whatever `egress_dir` in the configuration says. An
    /// empty PATH means a connection of the daemon's own.
    #[arg(long, value_name = "PATH", env = "TOKEND_EGRESS_DIR")]
    egress_dir: Option<OsString>,
}

impl ConfigArgs {
    /// Where the configuration comes from.
    pub fn source(self) -> Source {
        Source { path: self.config, egress_dir: self.egress_dir.map(PathBuf::from) }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_manual_page_names_every_command_and_option() {
        let page = include_str!("../../systemd/tokend.8").replace('\\', "");
        let command = Cli::command();
        let commands = command.get_subcommands().chain([&command]);
        for command in commands {
            assert!(page.contains(command.get_name()), "{}", command.get_name());
            let options = command.get_arguments().filter_map(|argument| argument.get_long());
            for option in options {
                assert!(page.contains(&format!("--{option}")), "--{option} of {}", command.get_name());
            }
        }
    }
}

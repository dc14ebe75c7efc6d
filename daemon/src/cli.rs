//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Source;
use crate::init::InitArgs;
use crate::process::logging::LogFormat;

/// Owns the OAuth 2.0 credentials of this host and hands access tokens to local processes.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The command. Without one, the daemon runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The socket to listen on, instead of the one in the configuration. Ignored if systemd passes a socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The socket on which to speak HTTP too. Ignored if systemd passes one.
    #[arg(long, value_name = "PATH")]
    pub http_socket: Option<PathBuf>,
    /// The socket on which to give systemd the credentials of units (`LoadCredential=ID:PATH`) too. Ignored if systemd passes one.
    #[arg(long, value_name = "PATH")]
    pub credential_socket: Option<PathBuf>,
    /// The format of the log on standard error.
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    pub log_format: LogFormat,
    /// The events to log: a level, or a list of target=level. The audit trail is logged at every level; only a filter
    /// for its target, `tokend::server::audit=LEVEL`, limits it.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Checks a configuration and lists every fault in it, each with its file, line and key.
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        /// The user who must be able to read all files. By default user tokend if root runs this and that user exists,
        /// otherwise the user who runs it.
        #[arg(long, value_name = "USER")]
        as_user: Option<String>,
    },
    /// Sets a token up: writes drop-ins of the configuration and of the unit, after a check, or nothing.
    ///
    /// On a terminal, it asks for everything that no option says. It shows the files before it writes them.
    Init {
        #[command(flatten)]
        init: Box<InitArgs>,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration; drop-ins are read from FILE.d/*.toml.
    #[arg(long, value_name = "FILE", default_value = "/etc/tokend/tokend.toml")]
    config: PathBuf,
    /// Connect to every provider through the Unix socket PATH/HOST:PORT. Overrides `egress_dir` in the configuration. An
    /// empty PATH means direct connections.
    #[arg(long, value_name = "PATH", env = "TOKEND_EGRESS_DIR")]
    egress_dir: Option<std::ffi::OsString>,
}

impl ConfigArgs {
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

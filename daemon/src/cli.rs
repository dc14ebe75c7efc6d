//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tokend_egress::{Egress, Helper};

use crate::process::logging::LogFormat;

/// Where the configuration is unless a command line says otherwise.
const CONFIG: &str = "/etc/tokend/tokend.toml";

/// Owns the OAuth 2.0 credentials of this host and hands access tokens to local processes.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Another thing to do than to serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Serve,
}

/// Another thing to do than to serve.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Checks a configuration and lists every fault in it, each with its file, line and key.
    Check {
        /// The configuration; drop-ins are read from FILE.d/*.toml.
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
        /// The user who must be able to read all files. By default user tokend if root runs this and that user exists,
        /// otherwise the user who runs it.
        #[arg(long, value_name = "USER")]
        as_user: Option<String>,
    },
}

/// How to serve.
#[derive(Debug, Args)]
pub struct Serve {
    /// The configuration; drop-ins are read from FILE.d/*.toml.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    pub config: PathBuf,
    /// Where to listen, instead of what the configuration says. Ignored when systemd passes a socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The socket of tokend-egress, which then makes all connections to providers. Without it the daemon makes them
    /// itself.
    #[arg(long, value_name = "PATH", env = "TOKEND_EGRESS")]
    egress: Option<OsString>,
    /// The form of the log on standard error.
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    pub log_format: LogFormat,
    /// What to log: a level, or a list of target=level. The audit trail is logged whatever the level; only
    /// its own target, `tokend::server::audit=LEVEL`, silences it.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

impl Serve {
    /// Who makes connections to providers. A path that is empty is none: so an environment can take one away.
    pub fn egress(&self) -> Egress {
        match self.egress.as_deref().filter(|path| !path.is_empty()) {
            Some(path) => Egress::Helper(Helper::new(path)),
            None => Egress::Direct,
        }
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

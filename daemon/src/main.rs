//! tokend: the daemon that owns a host's OAuth 2.0 credentials.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokend::logging::{self, LogFormat};
use tokend::{config, harden, run};

/// Where the configuration is unless a command line says otherwise.
const CONFIG: &str = "/etc/tokend/tokend.toml";

/// Owns the OAuth 2.0 credentials of this host and hands access tokens to local processes.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks a configuration and lists every fault in it, each with its file, line and key.
    Check {
        /// The configuration; drop-ins are read from FILE.d/*.toml.
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// The configuration; drop-ins are read from FILE.d/*.toml.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Where to listen, instead of what the configuration says. Ignored when systemd passes a socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The form of the log on standard error.
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    log_format: LogFormat,
    /// What to log: a level, or a list of target=level.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_level: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Check { config }) => check(&config),
        None => serve(cli.serve),
    }
}

fn serve(options: Serve) -> ExitCode {
    harden::report_panics_without_values();
    let result = logging::start(options.log_format, &options.log_level)
        .map_err(|error| error.to_string())
        .and_then(|()| harden::forbid_dumps().map_err(|error| format!("forbidding core dumps: {error}")))
        .and_then(|()| run::run_blocking(&options.config, options.socket).map_err(|error| error.to_string()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn check(path: &Path) -> ExitCode {
    match config::load(path) {
        Ok(loaded) => {
            let mut out = std::io::stderr().lock();
            for warning in &loaded.warnings {
                let _ = writeln!(out, "warning: {warning}");
            }
            ExitCode::SUCCESS
        }
        Err(faults) => fail(&faults.to_string()),
    }
}

/// Says why on standard error, a line for each reason, and nothing if nobody listens there any more.
fn fail(reasons: &str) -> ExitCode {
    let mut out = std::io::stderr().lock();
    for reason in reasons.lines() {
        let _ = writeln!(out, "tokend: {reason}");
    }
    ExitCode::FAILURE
}

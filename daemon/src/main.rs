//! tokend: the daemon that owns a host's OAuth 2.0 credentials.

use std::alloc::System;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tokend::cli::{Cli, Command, Serve};
use tokend::process::run::{self, StartError};
use tokend::process::{hardening, logging};
use tokend::{config, peer};
use zeroizing_alloc::ZeroAlloc;

/// Wipes every block of memory that is freed. Libraries below copy secrets into buffers of their own, for HTTP, TLS
/// and JSON, and wipe none of them.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// Says that a configuration has faults (`sysexits.h`), which starting again does not mend.
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Check { config }) => check(&config),
        None => serve(cli.serve),
    }
}

fn serve(options: Serve) -> ExitCode {
    hardening::report_panics_without_values();
    hardening::keep_descriptors();
    let log = match logging::start(options.log_format, &options.log_level) {
        Ok(log) => log,
        Err(error) => return fail(&error.to_string(), ExitCode::FAILURE),
    };
    if let Err(error) = hardening::forbid_dumps() {
        return fail(&format!("forbidding core dumps: {error}"), ExitCode::FAILURE);
    }
    let egress = options.egress();
    let ended = run::run_blocking(&options.config, options.socket, egress);
    drop(log);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Config(faults)) => fail(&faults.to_string(), ExitCode::from(EX_CONFIG)),
        Err(error) => fail(&error.to_string(), ExitCode::FAILURE),
    }
}

/// Checks a configuration as a compiler would: a line for each finding, beginning with its place.
fn check(path: &Path) -> ExitCode {
    match config::load_and_look_up(path, peer::abilities()) {
        Ok(loaded) => {
            print(std::io::stderr(), loaded.warnings.iter().map(|warning| format!("warning: {warning}")));
            let tokens = loaded.config.tokens.len();
            print(std::io::stdout(), [format!("{}: no faults, {tokens} token(s)", path.display())]);
            ExitCode::SUCCESS
        }
        Err(faults) => {
            print(std::io::stderr(), faults.as_slice().iter().map(ToString::to_string));
            ExitCode::FAILURE
        }
    }
}

fn fail(reasons: &str, status: ExitCode) -> ExitCode {
    print(std::io::stderr(), reasons.lines().map(|reason| format!("tokend: {reason}")));
    status
}

/// Prints lines, and nothing if nobody listens there any more.
fn print(mut out: impl Write, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}

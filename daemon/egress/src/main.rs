//! tokend-egress: opens connections for a daemon that has no network.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tokend_egress::cli::Cli;
use tokend_egress::run;

fn main() -> ExitCode {
    match run::run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be listening there any more.
            let _ = writeln!(std::io::stderr(), "tokend-egress: {error}");
            ExitCode::FAILURE
        }
    }
}

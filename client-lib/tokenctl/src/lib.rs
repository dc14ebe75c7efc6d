//! The command line of tokend, which uses only the public API of `tokend-client`.
//!
//! It prints a text for people, a plain value for scripts (`get`, `headers`, a piped `list`), or with `--json` an
//! object with a documented shape (`JSON.md`). Its exit status says what to do next. A token goes to standard output
//! and never to standard error.

mod args;
mod commands;
mod ending;
mod explanation;
mod exporter;
mod failure;
mod helper;
mod human;
mod json;
mod manual;
mod notify;
mod output;
mod status;
mod sync;
mod table;
mod top;

use std::ffi::OsString;
use std::process::ExitCode;

pub use args::Args;
use failure::Failure;

/// Runs the program. The first argument is its own name.
pub fn main(args: &[OsString]) -> ExitCode {
    let wants_json = args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    match Args::read(args) {
        Ok(args) => ended(commands::run(&args), args.json),
        Err(error) => usage(&error, wants_json),
    }
}

fn ended(result: Result<(), Failure>, json: bool) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(json);
            ExitCode::from(failure.exit)
        }
    }
}

/// Prints clap's message: a usage error, or the requested help or version.
fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if error.use_stderr() && json {
        Failure::usage(error).report_json();
    }
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

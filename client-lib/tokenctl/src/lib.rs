//! The command line of tokend, on the public API of `tokend-client` alone.
//!
//! It is for people at a terminal and for scripts. So what it prints is either a text to be read, a plain
//! value (`get`, `headers`, a piped `list`), or with `--json` an object of a documented shape (`JSON.md`); and
//! its exit status says what to do next. A token goes to standard output, never to standard error.

mod args;
mod commands;
mod explanation;
mod failure;
mod human;
mod json;
mod manual;
mod output;
mod status;
mod table;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

pub use args::Args;
use failure::Failure;

/// Runs the program with its arguments, the first of which is its own name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let wants_json = args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    match Args::try_parse_from(args) {
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

/// Prints what clap has to say: an error of usage, or the help or version that was asked for.
fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if error.use_stderr() && json {
        Failure::usage(error).report_json();
    }
    // Nothing is left to be told where standard error is gone.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

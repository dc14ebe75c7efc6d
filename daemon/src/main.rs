//! tokend: the daemon that owns a host's OAuth 2.0 credentials.

use std::alloc::System;
use std::ffi::CString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use nix::unistd::{User, geteuid, initgroups, setgid, setuid};
use tokend::cli::{Cli, Command, Serve};
use tokend::config::{self, Source};
use tokend::peer;
use tokend::process::run::{self, StartError};
use tokend::process::{hardening, logging};
use zeroizing_alloc::ZeroAlloc;

/// Zeroes all freed memory, because libraries copy secrets into buffers for HTTP, TLS and JSON and do not zero them.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// The user of the shipped unit.
const DAEMON_USER: &str = "tokend";

/// The exit status for a configuration with faults (`sysexits.h`).
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Check { config, as_user }) => match become_user(as_user.as_deref()) {
            Ok(()) => check(&config.source()),
            Err(reason) => fail(&reason, ExitCode::FAILURE),
        },
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
    let ended = run::run_blocking(&options.config.source(), options.socket);
    drop(log);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Config) => ExitCode::from(EX_CONFIG),
        Err(StartError::Other(error)) => fail(&error.to_string(), ExitCode::FAILURE),
    }
}

/// Checks a configuration and prints one line per finding, as a compiler does.
fn check(source: &Source) -> ExitCode {
    match config::load_and_look_up(source, peer::abilities()) {
        Ok(loaded) => {
            print(std::io::stderr(), loaded.warnings.iter().map(|warning| format!("warning: {warning}")));
            let tokens = loaded.config.tokens.len();
            print(std::io::stdout(), [format!("{}: no faults, {tokens} token(s)", source.path.display())]);
            ExitCode::SUCCESS
        }
        Err(faults) => {
            print(std::io::stderr(), faults.as_slice().iter().map(ToString::to_string));
            ExitCode::FAILURE
        }
    }
}

/// Becomes the user whose eyes a check looks with: `name`, or else the daemon's user if this is root.
fn become_user(name: Option<&str>) -> Result<(), String> {
    let wanted = name.unwrap_or(DAEMON_USER);
    let found = User::from_name(wanted).map_err(|error| format!("looking up user {wanted}: {error}"))?;
    let user = match (found, name) {
        (Some(user), _) if user.uid == geteuid() => return Ok(()),
        (_, None) if !geteuid().is_root() => return Ok(()),
        (None, None) => return Ok(()),
        (None, Some(name)) => return Err(format!("--as-user: this host has no user {name}")),
        (Some(user), _) => user,
    };
    let name = CString::new(user.name.as_str()).map_err(|error| error.to_string())?;
    let became = initgroups(&name, user.gid).and_then(|()| setgid(user.gid)).and_then(|()| setuid(user.uid));
    became.map_err(|error| format!("checking as user {wanted}: {error}; only root can check as another user"))
}

fn fail(reasons: &str, status: ExitCode) -> ExitCode {
    print(std::io::stderr(), reasons.lines().map(|reason| format!("tokend: {reason}")));
    status
}

/// Prints lines. A closed pipe is no error.
fn print(mut out: impl Write, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}

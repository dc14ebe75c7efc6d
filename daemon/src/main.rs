//! tokend: the daemon that owns a host's OAuth 2.0 credentials.

use std::alloc::System;
use std::error::Error;
use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

use clap::Parser;
use nix::unistd::{User, geteuid, initgroups, setgid, setuid};
use tokend::cli::{Cli, Command};
use tokend::config::{self, Source};
use tokend::init::{self, InitArgs};
use tokend::peer;
use tokend::process::sockets::SocketPaths;
use tokend::process::{hardening, logging, run};
use zeroizing_alloc::ZeroAlloc;

/// Zeroes all freed memory, because libraries copy secrets into buffers for HTTP, TLS and JSON and do not zero them.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Some(Command::Check { config, as_user }) => {
            become_user(as_user.as_deref()).map(|()| check(&config.source()))
        }
        Some(Command::Init { init, config }) => set_up(&init, &config.source()),
        None => serve(cli),
    };
    ended.unwrap_or_else(|error| {
        print(stderr(), error.to_string().lines().map(|line| format!("tokend: {line}")));
        ExitCode::FAILURE
    })
}

fn serve(cli: Cli) -> Result<ExitCode, Box<dyn Error>> {
    hardening::report_panics_without_values();
    hardening::close_descriptors_on_exec();
    let _flush_at_the_end = logging::start(cli.log_format, &cli.log_level)?;
    hardening::forbid_dumps().map_err(|error| format!("forbidding core dumps: {error}"))?;
    let paths = SocketPaths { main: cli.socket, http: cli.http_socket, credential: cli.credential_socket };
    run::run(&cli.config.source(), &paths)
}

fn set_up(args: &InitArgs, source: &Source) -> Result<ExitCode, Box<dyn Error>> {
    hardening::forbid_dumps().map_err(|error| format!("forbidding core dumps: {error}"))?;
    init::run(args, source, peer::abilities())
}

/// Checks a configuration and prints one line per finding, as a compiler does.
fn check(source: &Source) -> ExitCode {
    match config::load_and_look_up(source, peer::abilities()) {
        Ok(loaded) => {
            print(stderr(), loaded.warnings.iter().map(|warning| format!("warning: {warning}")));
            let (path, tokens) = (source.path.display(), loaded.config.tokens.len());
            print(stdout(), [format!("{path}: no faults, {tokens} token(s)")]);
            ExitCode::SUCCESS
        }
        Err(faults) => {
            print(stderr(), faults.as_slice().iter().map(ToString::to_string));
            ExitCode::FAILURE
        }
    }
}

/// Changes to the user as whom a check reads files: `name`, or the daemon's user if root runs this.
fn become_user(name: Option<&str>) -> Result<(), Box<dyn Error>> {
    if name.is_none() && !geteuid().is_root() {
        return Ok(());
    }
    let wanted = name.unwrap_or("tokend");
    let user = match User::from_name(wanted).map_err(|error| format!("looking up user {wanted}: {error}"))? {
        Some(user) if user.uid != geteuid() => user,
        None if name.is_some() => return Err(format!("--as-user: this host has no user {wanted}").into()),
        _ => return Ok(()),
    };
    let name = std::ffi::CString::new(user.name)?;
    let became = initgroups(&name, user.gid).and_then(|()| setgid(user.gid)).and_then(|()| setuid(user.uid));
    let explain = |error| format!("checking as user {wanted}: {error}; only root can check as another user");
    Ok(became.map_err(explain)?)
}

/// Prints lines. Write errors, as of a closed pipe, are ignored.
fn print(mut out: impl Write, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}

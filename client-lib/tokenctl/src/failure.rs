//! Why the program ends without having done its work: an exit status, and words that say what to do next.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::unistd::{Uid, User};
use tokend_client::{Error, ErrorClass, SOCKET_VARIABLE};

use crate::human::{clean, duration, rfc3339, until};
use crate::json;

/// The end of the program, other than with its work done.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit status.
    pub(crate) exit: u8,
    /// The kind of failure, as one word for `--json`.
    code: &'static str,
    /// The whole message. Empty where nobody is left to read.
    message: String,
    class: Option<ErrorClass>,
    next_attempt: Option<SystemTime>,
    best_ttl: Option<Duration>,
}

impl Failure {
    /// What a call's error means to the caller who asked about `subject`, a token's name or nothing.
    pub(crate) fn of_call(error: &Error, subject: &str) -> Self {
        let (exit, code) = kind(error);
        let mut message = advice(error);
        // The daemon may have named the token already.
        if names_a_token(error) && !subject.is_empty() && !message.starts_with(&format!("{subject}:")) {
            message.insert_str(0, &format!("{subject}: "));
        }
        let (class, best_ttl) = match error {
            Error::Unavailable { class, .. } | Error::Refused { class, .. } => (*class, None),
            Error::MinTtlUnreachable { best, .. } => (None, *best),
            _ => (None, None),
        };
        Self { class, next_attempt: error.next_attempt(), best_ttl, ..Self::new(exit, code, &message) }
    }

    /// Standard output does not take what is written. That nobody reads it any more is no fault.
    pub(crate) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(0, "output", "");
        }
        Self::new(1, "output", &format!("cannot write to standard output: {error}"))
    }

    /// A file cannot be written.
    pub(crate) fn file(path: &Path, error: &io::Error) -> Self {
        Self::new(1, "output", &format!("cannot write {}: {error}", path.display()))
    }

    /// The command line makes no sense to clap, whose first line tells why.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        Self::new(2, "usage", first.trim_start_matches("error: "))
    }

    /// The daemon's answer is of no use.
    pub(crate) fn protocol(message: &str) -> Self {
        Self::new(1, "protocol", message)
    }

    fn new(exit: u8, code: &'static str, message: &str) -> Self {
        Self { exit, code, message: clean(message), class: None, next_attempt: None, best_ttl: None }
    }

    /// Tells the person on standard error, and with `--json` the script on standard output.
    pub(crate) fn report(&self, json: bool) {
        if self.message.is_empty() {
            return;
        }
        if json && self.code != "output" {
            self.report_json();
        }
        // Nothing is left to be told where standard error is gone.
        let _ = writeln!(io::stderr().lock(), "tokenctl: {}", self.message);
    }

    /// Tells the script on standard output.
    pub(crate) fn report_json(&self) {
        let error = json::Failure {
            code: self.code,
            message: &self.message,
            exit_status: self.exit,
            class: self.class.map(ErrorClass::as_str),
            next_attempt: self.next_attempt.map(rfc3339),
            best_ttl: self.best_ttl.map(|ttl| ttl.as_secs()),
        };
        let _ = io::stdout().lock().write_all(json::line(&json::Failures { error }).as_bytes());
    }
}

/// The exit status and the word for each error.
fn kind(error: &Error) -> (u8, &'static str) {
    match error {
        Error::NotReachable { .. } => (3, "not-reachable"),
        Error::NotAllowed { .. } => (4, "not-allowed"),
        Error::UnknownToken { .. } => (5, "unknown-token"),
        Error::Unavailable { .. } => (6, "unavailable"),
        Error::Overloaded { .. } => (6, "overloaded"),
        Error::ShuttingDown { .. } => (6, "shutting-down"),
        Error::Refused { .. } => (7, "refused"),
        Error::DeadlineExceeded { .. } => (8, "deadline-exceeded"),
        Error::InvalidRequest { .. } => (2, "invalid-request"),
        // The same again would not help, however often.
        Error::MinTtlUnreachable { .. } => (2, "min-ttl-unreachable"),
        Error::UnsupportedVersion { .. } => (1, "unsupported-version"),
        _ => (1, "protocol"),
    }
}

/// Whether the error has to do with the token that was asked for.
fn names_a_token(error: &Error) -> bool {
    use Error::{NotReachable, Overloaded, Protocol, ShuttingDown, UnsupportedVersion};
    !matches!(
        error,
        NotReachable { .. }
            | Overloaded { .. }
            | Protocol { .. }
            | ShuttingDown { .. }
            | UnsupportedVersion { .. }
    )
}

/// What happened and what to do about it.
fn advice(error: &Error) -> String {
    match error {
        Error::NotReachable { socket, source } => not_reachable(socket, source),
        // The same words for a refusal and for a token that does not exist: they are the daemon's.
        Error::NotAllowed { message } => {
            format!("{message} (user {}); an operator can find out why with `tokenctl explain`", user())
        }
        // Only operators are told this, and `list` names only what they may have themselves.
        Error::UnknownToken { .. } => {
            "no such token; `tokenctl status` names those that there are".to_owned()
        }
        Error::Unavailable { message, next_attempt, .. } => {
            let wait = next_attempt.map_or(Duration::ZERO, |time| until(time, SystemTime::now()));
            let when =
                if wait.as_secs() == 0 { "in a moment".to_owned() } else { format!("in {}", duration(wait)) };
            format!("{message}; try again {when}")
        }
        Error::Refused { message, .. } => {
            format!(
                "{message}; an operator has to act: `tokenctl status --verbose` and the daemon's journal tell more"
            )
        }
        Error::DeadlineExceeded { message } => {
            format!("{message}; try again, or wait longer with --deadline")
        }
        Error::InvalidRequest { message } => {
            format!("{message}; `tokenctl help` tells how to use each command")
        }
        Error::Overloaded { message } => format!("{message}; try again with fewer requests at once"),
        Error::ShuttingDown { message } => format!("{message}; try again in a moment"),
        Error::MinTtlUnreachable { message, best } => {
            let mut text = format!("{message}; ask for less with --min-ttl");
            if let Some(best) = best {
                let _ = write!(text, ", {} at most", duration(*best));
            }
            text
        }
        Error::UnsupportedVersion { message } => format!("{message}; upgrade tokenctl or the daemon"),
        other => format!("{other}; is it a tokend that listens at the socket?"),
    }
}

fn not_reachable(socket: &Path, source: &io::Error) -> String {
    let socket = socket.display();
    let elsewhere =
        format!("see `systemctl status tokend`, or name another socket with --socket or {SOCKET_VARIABLE}");
    match source.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "no permission to connect to {socket}: user {} may lack the socket's group; compare `ls -l {socket}` with `id`",
            user()
        ),
        io::ErrorKind::NotFound => format!("no daemon at {socket}: there is no such socket; {elsewhere}"),
        io::ErrorKind::ConnectionRefused => {
            format!("no daemon at {socket}: nobody listens there; {elsewhere}")
        }
        _ => format!("the daemon at {socket} cannot be reached: {source}; {elsewhere}"),
    }
}

/// The effective user, whom the daemon sees.
fn user() -> String {
    let uid = Uid::effective();
    let known = User::from_uid(uid).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

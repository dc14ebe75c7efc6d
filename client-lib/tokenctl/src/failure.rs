//! Failures: an exit status, and a message that says what to do next.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::unistd::Uid;
use tokend_client::{Error, ErrorClass, SOCKET_VARIABLE};

use crate::human::{clean, duration, rfc3339, until};
use crate::json;

/// A failure of the program.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit status.
    pub(crate) exit: u8,
    /// The kind of failure, as one word for `--json`.
    pub(crate) code: &'static str,
    /// The whole message. Empty if there is nothing to add to the output.
    pub(crate) message: String,
    class: Option<ErrorClass>,
    next_attempt: Option<SystemTime>,
    best_ttl: Option<Duration>,
}

impl Failure {
    /// The failure of a call about `subject`, a token's name or nothing.
    pub(crate) fn of_call(error: &Error, subject: &str) -> Self {
        let (exit, code) = kind(error);
        let mut message = advice(error, subject);
        // The daemon's message may name the token already.
        if names_a_token(error) && !subject.is_empty() && !message.starts_with(&format!("{subject}:")) {
            message.insert_str(0, &format!("{subject}: "));
        }
        let (class, best_ttl) = match error {
            Error::Unavailable { class, .. } | Error::NeedsOperator { class, .. } => (*class, None),
            Error::MinTtlUnreachable { best, .. } => (None, *best),
            _ => (None, None),
        };
        Self { class, next_attempt: error.next_attempt(), best_ttl, ..Self::new(exit, code, &message) }
    }

    /// Standard output cannot be written. A closed pipe is not a failure.
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

    /// The program cannot listen at an address.
    pub(crate) fn listen(address: SocketAddr, error: &io::Error) -> Self {
        Self::new(1, "output", &format!("cannot listen at {address}: {error}"))
    }

    /// The program cannot prepare for signals.
    pub(crate) fn signals(error: &io::Error) -> Self {
        Self::new(1, "output", &format!("cannot handle signals: {error}"))
    }

    /// An exit status without a message, because the output says it all.
    pub(crate) fn exit_status(exit: u8) -> Self {
        Self::new(exit, "output", "")
    }

    /// A token must not go into the journal.
    pub(crate) fn journal() -> Self {
        let message = "standard output is the journal, which would keep the token: redirect standard output to a pipe or \
                       a file, or let the program that needs the token run `tokenctl get` or use the client library";
        Self::new(2, "journal", message)
    }

    /// A command cannot be run.
    pub(crate) fn exec(program: &OsStr, error: &io::Error) -> Self {
        let exit = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        Self::new(exit, "exec", &format!("cannot run {}: {error}", program.display()))
    }

    /// There is no terminal, or it cannot be used.
    pub(crate) fn terminal(message: &str) -> Self {
        Self::new(2, "terminal", message)
    }

    /// Another program asks for something that it does not get.
    pub(crate) fn helper(message: &str) -> Self {
        Self::new(2, "usage", message)
    }

    /// An error of usage. The first line of clap's message is the reason.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        Self::new(2, "usage", first.trim_start_matches("error: "))
    }

    /// The daemon's answer cannot be used.
    pub(crate) fn protocol(message: &str) -> Self {
        Self::new(1, "protocol", message)
    }

    /// The same failure after an output that is JSON already.
    pub(crate) fn without_json(self) -> Self {
        Self { code: "output", ..self }
    }

    fn new(exit: u8, code: &'static str, message: &str) -> Self {
        Self { exit, code, message: clean(message), class: None, next_attempt: None, best_ttl: None }
    }

    /// Reports the failure on standard error, and with `--json` on standard output too.
    pub(crate) fn report(&self, json: bool) {
        if self.message.is_empty() {
            return;
        }
        if json && self.code != "output" {
            self.report_json();
        }
        let _ = writeln!(io::stderr().lock(), "tokenctl: {}", self.message);
    }

    /// Reports the failure as JSON on standard output.
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
        Error::NeedsOperator { .. } => (7, "needs-operator"),
        Error::DeadlineExceeded { .. } => (8, "deadline-exceeded"),
        Error::InvalidRequest { .. } => (2, "invalid-request"),
        // A retry would not help.
        Error::MinTtlUnreachable { .. } => (2, "min-ttl-unreachable"),
        Error::UnsupportedVersion { .. } => (1, "unsupported-version"),
        Error::UnknownRequest { .. } => (1, "unknown-request"),
        _ => (1, "protocol"),
    }
}

/// Whether the error is about the token.
fn names_a_token(error: &Error) -> bool {
    use Error::{NotReachable, Overloaded, Protocol, ShuttingDown, UnknownRequest, UnsupportedVersion};
    !matches!(
        error,
        NotReachable { .. }
            | Overloaded { .. }
            | Protocol { .. }
            | ShuttingDown { .. }
            | UnsupportedVersion { .. }
            | UnknownRequest { .. }
    )
}

/// The message of an error, and what to do.
fn advice(error: &Error, subject: &str) -> String {
    match error {
        Error::NotReachable { socket, cause } => not_reachable(socket, cause),
        // The daemon's message is the same for a refusal and for a token that does not exist.
        Error::NotAllowed { message } => {
            format!(
                "{message} (user {}); an operator can find out why with `tokenctl explain --user` or `--unit`",
                user()
            )
        }
        Error::UnknownToken { .. } => "no such token; `tokenctl status` lists all tokens".to_owned(),
        Error::Unavailable { message, next_attempt, .. } => {
            format!("{message}; try again {}", when(*next_attempt))
        }
        Error::NeedsOperator { message, class, next_attempt } => {
            let remedy = class.map_or("correct the configuration", remedy);
            if Uid::effective().is_root() {
                let next = next_attempt.map(|_| format!("; the daemon asks again {}", when(*next_attempt)));
                let next = next.unwrap_or_default();
                format!(
                    "{message}; {remedy}{next}; once put right: `tokenctl refresh {subject}`; see `tokenctl status \
                     {subject}` and the daemon's journal"
                )
            } else {
                format!("{message}; an operator must act: {remedy}")
            }
        }
        Error::DeadlineExceeded { message } => {
            format!("{message}; try again, or wait longer with --deadline")
        }
        Error::Overloaded { message, next_attempt } => {
            format!("{message}; try again {} with fewer requests at once", when(*next_attempt))
        }
        Error::ShuttingDown { message } => format!("{message}; try again in a moment"),
        Error::MinTtlUnreachable { message, best } => {
            let most = best.map(|best| format!(", {} at most", duration(best))).unwrap_or_default();
            format!("{message}; ask for less with --min-ttl{most}")
        }
        Error::UnsupportedVersion { message } => format!("{message}; upgrade tokenctl or the daemon"),
        Error::UnknownRequest { message } => format!("{message}; upgrade the daemon"),
        Error::InvalidRequest { message } => message.clone(),
        other => format!("{other}; does another program listen at the socket?"),
    }
}

/// When to try again.
fn when(next_attempt: Option<SystemTime>) -> String {
    match next_attempt.map_or(Duration::ZERO, |time| until(time, SystemTime::now())) {
        wait if wait.as_secs() == 0 => "in a moment".to_owned(),
        wait => format!("in {}", duration(wait)),
    }
}

/// The remedy for a class of failure, for an operator.
pub(crate) fn remedy(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Unreachable => {
            "check DNS, routing and firewall towards the provider; the daemon tries again by itself"
        }
        ErrorClass::Timeout | ErrorClass::Server => "wait for the provider; the daemon tries again by itself",
        ErrorClass::Tls => {
            "check the provider's certificate, the `ca_file` and the clock of this host; the daemon tries again by itself"
        }
        ErrorClass::Throttled => "wait; the daemon tries again by itself, when the provider permits it",
        ErrorClass::Malformed => {
            "check that the endpoint is a token endpoint; the daemon tries again by itself"
        }
        ErrorClass::Refused => {
            "compare client, secret, grant and scopes with the provider's records; correct the configuration and \
             `systemctl reload tokend`, or correct the secret and `systemctl restart tokend`"
        }
        ErrorClass::Secret => {
            "the daemon cannot read a secret on this host and sent no request: make the secret readable to the \
             daemon's user; for a systemd credential, `systemctl restart tokend`"
        }
        ErrorClass::Internal => "see the daemon's journal, and report the fault",
    }
}

fn not_reachable(socket: &Path, cause: &io::Error) -> String {
    let socket = socket.display();
    let elsewhere =
        format!("see `systemctl status tokend`, or name another socket with --socket or {SOCKET_VARIABLE}");
    match cause.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "no permission to connect to {socket}: user {} may lack the socket's group; compare `ls -l {socket}` with `id`",
            user()
        ),
        io::ErrorKind::NotFound => format!("no daemon at {socket}: there is no such socket; {elsewhere}"),
        io::ErrorKind::ConnectionRefused => {
            format!("no daemon at {socket}: no program listens there; {elsewhere}")
        }
        _ => format!("the daemon at {socket} cannot be reached: {cause}; {elsewhere}"),
    }
}

/// The effective user, as the daemon sees it. The C library would load modules to find the name, which a static program must
/// not do.
fn user() -> String {
    let uid = Uid::effective().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        fields.next().filter(|_| fields.nth(1) == Some(uid.as_str()))
    });
    name.map_or(uid.clone(), str::to_owned)
}

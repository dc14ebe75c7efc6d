//! The values of options, and how they are read.

use std::net::SocketAddr;

use clap::ValueEnum;
use tokend_client::{State, Subject, Variant};

/// A condition to wait for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Condition {
    /// Valid and not due for renewal.
    Fresh,
    /// Valid, even if the last attempt to renew it failed.
    Valid,
}

impl Condition {
    /// Whether a token in this state meets the condition.
    pub(crate) fn is_met_by(self, state: State) -> bool {
        match self {
            Self::Fresh => state == State::Fresh,
            Self::Valid => state.is_valid(),
        }
    }

    /// The condition as on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Valid => "valid",
        }
    }
}

/// The shells with completions.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, as in --header Requestor-ID=4711".to_owned()),
    }
}

pub(super) fn header_line(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.trim().to_owned())),
        _ => Err("expected NAME: VALUE, as in -H 'Requestor-ID: 4711'".to_owned()),
    }
}

pub(super) fn variable(name: &str) -> Result<String, String> {
    match name {
        "" => Err("expected the name of a variable".to_owned()),
        _ if name.contains('=') => Err("the name of a variable has no =".to_owned()),
        _ => Ok(name.to_owned()),
    }
}

pub(super) fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        _ => Err("expected a loopback address with a port, as in 127.0.0.1:9464 or [::1]:9464".to_owned()),
    }
}

/// The subject of a decision.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(crate) struct SubjectArgs {
    /// A user by name or number, with its groups but without a unit or executable; for operators.
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// A running process; for operators.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,

    /// Any process of a systemd unit, without a user; for operators.
    #[arg(long, value_name = "UNIT")]
    unit: Option<String>,
}

impl From<&SubjectArgs> for Subject {
    fn from(args: &SubjectArgs) -> Self {
        let user = args.user.clone().map(Self::User);
        let unit = args.unit.clone().map(Self::Unit);
        user.or(unit).or(args.pid.map(Self::Process)).unwrap_or(Self::Caller)
    }
}

/// The variant of a token, within what the configuration permits.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct VariantArgs {
    /// Only these scopes, separated by spaces.
    #[arg(long, value_name = "SCOPES")]
    scope: Option<String>,

    /// For this resource; may be given several times.
    #[arg(long, value_name = "RESOURCE")]
    resource: Vec<String>,

    /// For this audience; may be given several times.
    #[arg(long, value_name = "AUDIENCE")]
    audience: Vec<String>,
}

impl From<&VariantArgs> for Variant {
    fn from(args: &VariantArgs) -> Self {
        let scope = args.scope.iter().flat_map(|scopes| scopes.split_whitespace().map(str::to_owned));
        Self { scope: scope.collect(), resource: args.resource.clone(), audience: args.audience.clone() }
    }
}

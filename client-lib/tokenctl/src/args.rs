//! What can be written on the command line. Help, completions and manual pages are made of it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum, ValueHint};
use tokend_client::{DEFAULT_SOCKET, Fingerprint, SOCKET_VARIABLE, State, Subject, TokenName, Variant};

macro_rules! exit_status {
    () => {
        "  0  done
  1  an answer that is not understood, or output that cannot be written
  2  usage, such as a token name that cannot be one, a missing header, or a --min-ttl that no token reaches
  3  the daemon is not reachable
  4  not allowed, or (to anyone but an operator) no such token
  5  no such token (operators: root, the daemon's user, those that its configuration names)
  6  no token now, worth a retry
  7  the provider refuses, an operator is needed
  8  the deadline passed"
    };
}

/// The exit statuses, for the manual.
pub(crate) const EXIT_STATUS: &str = exit_status!();

const AFTER_HELP: &str = concat!(
    "Exit status:\n",
    exit_status!(),
    "\n\nDurations are written as 90s, 5m or 1h 30m. Colours are used on a terminal only, and never where \
     NO_COLOR is set."
);

/// Access tokens from the tokend of this host.
#[derive(Debug, Parser)]
#[command(name = "tokenctl", version, after_long_help = AFTER_HELP)]
pub struct Args {
    /// The daemon's socket.
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    #[arg(env = SOCKET_VARIABLE, default_value = DEFAULT_SOCKET)]
    socket: OsString,

    /// Print JSON of a stable shape, on errors too.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// How long to wait in all; 0s asks only for what the daemon holds.
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) deadline: Duration,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print an access token, and nothing else.
    Get {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// The least remaining lifetime with which the token is of use.
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
        min_ttl: Duration,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Print all headers of an API call, one per line, as `curl -H @-` reads them.
    Headers {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// The value of a header that the configuration leaves to the caller.
        #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
        supplied: Vec<(String, String)>,

        /// Do without a header that the configuration leaves to the caller.
        #[arg(long, value_name = "NAME")]
        without: Vec<String>,

        /// The least remaining lifetime with which the token is of use.
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
        min_ttl: Duration,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// List the tokens that you may have; where not on a terminal, the names alone.
    List,

    /// Show the condition of the daemon and of every token that you may see.
    Status {
        /// Show also providers, failures in full, how providers depart from the standard, and further facts.
        #[arg(long, short)]
        verbose: bool,
    },

    /// Ask the provider for a new token now, whatever the schedule says; for operators.
    Refresh {
        /// The token's name in the daemon's configuration.
        name: TokenName,
    },

    /// Report that an API refused a token.
    Reject {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// Which token it was, as `get --json` tells; the one now held, if left out.
        #[arg(long)]
        fingerprint: Option<Fingerprint>,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Tell the condition of tokens now and at every change, until interrupted.
    Watch {
        /// The tokens' names in the daemon's configuration.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<TokenName>,
    },

    /// Wait until a token is in a condition, and print nothing; status 8 if it is not so before the deadline.
    Wait {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// What to wait for.
        #[arg(long = "for", value_name = "CONDITION")]
        condition: Condition,
    },

    /// Tell why you may have a token, or (to operators) why a user or a process may have it or not.
    ///
    /// Which rule decides, how each of the rules fares, and the facts about user, groups, units and program that they
    /// were held against. The exit status is 0 whatever the decision is; --json tells it as "decision".
    Explain {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        #[command(flatten)]
        subject: SubjectArgs,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Show the versions of this program and of the daemon.
    Version,

    /// Print the completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },

    /// Print the manual page, or write the pages of all commands into a directory.
    Man {
        /// An existing directory.
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Condition {
    /// Valid, and no new one is due.
    Fresh,
    /// Valid, whether or not it could be renewed.
    Valid,
}

impl Condition {
    /// Whether a token in this state is so.
    pub(crate) fn is_met_by(self, state: State) -> bool {
        match self {
            Self::Fresh => state == State::Fresh,
            Self::Valid => matches!(state, State::Fresh | State::Refreshing | State::Degraded),
        }
    }

    /// The condition as the command line has it.
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

impl Args {
    /// The daemon's socket. A variable that is set to nothing counts as not set.
    pub(crate) fn socket(&self) -> PathBuf {
        let set = Some(&self.socket).filter(|path| !path.is_empty());
        set.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from)
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, as in --header Requestor-ID=4711".to_owned()),
    }
}

/// Whom a decision is about.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(crate) struct SubjectArgs {
    /// A user by name or number, with its groups and without any unit or program; for operators.
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// A process that runs now; for operators.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

impl From<&SubjectArgs> for Subject {
    fn from(args: &SubjectArgs) -> Self {
        let user = args.user.clone().map(Self::User);
        user.or(args.pid.map(Self::Process)).unwrap_or(Self::Caller)
    }
}

/// The form in which a token is wanted, out of what the configuration lets callers choose.
#[derive(Debug, clap::Args)]
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

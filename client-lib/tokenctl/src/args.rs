//! The command line. Help, completions and manual pages come from these definitions.

mod examples;
mod helper;
mod sync;
mod values;

use std::env;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueHint};
use tokend_client::{DEFAULT_DEADLINE, DEFAULT_SOCKET, Fingerprint, SOCKET_VARIABLE, TokenName};

pub(crate) use self::helper::Helper;
pub(crate) use self::sync::{Format, SyncArgs};
pub(crate) use self::values::{Condition, Shell, SubjectArgs, VariantArgs};
use self::values::{header, header_line, loopback, variable};

macro_rules! exit_status {
    () => {
        "  0  success
  1  tokenctl and the daemon do not understand each other, or the output cannot be written
  2  usage: an invalid token name, a missing header, a --min-ttl that no token reaches, a token printed to the journal
  3  the daemon is not reachable
  4  not allowed (explain: the decision is deny), or no such token
  5  no such token (only for operators: root, the daemon's user, [admin] allow)
  6  no token now, too many requests, or nothing was replaced (reject); try again
  7  an operator is needed: the provider refuses or is not trusted, or a secret on this host cannot be read
  8  the deadline passed

`exec` ends as its command does. It exits with 127 if there is no such command, and with 126 if it cannot be run.
`sync`, `top` and `metrics --listen` exit with 0 when SIGTERM or SIGINT stops them.
`status --exit-status` exits with 0 if every token is valid, with 7 if a token needs an operator, else with 6."
    };
}

/// The exit statuses, for the manual page.
pub(crate) const EXIT_STATUS: &str = exit_status!();

const AFTER_HELP: &str = concat!(
    "Exit status:\n",
    exit_status!(),
    "\n\nDurations are written as 90s, 5m or 1h 30m. Colours appear only on a terminal, and never \
     if NO_COLOR is set."
);

/// Gets access tokens from the tokend daemon of this host.
#[derive(Debug, Parser)]
#[command(name = "tokenctl", version, after_long_help = AFTER_HELP)]
pub struct Args {
    /// The daemon's socket.
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    #[arg(env = SOCKET_VARIABLE, default_value = DEFAULT_SOCKET)]
    socket: OsString,

    /// Print JSON, also for errors.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// The longest time for the whole call; with 0s the daemon does not wait for a provider.
    #[arg(long, visible_alias = "timeout", global = true, value_name = "DURATION", default_value = "10s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) deadline: Duration,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print an access token and nothing else.
    #[command(after_help = examples::GET)]
    Get {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// The shortest remaining lifetime to accept.
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
        min_ttl: Duration,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Print all headers of an API call, one per line, for `curl -H @-`.
    #[command(after_help = examples::HEADERS)]
    Headers {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// The value of one of the token's `caller_headers`.
        #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
        supplied: Vec<(String, String)>,

        /// The same, written as a header line.
        #[arg(short = 'H', value_name = "NAME: VALUE", value_parser = header_line)]
        lines: Vec<(String, String)>,

        /// Leave out one of the token's `caller_headers`.
        #[arg(long, value_name = "NAME")]
        without: Vec<String>,

        /// The shortest remaining lifetime to accept.
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
        min_ttl: Duration,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Run a command with a token in its environment.
    ///
    /// The token stays the same for as long as the command runs. All processes of the same user can read the environment of the
    /// command.
    #[command(after_help = examples::EXEC)]
    Exec {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// The environment variable for the token.
        #[arg(long, value_name = "VARIABLE", default_value = "TOKEN", value_parser = variable)]
        env: String,

        /// The shortest remaining lifetime to accept.
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
        min_ttl: Duration,

        #[command(flatten)]
        variant: VariantArgs,

        /// The command, with its arguments.
        #[arg(last = true, required = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
        command: Vec<OsString>,
    },

    /// Keep a token in a file: write it now and at each rotation, until interrupted.
    ///
    /// Each write replaces the whole file at once. If there is no newer token (the daemon refuses it, or it expired while the
    /// provider fails), the file keeps the last one and standard error says why: a missing file would stop its readers, while
    /// an old token costs them a refusal of the API.
    ///
    /// --deadline has no effect: it waits for the daemon and for the first token as long as it takes. Before the first token, a
    /// failure that does not pass by itself ends it.
    #[command(after_help = examples::SYNC)]
    Sync(SyncArgs),

    /// Give a token to another program, in the way in which that program asks for credentials.
    #[command(subcommand)]
    Helper(Helper),

    /// List the tokens that you may read; in a pipe, only their names.
    #[command(after_help = examples::LIST)]
    List,

    /// Show the status of the daemon and its tokens, or everything about one token.
    #[command(after_help = examples::STATUS)]
    Status {
        /// Show only this token, with the reason of a failure and the remedy.
        name: Option<TokenName>,

        /// Show everything about every token.
        #[arg(long, short)]
        verbose: bool,

        /// Exit with 6 or 7 if a token is not valid.
        #[arg(long)]
        exit_status: bool,
    },

    /// Show all tokens in a table that is kept current, those that need attention first; `q` ends it.
    #[command(after_help = examples::TOP)]
    Top,

    /// Print the status as metrics of Prometheus, or serve them.
    ///
    /// The text is for the textfile collector of `node_exporter`. With --listen, Prometheus gets it over HTTP from
    /// /metrics, as `OpenMetrics` if it asks for that; then an unreachable daemon is `tokend_up 0`. There are metrics of each token
    /// that you may see, by name and provider. With more than 1000 tokens there is only `tokend_tokens`, their number by provider
    /// and state.
    #[command(after_help = examples::METRICS)]
    Metrics {
        /// Serve at this loopback address, until interrupted. Every local user can connect, and sees the names of the tokens.
        #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:9464")]
        #[arg(value_parser = loopback)]
        listen: Option<SocketAddr>,
    },

    /// Ask the provider for a new token now, whatever the schedule says; for operators.
    #[command(after_help = examples::REFRESH)]
    Refresh {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Report that an API refused a token; exits with 6 if the token was not replaced.
    #[command(after_help = examples::REJECT)]
    Reject {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// The fingerprint of the refused token, from `get --json`; by default that of the current token.
        #[arg(long)]
        fingerprint: Option<Fingerprint>,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Print the condition of tokens now and at every change, until interrupted.
    #[command(after_help = examples::WATCH)]
    Watch {
        /// The tokens' names in the daemon's configuration.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<TokenName>,
    },

    /// Wait until a token is fresh or valid, and print nothing; exits with 8 on timeout.
    #[command(after_help = examples::WAIT)]
    Wait {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// The condition to wait for.
        #[arg(long = "for", value_name = "CONDITION")]
        condition: Condition,
    },

    /// Explain why you may read a token, or (for operators) why a user, process or unit may or may not.
    ///
    /// Shows the decision, each rule with its result, and the user, groups, unit and executable that were compared with
    /// the rules. Exits with 4 if the decision is deny.
    #[command(after_help = examples::EXPLAIN)]
    Explain {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        #[command(flatten)]
        subject: SubjectArgs,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Show the versions of this program and of the daemon.
    ///
    /// Without a daemon, it shows its own version, and exits with 3.
    #[command(after_help = examples::VERSION)]
    Version,

    /// Print the completions for a shell.
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell.
        shell: Shell,
    },

    /// Print the manual page, or write the pages of all commands into a directory.
    #[command(after_help = examples::MAN)]
    Man {
        /// An existing directory.
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

impl Args {
    /// Reads a command line. The first argument is the program's own name.
    pub fn read(args: &[OsString]) -> Result<Self, clap::Error> {
        Self::plain_get(args).map_or_else(|| Self::try_parse_from(args), Ok)
    }

    /// `tokenctl [--socket PATH] get NAME`. The definitions of the whole command line take longer to build than all the rest of
    /// such a call.
    fn plain_get(args: &[OsString]) -> Option<Self> {
        let (socket, verb, name) = match args {
            [_, verb, name] => (None, verb, name),
            [_, option, path, verb, name] if option == "--socket" => (Some(path), verb, name),
            _ => return None,
        };
        // The definitions read options, and report a name that is not valid.
        let looks_like_option = |word: &OsString| word.as_encoded_bytes().starts_with(b"-");
        if verb != "get" || looks_like_option(name) || socket.is_some_and(looks_like_option) {
            return None;
        }
        let socket = socket.cloned().or_else(|| env::var_os(SOCKET_VARIABLE));
        let command = Command::Get {
            name: name.to_str()?.parse().ok()?,
            min_ttl: Duration::ZERO,
            variant: VariantArgs::default(),
        };
        let socket = socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
        Some(Self { socket, json: false, deadline: DEFAULT_DEADLINE, command })
    }

    /// The daemon's socket. A variable that is set to nothing counts as not set.
    pub(crate) fn socket(&self) -> PathBuf {
        let set = Some(&self.socket).filter(|path| !path.is_empty());
        set.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_plain_get_is_read_as_the_definitions_read_it() {
        for line in [
            "tokenctl get psb",
            "tokenctl get help",
            "tokenctl --socket /run/other.sock get psb",
            "tokenctl --socket get get psb",
        ] {
            let plain = Args::plain_get(&words(line)).expect(line);
            let defined = Args::try_parse_from(words(line)).expect(line);
            assert_eq!(format!("{plain:?}"), format!("{defined:?}"));
        }
    }

    #[test]
    fn the_definitions_read_everything_else() {
        for line in [
            "tokenctl get",
            "tokenctl get -h",
            "tokenctl get --help",
            "tokenctl get a/b",
            "tokenctl get psb --json",
            "tokenctl --json get psb",
            "tokenctl --socket -x get psb",
            "tokenctl --socket=/run/other.sock get psb",
            "tokenctl help get",
        ] {
            assert!(Args::plain_get(&words(line)).is_none(), "{line}");
        }
    }
}

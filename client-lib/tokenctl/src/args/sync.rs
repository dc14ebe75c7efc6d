//! The arguments of `tokenctl sync`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ValueEnum, ValueHint};
use tokend_client::TokenName;

use super::VariantArgs;

#[derive(Debug, clap::Args)]
pub(crate) struct SyncArgs {
    /// The token's name in the daemon's configuration.
    pub(crate) name: TokenName,

    /// The file to write, in an existing directory.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,

    /// The content of the file.
    #[arg(long, value_name = "FORMAT", default_value = "token")]
    pub(crate) format: Format,

    /// The mode of the file, such as 0640 for readers in its group.
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = mode)]
    pub(crate) mode: u32,

    /// A command to run after each write; all words after it belong to the command.
    ///
    /// If it fails, standard error says so. Writes do not wait for it: after a write during its run, it runs once more.
    #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true)]
    #[arg(value_hint = ValueHint::CommandName)]
    pub(crate) then: Vec<OsString>,

    #[command(flatten)]
    pub(crate) variant: VariantArgs,
}

/// The content of a file with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The token and nothing else, without a newline.
    Token,
    /// A line `Authorization: Bearer TOKEN`.
    Header,
    /// The output of `tokenctl get --json`. The lifetimes in it are those at the time of writing.
    Json,
    /// A line `TOKEN=...`, for an environment file.
    Env,
}

/// A mode that gives nothing to other users.
fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode & !0o660 == 0 && mode & 0o400 != 0 => Ok(mode),
        _ => {
            Err("expected 0600, 0640, 0660 or a part of it: the file is for its owner and its group"
                .to_owned())
        }
    }
}

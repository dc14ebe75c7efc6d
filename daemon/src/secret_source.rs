//! Where a secret is kept. It is read at each use, so that rotating it needs no restart.

use std::path::PathBuf;

/// A place that holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// `{ credential = "NAME" }`: a systemd credential, in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// `{ file = "/PATH" }`.
    File(PathBuf),
    /// `{ env = "NAME" }`: a variable of the daemon's environment.
    Environment(String),
    /// `{ command = ["PROGRAM", "ARGUMENT"] }`: the standard output of a program run without a shell.
    Command(Vec<String>),
}

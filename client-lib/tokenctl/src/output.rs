//! Standard output and standard error. A text that cannot be written is an error and never a panic.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use crate::failure::Failure;
use crate::human::clean;

/// Writes a whole text.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| Failure::output(&error))
}

/// Writes a message to standard error.
pub(crate) fn complain(message: &str) {
    let _ = writeln!(io::stderr().lock(), "tokenctl: {}", clean(message));
}

/// Fails if standard output is the journal, which would keep a token for everyone who may read it.
pub(crate) fn refuse_the_journal() -> Result<(), Failure> {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return Ok(()) };
    let own = io::stdout().as_fd().try_clone_to_owned().and_then(|stdout| File::from(stdout).metadata());
    match own {
        Ok(own) if format!("{}:{}", own.dev(), own.ino()) == stream => Err(Failure::journal()),
        _ => Ok(()),
    }
}

/// Whether standard output is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether to use colours: on a terminal that has them, unless `NO_COLOR` is set.
pub(crate) fn takes_colour() -> bool {
    let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !declined && !is_dumb() && is_terminal()
}

/// Whether the terminal takes only plain text.
pub(crate) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term == "dumb")
}

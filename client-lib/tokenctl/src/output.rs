//! Standard output: whole texts, whose loss is an error but never a panic.

use std::io::{self, IsTerminal, Write};

use crate::failure::Failure;

/// Writes a whole text.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| Failure::output(&error))
}

/// Whether a person reads along.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether colours are in place: on a terminal that knows them, for somebody who has not declined.
pub(crate) fn takes_colour() -> bool {
    let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    !declined && !dumb && is_terminal()
}

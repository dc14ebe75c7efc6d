//! How the demonstration looks: a line for each step, coloured on a terminal alone.

use std::env;
use std::io::{self, IsTerminal, Write};

/// Standard output as a person sees it.
pub(crate) struct Screen {
    colours: bool,
}

/// How a text is to be seen.
#[derive(Clone, Copy)]
pub(crate) enum Ink {
    /// As the terminal's own text.
    Plain,
    /// Headings.
    Strong,
    /// Remarks.
    Faint,
    /// What went well.
    Good,
    /// What did not.
    Bad,
}

impl Ink {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "\x1b[1m",
            Self::Faint => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
        }
    }
}

impl Screen {
    /// With colours on a terminal, unless `NO_COLOR` is set.
    pub(crate) fn new() -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colours: io::stdout().is_terminal() && !unwanted }
    }

    /// A text in an ink, for use within a line.
    pub(crate) fn paint(&self, ink: Ink, text: &str) -> String {
        match ink {
            Ink::Plain => text.to_owned(),
            _ if !self.colours => text.to_owned(),
            ink => format!("{}{text}\x1b[0m", ink.code()),
        }
    }

    /// The heading of a step.
    pub(crate) fn heading(&self, text: &str) {
        line("");
        line(&self.paint(Ink::Strong, text));
    }

    /// A line below a heading.
    pub(crate) fn item(&self, ink: Ink, text: &str) {
        line(&format!("  {}", self.paint(ink, text)));
    }

    /// What a program printed, below a heading.
    pub(crate) fn quote(&self, text: &str) {
        for line in text.lines() {
            self.item(Ink::Plain, line);
        }
    }
}

/// A line as it is.
pub(crate) fn line(text: &str) {
    // Nobody is left to be told where standard output is closed; the exit code still tells.
    let _ = writeln!(io::stdout(), "{text}");
}

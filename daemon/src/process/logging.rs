//! Where events go: the journal with fields and priorities, text for a person, or JSON for a collector.
//!
//! Whoever reports an event never waits for any of them: see `logging/outbox.rs`.

mod journal;
mod outbox;

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use self::journal::Journal;
pub use self::outbox::Flush;
use self::outbox::Outbox;
use crate::process::systemd;

/// The target of the audit trail ([`crate::server::audit`]).
const AUDIT: &str = "tokend::server::audit";

/// The form of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// The journal where standard error leads there, text everywhere else.
    #[default]
    Auto,
    /// A line of text for each event, coloured on a terminal.
    Text,
    /// A JSON object on a line for each event.
    Json,
    /// The journal's own protocol: `TOKEND_` fields, levels as priorities.
    Journal,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A filter that cannot be understood.
    #[error(
        "--log-level {0:?} is neither a level (error, warn, info, debug, trace) nor a list of target=level"
    )]
    BadFilter(String),
    /// The operating system gives no thread.
    #[error("starting the log: {0}")]
    System(#[from] io::Error),
}

type Output = Box<dyn Layer<Registry> + Send + Sync>;

/// Sends all events of the process on their way. `filter` is a level or a list of `target=level`. What is
/// returned belongs at the end of `main`.
pub fn start(format: LogFormat, filter: &str) -> Result<Flush, LogError> {
    let filter = with_audit(filter)?;
    let (output, flush) = output(format)?;
    // Fails only where a test has already installed a subscriber of its own.
    let _ = tracing_subscriber::registry().with(output).with(filter).try_init();
    Ok(flush)
}

/// The filter, which keeps the audit trail unless it names it: an operator who wants fewer messages does not
/// mean to lose the record of who was given what.
fn with_audit(filter: &str) -> Result<EnvFilter, LogError> {
    let names_audit = filter.split(',').any(|directive| directive.starts_with(AUDIT));
    let complete = if names_audit { filter.to_owned() } else { format!("{filter},{AUDIT}=info") };
    EnvFilter::try_new(complete).map_err(|_| LogError::BadFilter(filter.to_owned()))
}

fn output(format: LogFormat) -> io::Result<(Output, Flush)> {
    match format {
        LogFormat::Auto if systemd::stderr_is_journal() => journal(),
        LogFormat::Auto | LogFormat::Text => text(),
        LogFormat::Json => json(),
        LogFormat::Journal => journal(),
    }
}

fn text() -> io::Result<(Output, Flush)> {
    let colours =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (outbox, flush) = Outbox::start(to_stderr)?;
    Ok((fmt::layer().with_ansi(colours).with_writer(move || outbox.clone()).boxed(), flush))
}

fn json() -> io::Result<(Output, Flush)> {
    let (outbox, flush) = Outbox::start(to_stderr)?;
    Ok((fmt::layer().json().flatten_event(true).with_writer(move || outbox.clone()).boxed(), flush))
}

fn journal() -> io::Result<(Output, Flush)> {
    // Without the journal's socket its standard error still takes text.
    let Ok(connection) = journal::connect(journal::SOCKET) else { return text() };
    let (outbox, flush) = Outbox::start(connection)?;
    Ok((Journal::new(outbox).boxed(), flush))
}

fn to_stderr(event: &[u8]) -> io::Result<()> {
    io::stderr().write_all(event)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::access::Facts;
    use crate::access::Reason;
    use crate::server::audit::{Audit, Operation};

    /// What is left of an audit record and of a message at `info` after a filter.
    fn logged(filter: &str) -> String {
        let peer = Facts { uid: 7, gid: 7, ..Facts::default() };
        let written = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&written);
        let (outbox, flush) = Outbox::start(move |event| seen.lock().unwrap().write_all(event)).unwrap();
        let layer = fmt::layer().with_ansi(false).without_time().with_writer(move || outbox.clone());
        let subscriber = tracing_subscriber::registry().with(layer).with(with_audit(filter).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            Audit::default().allowed(&peer, Operation::Reject, &"t".parse().unwrap(), &Reason::Root);
            tracing::info!("of interest");
        });
        drop(flush);
        String::from_utf8(written.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn the_audit_trail_stays_whatever_else_is_silenced() {
        for filter in ["error", "warn", "off", "tokend=warn", "warn,tokend::server::session=debug"] {
            let logged = logged(filter);
            assert!(
                logged.contains("allowed to uid 7") && !logged.contains("of interest"),
                "{filter}: {logged}"
            );
        }
        assert!(logged("trace").contains("allowed to uid 7"));
    }

    #[test]
    fn a_filter_that_names_the_audit_trail_is_obeyed() {
        for filter in ["tokend::server::audit=off", "info,tokend::server::audit=warn"] {
            assert!(!logged(filter).contains("allowed to uid 7"), "{filter}");
        }
    }

    #[test]
    fn a_filter_that_is_none_is_refused_as_it_was_written() {
        let refused = with_audit("loud=very").unwrap_err().to_string();
        assert!(refused.contains("\"loud=very\""), "{refused}");
    }
}

//! The log: the journal with fields and priorities, text for a person, or JSON for a collector. An event never waits for it.

mod journal;
mod outbox;

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use self::journal::Journal;
pub use self::outbox::Flush;
use self::outbox::Outbox;
use crate::process::systemd;

/// The format of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// The journal if standard error is connected to it, otherwise text.
    Auto,
    /// One line of text per event, coloured on a terminal.
    Text,
    /// One line per event, with a JSON object.
    Json,
    /// The journal's own protocol, with `TOKEND_` fields and levels as priorities.
    Journal,
}

/// Starts the log of this process. `filter` is a level or a list of `target=level`. Keep the result until the end.
pub fn start(format: LogFormat, filter: &str) -> io::Result<Flush> {
    let filter = complete(filter)?;
    let wants_journal =
        format == LogFormat::Journal || format == LogFormat::Auto && systemd::stderr_is_journal();
    // Without the journal's socket, standard error still takes text.
    let (output, flush) = if wants_journal && let Ok(write) = journal::connect("/run/systemd/journal/socket")
    {
        let (outbox, flush) = Outbox::start(write)?;
        (Journal(outbox).boxed(), flush)
    } else {
        let (outbox, flush) = Outbox::start(|event: &[u8]| io::stderr().write_all(event))?;
        let lines = fmt::layer().with_writer(move || outbox.clone());
        let wants_no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let lines = match format {
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
            _ => lines.with_ansi(io::stderr().is_terminal() && !wants_no_colour).boxed(),
        };
        (lines, flush)
    };
    // Fails only where a test has already installed a subscriber of its own.
    let _ = tracing_subscriber::registry().with(output).with(filter).try_init();
    Ok(flush)
}

/// The filter with the audit trail, if it does not name that: `--log-level error` must not lose the record of hand-outs. And
/// without `h2`, which at `debug` logs the words with which a server closes a connection.
fn complete(filter: &str) -> io::Result<Targets> {
    let directives = || filter.split(',').map(str::trim_start);
    let audit = (!directives().any(|directive| directive.starts_with("tokend::server::audit")))
        .then_some("tokend::server::audit=info");
    let others = directives().filter(|directive| !directive.starts_with("h2"));
    let complete = others.chain(audit).chain(["h2=off"]).collect::<Vec<_>>().join(",");
    let wanted = "neither a level (error, warn, info, debug, trace) nor a list of target=level";
    complete.parse().map_err(|_| io::Error::other(format!("--log-level {filter:?} is {wanted}")))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::access::Facts;
    use crate::server::audit::{Audit, Operation, Record};

    /// The log of an audit record and a message at `info` with a filter.
    fn logged(filter: &str) -> String {
        let peer = Facts { uid: 7, gid: 7, ..Facts::default() };
        let written = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&written);
        let (outbox, flush) = Outbox::start(move |event| seen.lock().unwrap().write_all(event)).unwrap();
        let layer = fmt::layer().with_ansi(false).without_time().with_writer(move || outbox.clone());
        let subscriber = tracing_subscriber::registry().with(layer).with(complete(filter).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            Audit::default().record_as_it_is(&Record::new(&peer, Operation::Reject, None, Ok("root")));
            tracing::info!("of interest");
            tracing::debug!(target: "h2::codec::framed_read", "a server's words");
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
    fn the_words_with_which_a_server_closes_a_connection_are_not_logged() {
        for filter in ["trace", "info,h2=trace", "debug,h2::codec=debug"] {
            let logged = logged(filter);
            assert!(
                logged.contains("of interest") && !logged.contains("a server's words"),
                "{filter}: {logged}"
            );
        }
    }

    #[test]
    fn a_filter_that_names_the_audit_trail_applies_to_it() {
        for filter in ["tokend::server::audit=off", "info,tokend::server::audit=warn"] {
            assert!(!logged(filter).contains("allowed to uid 7"), "{filter}");
        }
    }

    #[test]
    fn a_filter_with_a_syntax_error_is_quoted_in_the_error() {
        let refused = complete("loud=very").unwrap_err().to_string();
        assert!(refused.contains("\"loud=very\""), "{refused}");
    }
}

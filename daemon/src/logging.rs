//! Where events go: the journal with fields and priorities, text for a person, or JSON for a collector.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::systemd;

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

/// A filter that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("--log-level {0:?} is neither a level (error, warn, info, debug, trace) nor a list of target=level")]
pub struct BadFilter(String);

/// Sends all events of the process on their way. `filter` is a level or a list of `target=level`.
pub fn start(format: LogFormat, filter: &str) -> Result<(), BadFilter> {
    let filter = EnvFilter::try_new(filter).map_err(|_| BadFilter(filter.to_owned()))?;
    // Fails only where a test has already installed a subscriber of its own.
    let _ = tracing_subscriber::registry().with(output(format)).with(filter).try_init();
    Ok(())
}

fn output(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    match format {
        LogFormat::Auto if systemd::stderr_is_journal() => journal(),
        LogFormat::Auto | LogFormat::Text => text(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(io::stderr).boxed(),
        LogFormat::Journal => journal(),
    }
}

fn text() -> Box<dyn Layer<Registry> + Send + Sync> {
    let colours =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    fmt::layer().with_ansi(colours).with_writer(io::stderr).boxed()
}

fn journal() -> Box<dyn Layer<Registry> + Send + Sync> {
    match tracing_journald::layer() {
        Ok(layer) => layer
            .with_field_prefix(Some("TOKEND".to_owned()))
            .with_syslog_identifier("tokend".to_owned())
            .boxed(),
        // Without the journal's socket its standard error still takes text.
        Err(_) => text(),
    }
}

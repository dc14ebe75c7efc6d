//! Where events go: to standard error, for a person or for the journal. There are so few that nobody waits for who reads
//! them.

use std::fmt;
use std::io;

use rustix::fs::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, fmt};
use tracing_subscriber::registry::LookupSpan;

/// Sends all events of the process on their way. `filter` is a level or a list of `target=level`.
pub fn start(filter: &str) -> Result<(), ParseError> {
    let lines = fmt().with_env_filter(EnvFilter::try_new(filter)?).with_writer(io::stderr).with_ansi(false);
    if stderr_is_journal() {
        lines.event_format(JournalLine).init();
    } else {
        lines.init();
    }
    Ok(())
}

/// Whether standard error is connected to the journal (systemd.exec(5), `JOURNAL_STREAM`).
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// A line that begins with its priority (sd-daemon(3)). The journal itself knows the time and who writes.
struct JournalLine;

impl<S, N> FormatEvent<S, N> for JournalLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// As syslog(3) counts them. What is told at `info` is for an operator to read: a notice, as of the daemon's.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 5,
        Level::DEBUG => 6,
        Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_journal_is_told_how_grave_each_event_is() {
        let written = Written::default();
        let out = written.clone();
        let lines = fmt().with_writer(move || out.clone()).with_ansi(false).event_format(JournalLine);
        tracing::subscriber::with_default(lines.finish(), || {
            tracing::info!(version = "1", "serving");
            tracing::warn!(host = "id.example\n<0>", "failed");
            tracing::error!("broken");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let expected = "<5>serving version=\"1\"\n<4>failed host=\"id.example\\n<0>\"\n<3>broken\n";
        assert_eq!(text, expected);
    }
}

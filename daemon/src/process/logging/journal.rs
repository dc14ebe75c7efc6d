//! Events in the journal's own protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): one datagram of fields per event.

use std::io;
use std::os::unix::net::UnixDatagram;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::outbox::Outbox;

/// The longest value in bytes; longer ones are cut, so that an event always fits into a datagram.
const VALUE_MAX: usize = 8 * 1024;

/// Returns a function that sends records to the journal, if the journal is there.
pub(super) fn connect(path: &str) -> io::Result<impl FnMut(&[u8]) -> io::Result<()> + Send + use<>> {
    let path = path.to_owned();
    // Fails if no journal listens. A journal that hangs counts as listening.
    UnixDatagram::unbound()?.connect(&path)?;
    let socket = UnixDatagram::unbound()?;
    // By path each time, because a restarted journal has another socket.
    Ok(move |record: &[u8]| socket.send_to(record, &path).map(|_| ()))
}

/// A layer that turns every event into a record.
pub(super) struct Journal(pub(super) Outbox);

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        // Priorities of syslog(3). `info` events are for operators, so they are notices.
        let priority = match *metadata.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "5",
            Level::DEBUG => "6",
            Level::TRACE => "7",
        };
        let mut record = Record::default();
        record.put("PRIORITY", priority);
        record.put("SYSLOG_IDENTIFIER", "tokend");
        record.put("TARGET", metadata.target());
        record.put("CODE_FILE", metadata.file().unwrap_or_default());
        record.put("CODE_LINE", &metadata.line().unwrap_or_default().to_string());
        event.record(&mut record);
        self.0.put(record.0);
    }
}

#[derive(Default)]
struct Record(Vec<u8>);

impl Record {
    /// Adds a field, with its length before the value: a value with line breaks forges no field.
    fn put(&mut self, name: &str, value: &str) {
        let end = (0..=value.len().min(VALUE_MAX)).rev().find(|end| value.is_char_boundary(*end));
        let value = value.get(..end.unwrap_or_default()).unwrap_or_default();
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }
}

impl Visit for Record {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.put("MESSAGE", value),
            name => self.put(&format!("TOKEND_{}", name.to_ascii_uppercase().replace('.', "_")), value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use tempfile::TempDir;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    struct Scene {
        journal: UnixDatagram,
        directory: TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let journal = UnixDatagram::bind(directory.path().join("socket")).unwrap();
            journal.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            Self { journal, directory }
        }

        /// Runs a function whose events go to the journal.
        fn run(&self, reporting: impl FnOnce()) {
            let path = self.directory.path().join("socket");
            let (outbox, flush) = Outbox::start(connect(path.to_str().unwrap()).unwrap()).unwrap();
            let subscriber = tracing_subscriber::registry().with(Journal(outbox));
            tracing::subscriber::with_default(subscriber, reporting);
            drop(flush);
        }

        /// The next record, as the journal reads it.
        fn record(&self) -> BTreeMap<String, String> {
            let mut datagram = vec![0; 256 * 1024];
            let size = self.journal.recv(&mut datagram).unwrap();
            let mut rest = &datagram[..size];
            let mut fields = BTreeMap::new();
            while !rest.is_empty() {
                let name_end = rest.iter().position(|byte| *byte == b'\n').unwrap();
                let name = String::from_utf8(rest[..name_end].to_vec()).unwrap();
                rest = &rest[name_end + 1..];
                let (length, after) = rest.split_first_chunk().unwrap();
                let (value, after) = after.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
                assert_eq!(after[0], b'\n');
                fields.insert(name, String::from_utf8(value.to_vec()).unwrap());
                rest = &after[1..];
            }
            fields
        }
    }

    #[test]
    fn an_event_is_a_record_of_fields() {
        let scene = Scene::new();
        scene.run(|| tracing::warn!(target: "tokend::server::audit", token = "t", uid = 7, unit = None::<&str>, retry.after = %"soon", "refused to uid 7"));
        let mut record = scene.record();
        assert!(record.remove("CODE_FILE").unwrap().ends_with("journal.rs"));
        assert!(record.remove("CODE_LINE").unwrap().parse::<u32>().is_ok());
        let expected = [
            ("MESSAGE", "refused to uid 7"),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "tokend"),
            ("TARGET", "tokend::server::audit"),
            ("TOKEND_RETRY_AFTER", "soon"),
            ("TOKEND_TOKEN", "t"),
            ("TOKEND_UID", "7"),
        ];
        assert_eq!(record, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn a_value_forges_no_field_and_is_cut_where_it_is_too_long() {
        let scene = Scene::new();
        let long = "é".repeat(VALUE_MAX);
        scene.run(|| tracing::info!(forged = "a\nPRIORITY=0\n", cut = long, "m"));
        let record = scene.record();
        assert_eq!((record["TOKEND_FORGED"].as_str(), record["PRIORITY"].as_str()), ("a\nPRIORITY=0\n", "5"));
        assert_eq!(record["TOKEND_CUT"], "é".repeat(VALUE_MAX / 2));
    }

    #[test]
    fn a_journal_that_hangs_delays_nobody() {
        let scene = Scene::new();
        // Nobody reads, and the kernel queues only a few. A log that waits would never return.
        scene.run(|| (0..50_000).for_each(|count| tracing::info!(count, "an event")));
    }

    #[test]
    fn without_a_journal_there_is_no_connection() {
        assert!(connect("/nonexistent/socket").is_err());
    }
}

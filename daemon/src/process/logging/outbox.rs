//! A bounded queue of events, and one thread that writes them. An event never waits for the log: behind a terminal, pipe or
//! journal that hangs, events are dropped, and their number is logged as soon as the log goes on.
//!
//! `tracing-appender` bounds lines instead of bytes, and with a log that hangs its guard may hang the end of the process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

/// Bytes of events in the queue at most: some ten thousand events.
const WAITING_MAX: usize = 4 * 1024 * 1024;

/// How long the end of the process waits for the last events to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The sending side of the queue. Each write is one event.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    queue: Sender<Vec<u8>>,
    /// Bytes in the queue.
    waiting: Arc<AtomicUsize>,
    /// Events dropped since the start.
    lost: Arc<AtomicU64>,
}

/// Waits, when dropped, until all events are written, for a second at most.
#[derive(Debug)]
#[must_use = "dropped at once, it waits for no event"]
pub struct Flush {
    queue: Sender<Vec<u8>>,
    flushed: Receiver<()>,
}

impl Outbox {
    /// Starts the thread, which hands each event to `write`.
    pub(super) fn start(
        mut write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
    ) -> io::Result<(Self, Flush)> {
        let (queue, events) = mpsc::channel::<Vec<u8>>();
        let (flush, flushed) = mpsc::channel();
        let outbox = Self { queue: queue.clone(), waiting: Arc::default(), lost: Arc::default() };
        let Self { waiting, lost, .. } = outbox.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            let mut reported = 0;
            for event in events {
                // `Flush` sends an empty event after all others.
                if event.is_empty() {
                    let _ = flush.send(());
                    continue;
                }
                let is_written = write(&event).is_ok();
                waiting.fetch_sub(event.len(), Ordering::Relaxed);
                let lost = lost.fetch_add(u64::from(!is_written), Ordering::Relaxed);
                if is_written && lost > reported {
                    reported = lost;
                    // This event goes through the queue too, so it stands where the others are missing.
                    tracing::error!(
                        lost,
                        "{lost} events were lost since the start: the log is too slow or fails"
                    );
                }
            }
        })?;
        Ok((outbox, Flush { queue, flushed }))
    }

    /// Queues an event, or drops and counts it where the queue is full.
    pub(super) fn put(&self, event: Vec<u8>) {
        let size = event.len();
        let before = self.waiting.fetch_add(size, Ordering::Relaxed);
        if before.saturating_add(size) > WAITING_MAX || self.queue.send(event).is_err() {
            self.waiting.fetch_sub(size, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// For the line formats, which write an event in one piece.
impl io::Write for Outbox {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.put(event.to_owned());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        if self.queue.send(Vec::new()).is_ok() {
            let _ = self.flushed.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn events_are_written_in_order_before_the_end() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&written);
        let (outbox, flush) = Outbox::start(move |event| {
            seen.lock().unwrap().extend_from_slice(event);
            Ok(())
        })
        .unwrap();
        (b'a'..=b'z').for_each(|letter| outbox.put(vec![letter]));
        drop(flush);
        assert_eq!(*written.lock().unwrap(), (b'a'..=b'z').collect::<Vec<_>>());
    }

    #[test]
    fn a_log_that_hangs_drops_events_and_delays_nobody() {
        const EVENT: usize = 1024;
        let (resume, resumed) = mpsc::channel::<()>();
        let (outbox, flush) = Outbox::start(move |_| {
            let _ = resumed.recv();
            Ok(())
        })
        .unwrap();
        // Would never end if it waited for the log.
        (0..2 * WAITING_MAX / EVENT).for_each(|_| outbox.put(vec![0; EVENT]));
        assert!(outbox.waiting.load(Ordering::Relaxed) <= WAITING_MAX);
        let lost = outbox.lost.load(Ordering::Relaxed);
        assert_eq!(lost, (WAITING_MAX / EVENT) as u64, "half of them found no place");
        drop(resume);
        drop(flush);
        outbox.put(vec![0; EVENT]);
        assert_eq!(outbox.lost.load(Ordering::Relaxed), lost, "there is room again");
    }
}

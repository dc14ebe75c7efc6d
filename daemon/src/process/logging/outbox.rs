//! Between events and whatever takes them: a queue and one thread that writes.
//!
//! Who reports an event never waits for the log. A terminal that was stopped, a pipe that nobody reads or a
//! journal that hangs costs events, which are counted and reported, and delays nobody who wants a token.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

/// Bytes of events that may wait to be written: some ten thousand events.
const WAITING_MAX: usize = 4 * 1024 * 1024;

/// How long the end of the process waits for the last events to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Where events are put. Each write is one event.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    queue: Sender<Item>,
    counts: Arc<Counts>,
}

/// Lets the last events be written when it is dropped, as far as the log takes them in a second.
#[derive(Debug)]
#[must_use = "dropped at once, it waits for no event"]
pub struct Flush(Sender<Item>);

#[derive(Debug)]
enum Item {
    Event(Vec<u8>),
    /// All events before it have been written.
    Flush(Sender<()>),
}

#[derive(Debug, Default)]
struct Counts {
    /// Bytes in the queue.
    waiting: AtomicUsize,
    /// Events since the start.
    lost: AtomicU64,
}

impl Outbox {
    /// Starts the thread, which hands each event to `write`.
    pub(super) fn start<W>(write: W) -> io::Result<(Self, Flush)>
    where
        W: FnMut(&[u8]) -> io::Result<()> + Send + 'static,
    {
        let (queue, received) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        thread::Builder::new().name("log".to_owned()).spawn(move || write_each(received, &counted, write))?;
        Ok((Self { queue: queue.clone(), counts }, Flush(queue)))
    }

    /// Takes an event, or counts it as lost where too much is waiting already.
    pub(super) fn put(&self, event: Vec<u8>) {
        let size = event.len();
        let before = self.counts.waiting.fetch_add(size, Ordering::Relaxed);
        if before.saturating_add(size) > WAITING_MAX || self.queue.send(Item::Event(event)).is_err() {
            self.counts.waiting.fetch_sub(size, Ordering::Relaxed);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// For the formats of lines, which write an event in one piece.
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
        let (done, written) = mpsc::channel();
        if self.0.send(Item::Flush(done)).is_ok() {
            // A log that hangs must not hang the end of the process as well.
            let _ = written.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn write_each<W>(queue: Receiver<Item>, counts: &Counts, mut write: W)
where
    W: FnMut(&[u8]) -> io::Result<()>,
{
    let mut reported = 0;
    for item in queue {
        let event = match item {
            Item::Event(event) => event,
            Item::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        let written = write(&event);
        counts.waiting.fetch_sub(event.len(), Ordering::Relaxed);
        if written.is_err() {
            counts.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let lost = counts.lost.load(Ordering::Relaxed);
        if lost > reported {
            reported = lost;
            // It goes through the queue as all events do, and so stands where the others are missing.
            tracing::error!(lost, "{lost} events were lost since the start: the log took them too slowly");
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
    fn a_log_that_hangs_costs_events_and_nobody_s_time() {
        const EVENT: usize = 1024;
        let (resume, resumed) = mpsc::channel::<()>();
        let (outbox, flush) = Outbox::start(move |_| {
            let _ = resumed.recv();
            Ok(())
        })
        .unwrap();
        // Would never end if it waited for the log.
        (0..2 * WAITING_MAX / EVENT).for_each(|_| outbox.put(vec![0; EVENT]));
        assert!(outbox.counts.waiting.load(Ordering::Relaxed) <= WAITING_MAX);
        let lost = outbox.counts.lost.load(Ordering::Relaxed);
        assert_eq!(lost, (WAITING_MAX / EVENT) as u64, "half of them found no place");
        drop(resume);
        drop(flush);
        outbox.put(vec![0; EVENT]);
        assert_eq!(outbox.counts.lost.load(Ordering::Relaxed), lost, "there is room again");
    }
}

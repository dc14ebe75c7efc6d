//! One connection with many calls in flight: a task writes requests in the order in which they come, another
//! hands each reply to the call that waits for it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokend_protocol::{Frame, Reply, Request, encode};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use zeroize::Zeroizing;

use super::incoming::Incoming;
use crate::Error;
use crate::failure::{Failure, unless_stopping};

/// Requests that may wait for the socket. More wait within their calls.
const QUEUE: usize = 64;

/// Bytes from which on no further request joins a write.
const WRITE_MAX: usize = 4 * 1024;

/// A connection that many calls share.
pub(super) struct Connection {
    socket: PathBuf,
    requests: mpsc::Sender<Wire>,
    calls: Arc<Mutex<Calls>>,
    reader: AbortHandle,
}

/// One encoded request. It may hold personal data of the caller's headers.
type Wire = Zeroizing<Vec<u8>>;

/// The calls that wait for a reply.
#[derive(Default)]
struct Calls {
    waiting: HashMap<u32, oneshot::Sender<Result<Reply, Failure>>>,
    /// The id of the last request. Ids begin at 1, and 0 is the daemon's own.
    last_id: u32,
    /// The failure that ended the connection.
    ended: Option<Failure>,
}

impl Connection {
    /// Takes an established connection over and starts its tasks.
    pub(super) fn new(stream: UnixStream, socket: PathBuf) -> Self {
        let (incoming, outgoing) = stream.into_split();
        let (requests, queue) = mpsc::channel(QUEUE);
        let calls = Arc::new(Mutex::new(Calls::default()));
        tokio::spawn(write(outgoing, queue));
        let end = End { socket: socket.clone(), calls: Arc::clone(&calls) };
        let reader = tokio::spawn(read(Incoming::new(incoming), end)).abort_handle();
        Self { socket, requests, calls, reader }
    }

    /// Whether replies may still come.
    pub(super) fn is_usable(&self) -> bool {
        lock(&self.calls).ended.is_none()
    }

    /// One request and its reply.
    pub(super) async fn exchange(&self, request: Request) -> Result<Reply, Failure> {
        let mut call = Call::begin(&self.calls)?;
        let wire = wire(call.id, request)?;
        // Where the writer has ended, the reader ends too and tells why.
        let _ = self.requests.send(wire).await;
        let reply = (&mut call.reply).await.map_err(|_| Failure::hung_up(&self.socket))??;
        unless_stopping(reply)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The frame of a request.
pub(super) fn wire(id: u32, request: Request) -> Result<Wire, Failure> {
    let mut wire = Zeroizing::new(Vec::with_capacity(256));
    encode(&Frame { id, message: request }, &mut wire)
        .map_err(|error| Failure::Final(Error::InvalidRequest { message: error.to_string() }))?;
    Ok(wire)
}

/// A call that waits. Dropping it forgets it, so that a late reply finds nobody.
struct Call<'a> {
    id: u32,
    reply: oneshot::Receiver<Result<Reply, Failure>>,
    calls: &'a Mutex<Calls>,
}

impl<'a> Call<'a> {
    fn begin(calls: &'a Mutex<Calls>) -> Result<Self, Failure> {
        let (sender, reply) = oneshot::channel();
        let mut all = lock(calls);
        if let Some(failure) = &all.ended {
            return Err(failure.clone());
        }
        // An id repeats only after four thousand million calls.
        let id = all.last_id.wrapping_add(1).max(1);
        all.last_id = id;
        all.waiting.insert(id, sender);
        drop(all);
        Ok(Self { id, reply, calls })
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        lock(self.calls).waiting.remove(&self.id);
    }
}

/// Writes until the connection is dropped or the daemon has ended. Joins queued requests into one write.
async fn write(mut half: OwnedWriteHalf, mut queue: mpsc::Receiver<Wire>) {
    while let Some(mut wire) = queue.recv().await {
        while wire.len() < WRITE_MAX {
            let Ok(next) = queue.try_recv() else { break };
            wire.extend_from_slice(&next);
        }
        if half.write_all(&wire).await.is_err() {
            return;
        }
    }
}

/// Reads until the connection ends, one way or another.
async fn read(mut incoming: Incoming, end: End) {
    let failure = loop {
        match incoming.next(&end.socket).await {
            Ok(Frame { id: 0, message: Reply::Error(error) }) => break Failure::of_all(error),
            Ok(Frame { id, message }) => end.answer(id, message),
            Err(failure) => break failure,
        }
    };
    end.tell(&failure);
}

/// Fails all waiting calls when the connection ends, even if the runtime drops the reading task.
struct End {
    socket: PathBuf,
    calls: Arc<Mutex<Calls>>,
}

impl End {
    /// Hands a reply over. A reply that nobody waits for any more is dropped.
    fn answer(&self, id: u32, reply: Reply) {
        let caller = lock(&self.calls).waiting.remove(&id);
        if let Some(caller) = caller {
            // The call may end at this very moment.
            let _ = caller.send(Ok(reply));
        }
    }

    fn tell(&self, failure: &Failure) {
        let mut calls = lock(&self.calls);
        calls.ended.get_or_insert_with(|| failure.clone());
        let waiting = std::mem::take(&mut calls.waiting);
        drop(calls);
        for caller in waiting.into_values() {
            let _ = caller.send(Err(failure.clone()));
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.tell(&Failure::hung_up(&self.socket));
    }
}

fn lock(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

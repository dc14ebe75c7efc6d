//! The answers and events that a connection waits for.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered, SelectAll, try_unfold};
use futures_util::{StreamExt, TryFutureExt};
use tokend_protocol::{ErrorCode, Frame, Reply, WatchRequest};
use tokio::sync::Mutex;

use crate::server::session::{Session, refusal};

/// Answers that are not ready yet.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) pending: FuturesUnordered<BoxFuture<'static, Frame<Reply>>>,
    /// Held by the long answer that is being made. The others of the connection wait, so that a peer that does not read holds
    /// up few of its user's.
    pub(super) long_answer: Arc<Mutex<()>>,
    /// Watches. Each counts towards the user's quota of watches, not of requests in flight.
    pub(super) watches: SelectAll<BoxStream<'static, Frame<Reply>>>,
}

impl Waiting {
    /// The next answer, if there will be one.
    async fn next(&mut self) -> Option<Frame<Reply>> {
        tokio::select! {
            biased;
            Some(answer) = self.pending.next() => Some(answer),
            Some(event) = self.watches.next() => Some(event),
            else => None,
        }
    }
}

/// The next answer, if there will be one.
pub(super) async fn next(waiting: &mut Option<Box<Waiting>>) -> Option<Frame<Reply>> {
    waiting.as_mut()?.next().await
}

/// The events of a watch. An error reply is the last of them.
pub(super) fn events(
    session: Arc<Session>,
    id: u32,
    request: WatchRequest,
) -> BoxStream<'static, Frame<Reply>> {
    let stop = session.shared.stop.clone();
    let watch = session.watch(request).map_ok(move |watch| {
        try_unfold((watch, stop), |(mut watch, stop)| async move {
            let event = tokio::select! {
                event = watch.next() => event?,
                () = stop.cancelled() => return Err(refusal(ErrorCode::ShuttingDown, "the daemon is stopping")),
            };
            Ok(Some((Reply::Event(event), (watch, stop))))
        })
    });
    watch
        .try_flatten_stream()
        .map(move |event| Frame { id, message: event.unwrap_or_else(Reply::Error) })
        .boxed()
}

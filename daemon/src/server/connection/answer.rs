//! Answers that have to be waited for.

use std::pin::Pin;
use std::sync::Arc;

use tokend_protocol::{ErrorCode, Frame, Reply, Request, WatchRequest};
use tokio_util::sync::CancellationToken;

use crate::quota::Held;
use crate::server::session::{Session, Watch, refusal};

/// An answer to come.
pub(super) type Answer = Pin<Box<dyn Future<Output = Event> + Send>>;

/// What it comes to.
pub(super) enum Event {
    /// The only or the last answer to a request.
    Last(Frame<Reply>),
    /// One event of a watch, with the watch that goes on.
    Watched(u32, Box<Watch>, Frame<Reply>),
}

/// The only answer to a request.
pub(super) fn only(session: Arc<Session>, id: u32, request: Request) -> Answer {
    Box::pin(async move { Event::Last(Frame { id, message: session.answer(request).await }) })
}

/// The same answer, which holds a part of the quota until it comes.
pub(super) fn holding(held: Held, answer: Answer) -> Answer {
    Box::pin(async move {
        let event = answer.await;
        drop(held);
        event
    })
}

/// The first event of a watch, once it has begun.
pub(super) fn first_event(
    session: Arc<Session>,
    id: u32,
    request: WatchRequest,
    stop: CancellationToken,
) -> Answer {
    Box::pin(async move {
        match session.watch(request).await {
            Ok(watch) => next(id, Box::new(watch), stop).await,
            Err(refused) => Event::Last(Frame { id, message: Reply::Error(refused) }),
        }
    })
}

/// The next event of a watch.
pub(super) fn next_event(id: u32, watch: Box<Watch>, stop: CancellationToken) -> Answer {
    Box::pin(next(id, watch, stop))
}

async fn next(id: u32, mut watch: Box<Watch>, stop: CancellationToken) -> Event {
    let next = tokio::select! {
        next = watch.next() => next,
        () = stop.cancelled() => Err(refusal(ErrorCode::ShuttingDown, "the daemon is stopping")),
    };
    match next {
        Ok(event) => Event::Watched(id, watch, Frame { id, message: Reply::Event(event) }),
        Err(refused) => Event::Last(Frame { id, message: Reply::Error(refused) }),
    }
}

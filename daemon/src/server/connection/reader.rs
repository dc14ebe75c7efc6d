//! Reads frames, and notices a peer that does not finish one.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokend_protocol::{BadFrame, Frame, Request};
use tokio::io::AsyncRead;
use tokio::time::{Instant, Sleep, sleep};

use super::Framing;

/// How long a peer may take to say anything at all.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a frame may take from its first byte to its last.
const FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// What comes in from the peer.
pub(super) enum Incoming {
    Frame(Result<Frame<Request>, BadFrame>),
    /// The peer will send nothing more, but may still read.
    End,
    /// The peer took too long over a frame.
    TooSlow,
    /// The stream is of no more use.
    Broken(io::Error),
}

/// What a connection waits for from its peer.
pub(super) struct Reader {
    waits_for: WaitsFor,
    deadline: Pin<Box<Sleep>>,
}

/// What the deadline is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    /// The first frame, since the connection was made.
    FirstFrame,
    /// The rest of a frame that has begun.
    RestOfFrame,
    /// Nothing: an idle connection may stay.
    Nothing,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { waits_for: WaitsFor::FirstFrame, deadline: Box::pin(sleep(FIRST_FRAME_TIMEOUT)) }
    }

    /// The next frame. Nothing is lost when the future is dropped.
    pub(super) async fn next<S: AsyncRead + Unpin>(&mut self, framing: &mut Framing<S>) -> Incoming {
        poll_fn(|cx| self.poll_next(framing, cx)).await
    }

    fn poll_next<S: AsyncRead + Unpin>(
        &mut self,
        framing: &mut Framing<S>,
        cx: &mut Context<'_>,
    ) -> Poll<Incoming> {
        if let Poll::Ready(next) = framing.poll_next_unpin(cx) {
            self.waits_for = WaitsFor::Nothing;
            return Poll::Ready(match next {
                Some(Ok(frame)) => Incoming::Frame(frame),
                Some(Err(error)) => Incoming::Broken(error),
                None => Incoming::End,
            });
        }
        let has_begun = !framing.read_buffer().is_empty();
        match (self.waits_for, has_begun) {
            (WaitsFor::Nothing, false) => return Poll::Pending,
            (WaitsFor::Nothing, true) => {
                self.waits_for = WaitsFor::RestOfFrame;
                self.deadline.as_mut().reset(Instant::now() + FRAME_TIMEOUT);
            }
            (WaitsFor::FirstFrame | WaitsFor::RestOfFrame, _) => (),
        }
        self.deadline.poll_unpin(cx).map(|()| Incoming::TooSlow)
    }
}

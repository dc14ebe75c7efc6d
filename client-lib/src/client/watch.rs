//! Watching tokens over a connection of its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokend_protocol::{EventReply, Frame, Reply, TokenName};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::time;

use super::connect;
use super::connection::wire;
use super::incoming::Incoming;
use crate::deadline::Deadline;
use crate::failure::{Failure, RETURN_WAITS, silent, unless_stopping};
use crate::{Error, reply, request};

/// The id of the one request on the connection.
const ID: u32 = 1;

/// The conditions of watched tokens: first of each, then at every change.
///
/// A restart of the daemon does not end it: it subscribes again and gets the condition of each token again. After an
/// error it ends.
pub struct Watch {
    socket: PathBuf,
    names: Vec<TokenName>,
    /// How long subscribing may take, each time.
    patience: Duration,
    link: Link,
}

/// The state of a watch.
enum Link {
    /// Confirmed with an event that has not been handed out yet.
    Confirmed(Subscription, EventReply),
    Up(Subscription),
    /// The daemon went away.
    Lost,
    /// An error was handed out.
    Over,
}

struct Subscription {
    incoming: Incoming,
    /// Kept open, because the daemon takes its end for the end of the watch.
    _outgoing: OwnedWriteHalf,
}

impl Watch {
    pub(super) async fn subscribe(
        socket: PathBuf,
        names: &[TokenName],
        patience: Duration,
    ) -> Result<Self, Error> {
        if names.is_empty() {
            return Err(Error::InvalidRequest {
                message: "a watch needs the name of at least one token".to_owned(),
            });
        }
        let mut watch = Self { socket, names: names.to_vec(), patience, link: Link::Over };
        let subscribing = async {
            match watch.try_subscribe(&[]).await {
                Err(Failure::Gone(_)) => watch.try_subscribe(&RETURN_WAITS).await,
                subscribed => subscribed,
            }
        };
        let (subscription, event) = within(patience, subscribing).await?;
        watch.link = Link::Confirmed(subscription, event);
        Ok(watch)
    }

    /// The next event, or `None` after an error. A call that is dropped before its end loses no event.
    pub async fn next(&mut self) -> Option<Result<EventReply, Error>> {
        match self.try_next().await? {
            Ok(event) => Some(Ok(event)),
            Err(error) => {
                self.link = Link::Over;
                Some(Err(error))
            }
        }
    }

    async fn try_next(&mut self) -> Option<Result<EventReply, Error>> {
        if let Link::Up(subscription) = &mut self.link {
            match subscription.event(&self.socket).await {
                Ok(event) => return Some(Ok(event)),
                Err(Failure::Gone(_)) => self.link = Link::Lost,
                Err(Failure::Final(error)) => return Some(Err(error)),
            }
        }
        if let Link::Lost = self.link {
            match within(self.patience, self.try_subscribe(&RETURN_WAITS)).await {
                Ok((subscription, event)) => self.link = Link::Confirmed(subscription, event),
                Err(error) => return Some(Err(error)),
            }
        }
        match std::mem::replace(&mut self.link, Link::Over) {
            Link::Confirmed(subscription, event) => {
                self.link = Link::Up(subscription);
                Some(Ok(event))
            }
            _ => None,
        }
    }

    /// Subscribes and waits for the first event, so that a refusal is seen here.
    async fn try_subscribe(&self, waits: &[Duration]) -> Result<(Subscription, EventReply), Failure> {
        let stream = connect(&self.socket, waits).await.map_err(Failure::Final)?;
        let (incoming, mut outgoing) = stream.into_split();
        let wire = wire(ID, request::watch(&self.names))?;
        // If the daemon closed the connection, it may have sent the reason, which is read below.
        let _ = outgoing.write_all(&wire).await;
        let mut subscription = Subscription { incoming: Incoming::new(incoming), _outgoing: outgoing };
        let event = subscription.event(&self.socket).await?;
        Ok((subscription, event))
    }
}

async fn within<T>(
    patience: Duration,
    subscribing: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Error> {
    let left = Deadline::after(patience).left().ok_or_else(silent)?;
    let subscribed = time::timeout(left, subscribing).await.map_err(|_| silent())?;
    subscribed.map_err(Failure::into_error)
}

impl Subscription {
    async fn event(&mut self, socket: &Path) -> Result<EventReply, Failure> {
        loop {
            match self.incoming.next(socket).await? {
                Frame { id: ID, message } => {
                    return reply::watch(unless_stopping(message)?).map_err(Failure::Final);
                }
                Frame { id: 0, message: Reply::Error(error) } => return Err(Failure::of_all(error)),
                Frame { .. } => (),
            }
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("names", &self.names).finish_non_exhaustive()
    }
}

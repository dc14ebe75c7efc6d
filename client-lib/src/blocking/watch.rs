//! Watching tokens over a connection of its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{EventReply, TokenName};

use super::Shared;
use super::connection::Connection;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::{Error, reply, request};

/// The conditions of watched tokens: first of each, then at every change.
///
/// A restart of the daemon does not end it: it subscribes again and gets the condition of each token again. After an
/// error it ends.
pub struct Watch {
    shared: Arc<Shared>,
    names: Vec<TokenName>,
    /// How long subscribing may take, each time.
    patience: Duration,
    connection: Option<Connection>,
    /// The event with which the daemon confirmed the subscription.
    first: Option<EventReply>,
}

impl Watch {
    pub(super) fn subscribe(
        shared: Arc<Shared>,
        names: &[TokenName],
        patience: Duration,
    ) -> Result<Self, Error> {
        if names.is_empty() {
            return Err(Error::InvalidRequest {
                message: "a watch needs the name of at least one token".to_owned(),
            });
        }
        let mut watch = Self { shared, names: names.to_vec(), patience, connection: None, first: None };
        let deadline = Deadline::after(patience);
        match watch.try_subscribe(deadline) {
            Err(Failure::Gone(_)) => watch.resubscribe(deadline)?,
            subscribed => subscribed.map_err(Failure::into_error)?,
        }
        Ok(watch)
    }

    fn resubscribe(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.shared.expect_return();
        self.try_subscribe(deadline).map_err(Failure::into_error)
    }

    /// Subscribes and waits for the first event, so that a refusal is seen here.
    fn try_subscribe(&mut self, deadline: Deadline) -> Result<(), Failure> {
        let mut connection = self.shared.connector.connect(deadline).map_err(Failure::Final)?;
        connection.send(request::watch(&self.names), deadline)?;
        let event = reply::watch(connection.receive(deadline)?).map_err(Failure::Final)?;
        self.first = Some(event);
        self.connection = Some(connection);
        Ok(())
    }

    /// Returns the next event, as the iterator does, but waits no longer than `wait`. Then it returns
    /// [`Error::DeadlineExceeded`], and the watch ends as after every error.
    pub fn next_within(&mut self, wait: Duration) -> Option<Result<EventReply, Error>> {
        let event = self.next_before(Some(Deadline::after(wait)));
        event.map(|event| event.map_err(in_vain))
    }

    fn next_before(&mut self, deadline: Option<Deadline>) -> Option<Result<EventReply, Error>> {
        if let Some(event) = self.first.take() {
            return Some(Ok(event));
        }
        let failure = match self.receive(deadline)? {
            Ok(event) => return Some(Ok(event)),
            Err(failure) => failure,
        };
        self.connection = None;
        let subscribed = match failure {
            Failure::Gone(_) => self.resubscribe(deadline.unwrap_or_else(|| Deadline::after(self.patience))),
            Failure::Final(error) => Err(error),
        };
        subscribed.map(|()| self.first.take()).transpose()
    }

    fn receive(&mut self, deadline: Option<Deadline>) -> Option<Result<EventReply, Failure>> {
        let connection = self.connection.as_mut()?;
        let received = match deadline {
            Some(deadline) => connection.receive(deadline),
            None => connection.receive_any_time(),
        };
        Some(received.and_then(|reply| reply::watch(reply).map_err(Failure::Final)))
    }
}

/// Words a passed deadline for a watch: no event came, but the daemon did answer.
fn in_vain(error: Error) -> Error {
    match error {
        Error::DeadlineExceeded { .. } => {
            Error::DeadlineExceeded { message: "no event came before the deadline".to_owned() }
        }
        error => error,
    }
}

impl Iterator for Watch {
    type Item = Result<EventReply, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_before(None)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("blocking::Watch").field("names", &self.names).finish_non_exhaustive()
    }
}

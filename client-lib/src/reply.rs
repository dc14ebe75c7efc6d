//! The result of each call, taken from a reply; lists are joined from their pages.

use tokend_protocol::{
    DaemonStatus, EventReply, ExplainedReply, HeadersReply, ListEntry, ListReply, RefreshedReply,
    RejectedReply, Reply, StatusReply, TokenName, TokenReply, TokenStatus, VersionReply,
};

use crate::Error;

/// The status of the daemon and of every token that the caller may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The status of the daemon.
    pub daemon: DaemonStatus,
    /// The status of the tokens, sorted by name.
    pub tokens: Vec<TokenStatus>,
}

/// Returns the expected variant of a reply. The error reply and every other variant become errors.
macro_rules! expect_reply {
    ($name:ident, $variant:ident, $reply:ty) => {
        pub(crate) fn $name(reply: Reply) -> Result<$reply, Error> {
            match reply {
                Reply::$variant(reply) => Ok(reply),
                Reply::Error(error) => Err(error.into()),
                _ => {
                    Err(Error::protocol(concat!("it is not the answer to a ", stringify!($name), " request")))
                }
            }
        }
    };
}

expect_reply!(token, Token, TokenReply);
expect_reply!(headers, Headers, HeadersReply);
expect_reply!(list, List, ListReply);
expect_reply!(status, Status, StatusReply);
expect_reply!(refresh, Refreshed, RefreshedReply);
expect_reply!(reject, Rejected, RejectedReply);
expect_reply!(watch, Event, EventReply);
expect_reply!(version, Version, VersionReply);
expect_reply!(explain, Explained, ExplainedReply);

/// Takes the one token of a detailed status.
pub(crate) fn status_of(reply: Reply) -> Result<TokenStatus, Error> {
    let mut tokens = status(reply)?.tokens.into_iter();
    match (tokens.next(), tokens.next()) {
        (Some(token), None) => Ok(token),
        _ => Err(Error::protocol("it does not describe exactly one token")),
    }
}

/// The pages of a listing so far.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    items: Vec<T>,
    more: bool,
}

/// An item of a listing, with the name by which the listing is ordered.
pub(crate) trait Listed {
    fn name(&self) -> &TokenName;
}

impl Listed for ListEntry {
    fn name(&self) -> &TokenName {
        &self.name
    }
}

impl Listed for TokenStatus {
    fn name(&self) -> &TokenName {
        &self.name
    }
}

impl<T: Listed> Pages<T> {
    /// No page has been received yet.
    pub(crate) fn new() -> Self {
        Self { items: Vec::new(), more: true }
    }

    /// Whether another page is to be asked for.
    pub(crate) fn more(&self) -> bool {
        self.more
    }

    /// The name after which the next page begins.
    pub(crate) fn after(&self) -> Option<&TokenName> {
        self.items.last().map(Listed::name)
    }

    /// Adds a page. Every page but the last must advance the listing, or it would never end.
    pub(crate) fn add(&mut self, page: Vec<T>, more: bool) -> Result<(), Error> {
        let forward = page.last().is_some_and(|last| self.after() < Some(last.name()));
        if more && !forward {
            return Err(Error::protocol("a page of the listing does not go on from the page before"));
        }
        self.items.extend(page);
        self.more = more;
        Ok(())
    }

    /// All that was taken.
    pub(crate) fn into_items(self) -> Vec<T> {
        self.items
    }
}

#[cfg(test)]
mod tests {

    use tokend_protocol::State;

    use super::*;

    fn entry(name: &str) -> ListEntry {
        ListEntry { name: name.parse().unwrap(), state: State::Fresh }
    }

    #[test]
    fn pages_are_joined_in_order() {
        let mut pages = Pages::new();
        pages.add(vec![entry("a"), entry("b")], true).unwrap();
        assert_eq!(pages.after().map(TokenName::as_str), Some("b"));
        pages.add(vec![entry("c")], false).unwrap();
        assert!(!pages.more());
        assert_eq!(pages.into_items(), [entry("a"), entry("b"), entry("c")]);
    }

    #[test]
    fn a_listing_that_would_never_end_is_an_error() {
        let mut pages = Pages::new();
        assert!(pages.add(vec![], true).is_err());
        pages.add(vec![entry("b")], true).unwrap();
        assert!(pages.add(vec![entry("b")], true).is_err());
        assert!(pages.add(vec![entry("a")], true).is_err());
        assert!(pages.add(vec![], false).is_ok());
    }
}

//! Listings, a page at a time, so that any number of tokens fits reply frames.
//!
//! A caller must not learn of tokens that it may not have, not by the time that a page takes either: whatever page it
//! asks for, and wherever that begins, all tokens are decided about.

use std::sync::Arc;

use tokend_protocol::{
    ErrorReply, ListEntry, ListReply, PageRequest, Reply, StatusReply, StatusRequest, TokenName, Variant,
};

use super::right::Right;
use super::{Session, view};
use crate::access::directory::Patience;
use crate::engine::registry::{Entry, Registry};
use crate::server::audit::Operation;

/// Names in one page of a list: with the longest names some 130 KiB, half a reply frame.
const LIST_PAGE: usize = 512;

/// Tokens in one page of a status: with the longest names and messages some 200 KiB.
const STATUS_PAGE: usize = 96;

/// Tokens that are looked at in one turn.
const LOOKED_AT_IN_A_TURN: usize = 32;

/// What looking at so many takes.
const LOOKED_AT_UNITS: u32 = 8;

/// Tokens of a page by name, and whether more follow.
type Page = (Vec<(TokenName, Arc<Entry>)>, bool);

impl Session {
    pub(super) async fn list(&self, page: PageRequest) -> Result<Reply, ErrorReply> {
        let patience = Patience::of_a_request();
        let page = &page;
        let look = |registry: Arc<Registry>| async move {
            self.allowed_page(&registry, page, LIST_PAGE, patience).await
        };
        let (entries, more) = self.in_force(look).await?;
        let now = self.shared.clock.now();
        let entry = |(name, entry): (TokenName, Arc<Entry>)| {
            let state = entry.credential.snapshot().state(now);
            ListEntry { name, state }
        };
        Ok(Reply::List(ListReply { tokens: entries.into_iter().map(entry).collect(), more }))
    }

    pub(super) async fn status(&self, request: StatusRequest) -> Result<Reply, ErrorReply> {
        if let Some(name) = request.name {
            return self.status_of(name).await;
        }
        let patience = Patience::of_a_request();
        let page = &PageRequest { after: request.after };
        let look = |registry: Arc<Registry>| async move { self.status_page(&registry, page, patience).await };
        let (detail, (entries, more)) = self.in_force(look).await?;
        let tokens = entries
            .into_iter()
            .map(|(name, entry)| view::token_status(name, &entry, &self.shared.clock, detail, false))
            .collect();
        Ok(Reply::Status(StatusReply { daemon: view::daemon_status(&self.shared, detail), tokens, more }))
    }

    /// The detailed status of one token.
    async fn status_of(&self, name: TokenName) -> Result<Reply, ErrorReply> {
        let patience = Patience::of_a_request();
        let is_operator = self.is_operator(patience).await;
        let (entry, detail) = match self.registry().find(&name).filter(|_| is_operator) {
            Some(entry) => (Arc::clone(entry), view::Detail::Full),
            None => {
                let variant = Variant::default();
                let entitled = self.entitled(&name, &variant, Operation::Status, patience).await?;
                (entitled.entry, view::Detail::ForCallers)
            }
        };
        let tokens = vec![view::token_status(name, &entry, &self.shared.clock, detail, true)];
        let daemon = view::daemon_status(&self.shared, detail);
        Ok(Reply::Status(StatusReply { daemon, tokens, more: false }))
    }

    async fn status_page(
        &self,
        registry: &Registry,
        page: &PageRequest,
        patience: Patience,
    ) -> (view::Detail, Page) {
        if self.is_operator(patience).await {
            return (view::Detail::Full, self.page_of_all(registry, page, STATUS_PAGE).await);
        }
        (view::Detail::ForCallers, self.allowed_page(registry, page, STATUS_PAGE, patience).await)
    }

    /// Up to `size` of the tokens that the peer may have, after the last of the page before. Nothing is remembered of
    /// the decisions, which may be very many.
    async fn allowed_page(
        &self,
        registry: &Registry,
        page: &PageRequest,
        size: usize,
        patience: Patience,
    ) -> Page {
        let implicit_access = self.implicit_access(registry);
        if implicit_access.grounds(self.peer.facts()).is_some() {
            return self.page_of_all(registry, page, size).await;
        }
        let resolved = self.shared.directory.resolve(registry.names_in_rules(), patience).await;
        let mut entries = Entries::of_a_page(size);
        for (index, (name, entry)) in registry.after(None).enumerate() {
            self.pause(index).await;
            let right = Right::decide(self.peer.facts(), implicit_access, entry, &resolved.numbers);
            if right.is_some() && page.after.as_ref().is_none_or(|after| name > after) {
                entries.add(name, entry);
            }
        }
        entries.into_page()
    }

    /// The same of all tokens, for one who may see them.
    async fn page_of_all(&self, registry: &Registry, page: &PageRequest, size: usize) -> Page {
        let mut entries = Entries::of_a_page(size);
        for (index, (name, entry)) in registry.after(page.after.as_ref()).take(size + 1).enumerate() {
            self.pause(index).await;
            entries.add(name, entry);
        }
        entries.into_page()
    }

    /// Lets others have a turn now and then: thousands of tokens are no reason for them to wait.
    async fn pause(&self, index: usize) {
        if index % LOOKED_AT_IN_A_TURN == LOOKED_AT_IN_A_TURN - 1 {
            self.turn().await.spend(LOOKED_AT_UNITS);
        }
    }
}

/// The tokens of a page while it is made: as many as it holds, and whether there was another.
struct Entries {
    size: usize,
    taken: Vec<(TokenName, Arc<Entry>)>,
    more: bool,
}

impl Entries {
    fn of_a_page(size: usize) -> Self {
        Self { size, taken: Vec::new(), more: false }
    }

    fn add(&mut self, name: &TokenName, entry: &Arc<Entry>) {
        if self.taken.len() < self.size {
            self.taken.push((name.clone(), Arc::clone(entry)));
        } else {
            self.more = true;
        }
    }

    fn into_page(self) -> Page {
        (self.taken, self.more)
    }
}

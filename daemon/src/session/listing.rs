//! Listings, a page at a time, so that any number of tokens fits reply frames.

use std::sync::Arc;

use tokend_protocol::{ListEntry, ListReply, PageRequest, Reply, StatusReply, TokenName};

use super::{Session, view};
use crate::directory::Patience;
use crate::registry::Entry;

/// Names in one page of a list: with the longest names some 130 KiB, half a reply frame.
const LIST_PAGE: usize = 512;

/// Tokens in one page of a status: with the longest names and messages some 200 KiB.
const STATUS_PAGE: usize = 96;

/// Tokens that are looked at in one turn.
const LOOKED_AT_IN_A_TURN: usize = 32;

/// What looking at so many takes.
const LOOKED_AT_UNITS: u32 = 8;

/// Which tokens a listing shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visible {
    /// Those that the peer may have.
    Allowed,
    /// All.
    All,
}

impl Session {
    pub(super) async fn list(&self, page: PageRequest) -> Reply {
        let (entries, more) = self.page(page, LIST_PAGE, Visible::Allowed, Patience::of_a_request()).await;
        let now = self.shared.clock.now();
        let entry = |(name, entry): (TokenName, Arc<Entry>)| {
            let state = entry.credential.snapshot().state(now);
            ListEntry { name, state }
        };
        Reply::List(ListReply { tokens: entries.into_iter().map(entry).collect(), more })
    }

    pub(super) async fn status(&self, page: PageRequest) -> Reply {
        let patience = Patience::of_a_request();
        let is_operator = self.is_operator(patience).await;
        let visible = if is_operator { Visible::All } else { Visible::Allowed };
        let (entries, more) = self.page(page, STATUS_PAGE, visible, patience).await;
        let detail = if is_operator { view::Detail::Full } else { view::Detail::ForCallers };
        let tokens = entries
            .into_iter()
            .map(|(name, entry)| view::token_status(name, &entry, &self.shared.clock, detail))
            .collect();
        Reply::Status(StatusReply { daemon: view::daemon_status(&self.shared, detail), tokens, more })
    }

    /// Up to `size` tokens after the last of the page before, and whether more follow. Nothing is remembered of
    /// the decisions, which may be very many.
    async fn page(
        &self,
        page: PageRequest,
        size: usize,
        visible: Visible,
        patience: Patience,
    ) -> (Vec<(TokenName, Arc<Entry>)>, bool) {
        let registry = self.registry();
        let mut entries = Vec::new();
        for (index, (name, entry)) in registry.after(page.after.as_ref()).enumerate() {
            if index % LOOKED_AT_IN_A_TURN == LOOKED_AT_IN_A_TURN - 1 {
                // Thousands of tokens are no reason for others to wait.
                self.turn().await.spend(LOOKED_AT_UNITS);
            }
            if visible == Visible::Allowed && self.decide_right(&registry, entry, patience).await.is_err() {
                continue;
            }
            if entries.len() == size {
                return (entries, true);
            }
            entries.push((name.clone(), Arc::clone(entry)));
        }
        (entries, false)
    }
}

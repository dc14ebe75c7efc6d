//! `List`: the tokens that the caller may have, a page at a time, so that any number of tokens fits reply frames.

use std::sync::Arc;

use tokend_protocol::{ListEntry, ListReply, PageRequest, Reply, TokenName};

use super::Session;
use crate::engine::registry::{Entry, Registry};

/// Names in one page of a list: with the longest names some 130 KiB, half a reply frame.
const PAGE: usize = 512;

impl Session {
    pub(super) async fn list(&self, request: PageRequest) -> Reply {
        let registry = self.registry();
        let (tokens, more) = self.page(&registry, request.after.as_ref(), PAGE, false).await;
        let now = self.shared.clock.now();
        let entry = |(name, entry): (TokenName, Arc<Entry>)| {
            let state = entry.credential.snapshot().state(now);
            ListEntry { name, state }
        };
        Reply::List(ListReply { tokens: tokens.into_iter().map(entry).collect(), more })
    }

    /// Up to `size` tokens after `after` that the caller may have, or of all tokens, and whether more follow.
    pub(super) async fn page(
        &self,
        registry: &Registry,
        after: Option<&TokenName>,
        size: usize,
        of_all: bool,
    ) -> (Vec<(TokenName, Arc<Entry>)>, bool) {
        let mut tokens = Vec::new();
        for (index, (name, entry)) in registry.after(after).enumerate() {
            self.pause(index).await;
            if of_all || self.may_have(registry, entry) {
                if tokens.len() == size {
                    return (tokens, true);
                }
                tokens.push((name.clone(), Arc::clone(entry)));
            }
        }
        (tokens, false)
    }
}

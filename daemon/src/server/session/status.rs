//! `List`: the tokens that the caller may have. `Status`: the daemon and its tokens, or one token in detail; operators see
//! all tokens, and more about each. Both are sent a page at a time, so that any number of tokens fits reply frames.

use std::sync::Arc;

use tokend_protocol::{
    ErrorReply, ListEntry, ListReply, PageRequest, Reply, StatusReply, StatusRequest, TokenName, Variant,
};

use super::{Asked, Session, view};
use crate::engine::registry::{Entry, Registry};
use crate::server::audit::Operation;

/// Names in one page of a list: with the longest names some 130 KiB, half a reply frame.
const LIST_PAGE: usize = 512;

/// Tokens in one page of a status: with the longest names and messages some 200 KiB.
const STATUS_PAGE: usize = 96;

/// Tokens that are checked in one turn.
const STRETCH: usize = 32;

impl Session {
    pub(super) async fn list(&self, request: PageRequest) -> Reply {
        let (tokens, more) = self.page(&self.registry(), request.after.as_ref(), LIST_PAGE, false).await;
        let now = self.shared.clock.now();
        let entry = |(name, entry): (TokenName, Arc<Entry>)| {
            let state = entry.credential.snapshot().state(now);
            ListEntry { name, state }
        };
        Reply::List(ListReply { tokens: tokens.into_iter().map(entry).collect(), more })
    }

    pub(super) async fn status(&self, request: StatusRequest) -> Result<Reply, ErrorReply> {
        let StatusRequest { name, after } = request;
        let registry = self.registry();
        let is_operator = self.is_operator(&registry);
        let (tokens, more) = match &name {
            None => self.page(&registry, after.as_ref(), STATUS_PAGE, is_operator).await,
            Some(name) => {
                let entry = if let Some(entry) = registry.find(name.as_str()).filter(|_| is_operator) {
                    Arc::clone(entry)
                } else {
                    let variant = &Variant::default();
                    let asked = Asked { operation: Operation::Status, name, variant };
                    self.authorize(&registry, asked)?.0
                };
                (vec![(name.clone(), entry)], false)
            }
        };
        let status = |(token, entry): (TokenName, Arc<Entry>)| {
            view::token_status(token, &entry, &self.shared.clock, is_operator, name.is_some())
        };
        let tokens = tokens.into_iter().map(status).collect();
        let daemon = view::daemon_status(&self.shared, is_operator);
        Ok(Reply::Status(StatusReply { daemon, tokens, more }))
    }

    /// Up to `size` tokens after `after` that the caller may have, or of all tokens, and whether more follow.
    async fn page(
        &self,
        registry: &Registry,
        after: Option<&TokenName>,
        size: usize,
        of_all: bool,
    ) -> (Vec<(TokenName, Arc<Entry>)>, bool) {
        let (mut tokens, mut turn) = (Vec::new(), None);
        for (index, (name, entry)) in registry.after(after).enumerate() {
            self.turn(&mut turn, index, STRETCH).await;
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

//! `Status`: the daemon and its tokens, a page at a time, or one token in detail. Operators see all tokens, and more about
//! each.

use std::sync::Arc;

use tokend_protocol::{ErrorReply, Reply, StatusReply, StatusRequest, TokenName, Variant};

use super::view::{self, Detail};
use super::{Asked, Session};
use crate::engine::registry::{Entry, Registry};
use crate::server::audit::Operation;

/// Tokens in one page of a status: with the longest names and messages some 200 KiB.
const PAGE: usize = 96;

impl Session {
    pub(super) async fn status(&self, request: StatusRequest) -> Result<Reply, ErrorReply> {
        let registry = self.registry();
        let detail = if self.is_operator(&registry) { Detail::Full } else { Detail::ForCallers };
        let is_detailed = request.name.is_some();
        let (tokens, more) = match request.name {
            Some(name) => (vec![self.one_token(&registry, name, detail)?], false),
            None => self.page(&registry, request.after.as_ref(), PAGE, detail == Detail::Full).await,
        };
        let clock = &self.shared.clock;
        let tokens = tokens
            .into_iter()
            .map(|(name, entry)| view::token_status(name, &entry, clock, detail, is_detailed));
        let tokens = tokens.collect();
        Ok(Reply::Status(StatusReply { daemon: view::daemon_status(&self.shared, detail), tokens, more }))
    }

    /// A token that the caller may have, or any token to an operator.
    fn one_token(
        &self,
        registry: &Arc<Registry>,
        name: TokenName,
        detail: Detail,
    ) -> Result<(TokenName, Arc<Entry>), ErrorReply> {
        if let Some(entry) = registry.find(&name).filter(|_| detail == Detail::Full) {
            return Ok((name, Arc::clone(entry)));
        }
        let asked = Asked { operation: Operation::Status, name: &name, variant: &Variant::default() };
        let entry = self.authorize(registry, asked)?.entry;
        Ok((name, entry))
    }
}

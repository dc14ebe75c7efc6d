//! The configuration in force. What was decided before a reload is decided anew after it: nobody is given what the new
//! configuration takes away, and who waits for a token whose settings change waits for the new one.

use std::sync::Arc;

use tokend_protocol::{ErrorCode, ErrorReply};

use super::{Session, refusal};
use crate::engine::registry::Registry;

/// Reloads during one request after which it is given up.
const RELOADS_MAX: usize = 8;

impl Session {
    pub(super) fn registry(&self) -> Arc<Registry> {
        self.shared.registry.borrow().clone()
    }

    /// What is found under a configuration that is in force still when it has been found.
    pub(super) async fn in_force<F: Future>(
        &self,
        find: impl Fn(Arc<Registry>) -> F,
    ) -> Result<F::Output, ErrorReply> {
        for _ in 0..=RELOADS_MAX {
            let registry = self.registry();
            let found = find(Arc::clone(&registry)).await;
            if Arc::ptr_eq(&registry, &self.registry()) {
                return Ok(found);
            }
        }
        Err(refusal(ErrorCode::Unavailable, "the configuration changes time and again"))
    }
}

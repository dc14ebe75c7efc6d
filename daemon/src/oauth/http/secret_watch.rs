//! Notices that a file with a secret was replaced.
//!
//! The files are looked at again and again rather than watched by the kernel. A secret is replaced by a rename, by
//! a change of a link somewhere on the way to it, by a mount, by a change of mode, or by appearing at all; inotify
//! needs another watch for each of these and tells nothing of some, nor of what another host does to a network
//! file system. It is done only while a request fails for want of the right secret, and then a look every other
//! second costs next to nothing.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{CredentialSettings, Grant};
use crate::secret_source::{SecretSource, Stamp, stamps};

/// Between two looks. Somebody who has put a secret right does not wait long.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The files of one credential's secrets, and what they looked like when they were last read.
#[derive(Debug)]
pub(super) struct SecretWatch {
    paths: Vec<PathBuf>,
    /// Held for a read or a write of one value, never across an await.
    seen: Mutex<Option<Vec<Stamp>>>,
}

impl SecretWatch {
    pub(super) fn new(settings: &CredentialSettings) -> Self {
        let password = match &settings.grant {
            Grant::ClientCredentials => None,
            Grant::Password { password, .. } => Some(password),
        };
        let sources = settings.authentication.secrets().iter().chain(password);
        Self { paths: sources.filter_map(SecretSource::path).collect(), seen: Mutex::default() }
    }

    /// Notes what the files look like. Done before they are read, so that no later change is missed.
    pub(super) async fn look(&self) {
        if !self.paths.is_empty() {
            let seen = stamps(self.paths.clone()).await;
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        }
    }

    /// Ends when a file looks otherwise than it did before it was last read. Without files it never ends.
    pub(super) async fn changed(&self, clock: &Clock) {
        if self.paths.is_empty() {
            return std::future::pending().await;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        loop {
            clock.sleep_until(clock.now().after(LOOK_EVERY)).await;
            let now = stamps(self.paths.clone()).await;
            if now.is_some() && now != seen {
                return;
            }
        }
    }
}

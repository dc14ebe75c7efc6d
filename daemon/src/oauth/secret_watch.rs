//! Notices that a file with a secret was replaced.
//!
//! The files are polled, not watched with inotify: a secret is replaced by a rename, a changed link on its path, a
//! mount, a change of mode, or by appearing at all. Inotify needs another watch for each of these, and misses what
//! another host does to a network file system. They are polled only while requests are refused or a secret cannot be
//! read.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use crate::clock::Clock;
use crate::config::{CredentialSettings, Grant};
use crate::secret_source::{SecretSource, Stamp, stamps};

/// The polling interval.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The longest time for reading the stamps before a request, in case a file system hangs.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// The files of one credential's secrets, and their stamps from before they were last read.
#[derive(Debug)]
pub(super) struct SecretWatch {
    paths: Vec<PathBuf>,
    /// Locked for a read or a write, never across an await.
    seen: Mutex<Option<Vec<Stamp>>>,
}

impl SecretWatch {
    pub(super) fn new(settings: &CredentialSettings) -> Self {
        let mut sources: Vec<_> = settings.authentication.secrets().iter().collect();
        if let Grant::Password { password, .. } = &settings.grant {
            sources.push(password);
        }
        Self { paths: sources.into_iter().filter_map(SecretSource::path).collect(), seen: Mutex::default() }
    }

    /// Remembers the stamps of the files. Called before the files are read, so that no later change is missed.
    pub(super) async fn look(&self) {
        if !self.paths.is_empty() {
            let seen = timeout(LOOK_TIMEOUT, stamps(self.paths.clone())).await;
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen.ok().flatten();
        }
    }

    /// Ends when a stamp has changed since [`Self::look`]. Without files it never ends.
    pub(super) async fn changed(&self, clock: &Clock) {
        if self.paths.is_empty() {
            return std::future::pending().await;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        loop {
            clock.sleep_until(clock.now().after(POLL_INTERVAL)).await;
            let now = stamps(self.paths.clone()).await;
            if now.is_some() && now != seen {
                return;
            }
        }
    }
}

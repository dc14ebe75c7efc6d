//! Notices that the process behind a connection has ended, so that an idle connection does not outlive it.
//!
//! A [`PeerExit`] only wakes the connection. [`Peer::is_gone`] asks the kernel each time whether the process is alive.

use std::future;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::peer::Peer;

/// The end of one peer's process.
#[derive(Debug)]
pub struct PeerExit(Option<AsyncFd<Arc<OwnedFd>>>);

impl PeerExit {
    /// Watches the process of `peer`, if the kernel gives a handle on it and there is room to watch that.
    pub fn of(peer: &Peer) -> Self {
        Self(peer.process().and_then(|process| {
            // SAFETY: the descriptor is owned by the `Arc`, which is never replaced or taken out again.
            #[expect(unsafe_code, reason = "tokio cannot know that the descriptor stays the same")]
            unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }.ok()
        }))
    }

    /// Waits until the process has ended; forever if that cannot be watched.
    pub async fn wait(&self) {
        match &self.0 {
            // A pidfd becomes readable when its process ends (pidfd_open(2)), and stays so.
            Some(handle) if handle.readable().await.is_ok() => (),
            _ => future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_living_process_has_not_ended() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let exit = PeerExit::of(&Peer::of(ours.as_fd()).unwrap());
        assert!(exit.0.is_some(), "this kernel tells of the end of a process");
        tokio::task::yield_now().await;
        assert!(exit.wait().now_or_never().is_none());
    }
}

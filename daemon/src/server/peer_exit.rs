//! Notices that the process behind a connection has ended, so that an idle connection does not outlive its owner.
//!
//! It only wakes up whoever waits. Whether the process is there is for [`Peer::is_gone`] to say, which asks the
//! kernel each time.

use std::future;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::peer::Peer;

/// The end of one peer's process, to wait or past.
#[derive(Debug)]
pub struct PeerExit(Option<AsyncFd<Arc<OwnedFd>>>);

impl PeerExit {
    /// That of `peer`. Where the kernel gives no handle that tells, or no room to wait for one more, it never comes.
    pub fn of(peer: &Peer) -> Self {
        Self(peer.process().and_then(watched))
    }

    /// Waits for it.
    pub async fn wait(&self) {
        match &self.0 {
            // A pidfd becomes readable when its process ends (pidfd_open(2)), and stays so.
            Some(handle) if handle.readable().await.is_ok() => (),
            _ => future::pending().await,
        }
    }
}

fn watched(process: Arc<OwnedFd>) -> Option<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor is owned by what is handed over here, which is neither exchanged nor taken out again,
    // so it stays open and the same until it is deregistered.
    #[expect(unsafe_code, reason = "tokio cannot tell by the type that the descriptor stays the same")]
    let registered = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
    registered.ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_process_that_is_there_has_not_departed() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let departure = PeerExit::of(&Peer::of(ours.as_fd()).unwrap());
        assert!(departure.0.is_some(), "this kernel tells of a process's end");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(departure.wait().now_or_never().is_none());
    }
}

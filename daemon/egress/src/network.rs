//! Notices when the host's network changes, so that what failed for want of it is tried again at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// Links, addresses and routes, of both versions of IP (rtnetlink(7)).
const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// A network that comes up changes many times in a row: link, address, routes, the other version of IP.
const SETTLED: Duration = Duration::from_millis(500);

/// The least time between two changes that are heeded, at first. It doubles as long as changes go on, because on a
/// host with containers they never end, and each one heeded costs a provider that is down some requests ...
pub(crate) const GAP_FIRST: Duration = Duration::from_secs(5);

/// ... up to the longest back-off there is, so that heeding them costs no more than the schedule does.
const GAP_MOST: Duration = Duration::from_secs(5 * 60);

/// Calls `changed` after a change of the network, once for those that come together, and ever more seldom for those
/// that do not end. Runs until it is dropped.
///
/// # Errors
/// What the kernel says where it does not tell of changes. The daemon can run on without it: it then tries again
/// when its back-off ends.
pub async fn watch(changed: impl Fn()) -> io::Result<()> {
    let events = subscribe()?;
    // SAFETY: the descriptor stays the same and open as long as `registered` lives, which borrows it.
    #[expect(unsafe_code, reason = "the safe constructor cannot promise that the descriptor stays open")]
    let registered = unsafe { AsyncFd::register(events.as_fd()) }.map_err(io::Error::from)?;
    loop {
        registered.readable().await?.clear_ready();
        tokio::time::sleep(SETTLED).await;
        let mut gap = GAP_FIRST;
        while drain(&events)? {
            changed();
            tokio::time::sleep(gap).await;
            gap = (gap * 2).min(GAP_MOST);
        }
    }
}

fn subscribe() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let events = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    let groups = u32::try_from(GROUPS).map_err(io::Error::other)?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(events)
}

/// Takes what has come, and tells whether anything has. What it says is of no interest.
fn drain(events: &OwnedFd) -> io::Result<bool> {
    let mut message = [0; 8192];
    let mut came = false;
    loop {
        match recv(events.as_raw_fd(), &mut message, MsgFlags::empty()) {
            // More came than the kernel keeps, which is a change all the same.
            Ok(_) | Err(Errno::ENOBUFS) => came = true,
            Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN) => return Ok(came),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;
    use crate::scene::{in_own_network, raise_link};

    #[test]
    fn a_link_that_comes_up_is_noticed_once() {
        in_own_network(|| async {
            let noticed = Arc::new(Notify::new());
            let notify = Arc::clone(&noticed);
            let watching = watch(move || notify.notify_one());
            let raising = async {
                // The watch is set up when it is polled first, which `select!` does first.
                raise_link();
                tokio::time::timeout(Duration::from_secs(20), noticed.notified()).await.unwrap();
            };
            tokio::select! {
                biased;
                ended = watching => panic!("it ended: {ended:?}"),
                () = raising => (),
            }
        });
    }
}

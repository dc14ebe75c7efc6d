//! Notices when the host's network changes, so that requests that failed for want of it are tried again soon.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::net::UnixDatagram;

/// Links, addresses and routes, of both versions of IP (rtnetlink(7)).
const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// A network that comes up changes several times in a row: link, address, routes, the other version of IP.
const SETTLED: Duration = Duration::from_millis(500);

/// The time between two notices, at first. It doubles while changes go on: on a host with containers they never end, and
/// each notice costs a provider that is down some requests.
const GAP_FIRST: Duration = Duration::from_secs(5);

/// The longest time between two notices: the longest back-off after a failure that passes by itself.
const GAP_MOST: Duration = Duration::from_secs(5 * 60);

/// Calls `changed` after a change of the network, once for several in a row. Runs until it is dropped.
///
/// # Errors
/// The kernel's error where it gives no notices. Requests are then tried again when their back-off ends.
pub async fn watch(changed: impl Fn()) -> io::Result<()> {
    let events = subscribe()?;
    loop {
        events.readable().await?;
        tokio::time::sleep(SETTLED).await;
        let mut gap = GAP_FIRST;
        while drain(&events)? {
            changed();
            tokio::time::sleep(gap).await;
            gap = (gap * 2).min(GAP_MOST);
        }
    }
}

/// A socket with the kernel's notices. Tokio has no netlink socket, but reads every kind of datagram socket alike.
fn subscribe() -> io::Result<UnixDatagram> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let events = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    let groups = u32::try_from(GROUPS).map_err(io::Error::other)?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    UnixDatagram::from_std(StdDatagram::from(events))
}

/// Reads all notices, whose content does not matter, and returns whether there was one.
fn drain(events: &UnixDatagram) -> io::Result<bool> {
    let (mut buffer, mut any) = ([0; 8192], false);
    loop {
        match events.try_recv(&mut buffer) {
            Ok(_) => any = true,
            // The kernel has dropped notices.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use nix::sched::{CloneFlags, unshare};
    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn a_link_that_comes_up_is_noticed() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        // A thread of its own, because the network is the thread's.
        let noticed = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let noticed = Notify::new();
                let raising = async {
                    // `select!` has polled the watch before, and so set it up.
                    let raised = Command::new("ip").args(["link", "set", "lo", "up"]).status();
                    assert!(raised.unwrap().success());
                    tokio::time::timeout(Duration::from_secs(60), noticed.notified()).await.unwrap();
                };
                tokio::select! {
                    biased;
                    ended = watch(|| noticed.notify_one()) => panic!("the watch ended: {ended:?}"),
                    () = raising => (),
                }
            });
        });
        noticed.join().unwrap();
    }
}

//! Watches the host's network, so that requests that failed without it are tried again after a change.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::net::UnixDatagram;

/// Links, addresses and routes (rtnetlink(7)).
const GROUPS: u32 = (libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE)
    .cast_unsigned();

/// A network that comes up changes several times in a row: link, address, routes, the other version of IP.
const SETTLED: Duration = Duration::from_millis(500);

/// The first and the longest time between two notices. It doubles while changes go on, as on a host with containers.
const GAPS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5 * 60));

/// Calls `changed` after a change of the network, once for several in a row.
///
/// # Errors
/// The kernel refuses or closes the netlink socket, as in a unit without network access.
pub async fn watch(changed: impl Fn()) -> io::Result<()> {
    // Tokio has no netlink socket, but reads every kind of datagram socket alike.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let events = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    let events = UnixDatagram::from_std(StdDatagram::from(events))?;
    loop {
        events.readable().await?;
        tokio::time::sleep(SETTLED).await;
        let (mut gap, longest) = GAPS;
        while drain(&events)? {
            changed();
            tokio::time::sleep(gap).await;
            gap = (gap * 2).min(longest);
        }
    }
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
                    _ = watch(|| noticed.notify_one()) => panic!("the watch ended"),
                    () = raising => (),
                }
            });
        });
        noticed.join().unwrap();
    }
}

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

/// Calls `changed` after each change of the network, once for those that come together. Runs until it is dropped.
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
        drain(&events)?;
        changed();
    }
}

fn subscribe() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let events = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    let groups = u32::try_from(GROUPS).map_err(io::Error::other)?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(events)
}

/// Takes what has come. What it says is of no interest, only that it came.
fn drain(events: &OwnedFd) -> io::Result<()> {
    let mut message = [0; 8192];
    loop {
        match recv(events.as_raw_fd(), &mut message, MsgFlags::empty()) {
            // More came than the kernel keeps, which is a change all the same.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => (),
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use nix::sched::{CloneFlags, unshare};
    use tokio::sync::Notify;

    use super::*;

    /// In a network of its own, which a thread may leave its process for, so that the host's is not touched.
    #[test]
    fn a_link_that_comes_up_is_noticed_once() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let alone = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let noticed = Arc::new(Notify::new());
                let notify = Arc::clone(&noticed);
                let watching = watch(move || notify.notify_one());
                let raising = async {
                    // The watch is set up when it is polled first, which `join!` does first.
                    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
                    tokio::time::timeout(Duration::from_secs(20), noticed.notified()).await.unwrap();
                };
                tokio::select! {
                    biased;
                    ended = watching => panic!("it ended: {ended:?}"),
                    () = raising => (),
                }
            });
        });
        alone.join().unwrap();
    }
}

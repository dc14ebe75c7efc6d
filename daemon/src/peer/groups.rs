//! Reads the supplementary groups of a peer (`SO_PEERGROUPS`, unix(7)). They are those with which the process connected.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

use super::abilities::{GROUPS, is_mapped};
use crate::access::Groups;

/// As many groups as are read at once. Reading more may take long.
const FEW: usize = 64;

/// The supplementary groups if they are few, in one system call. `None` if they are many: see [`all_groups`].
pub fn few_groups(socket: BorrowedFd<'_>) -> io::Result<Option<Groups>> {
    let mut room = [0; FEW];
    let count = read(socket, &mut room)?;
    Ok(room.get(..count).map(|groups| mapped(groups.to_vec())))
}

/// All supplementary groups. To read 65,536 of them takes the kernel some milliseconds.
pub fn all_groups(socket: BorrowedFd<'_>) -> io::Result<Groups> {
    let mut room = vec![0; read(socket, &mut [])?];
    let count = read(socket, &mut room)?;
    room.truncate(count);
    Ok(mapped(room))
}

/// Without the groups that this process's user namespace does not map, which the kernel shows as the overflow id.
fn mapped(mut groups: Vec<u32>) -> Groups {
    groups.retain(|gid| is_mapped(*gid, &GROUPS));
    groups.into()
}

/// Reads the groups and returns their number. Nothing is read if `room` is too small for them.
fn read(socket: BorrowedFd<'_>, room: &mut [libc::gid_t]) -> io::Result<usize> {
    let mut bytes = libc::socklen_t::try_from(size_of_val(room)).map_err(io::Error::other)?;
    let (fd, start) = (socket.as_raw_fd(), room.as_mut_ptr().cast());
    // SAFETY: the descriptor is borrowed and so open; `room` is valid for `bytes` bytes, and the kernel writes at most that
    // many and sets `bytes` to the number that it needs.
    #[expect(unsafe_code, reason = "a socket option of variable length, which nix does not wrap")]
    let status =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, start, &raw mut bytes) };
    match Errno::result(status) {
        Ok(_) | Err(Errno::ERANGE) => (),
        Err(error) => return Err(error.into()),
    }
    Ok(usize::try_from(bytes).map_err(io::Error::other)? / size_of::<libc::gid_t>())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What [`few_groups`] and [`all_groups`] read of a process with these groups.
    fn told(groups: &[u32]) -> (Option<Groups>, Groups) {
        let connected = || {
            // SAFETY: the kernel reads as many numbers as there are.
            #[expect(unsafe_code, reason = "the libraries' call is for all threads")]
            let status = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
            assert_eq!(status, 0);
            let (ours, _theirs) = UnixStream::pair().unwrap();
            (few_groups(ours.as_fd()).unwrap(), all_groups(ours.as_fd()).unwrap())
        };
        std::thread::scope(|scope| scope.spawn(connected).join().unwrap())
    }

    #[test]
    fn few_groups_are_read_at_once_and_many_when_asked() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        for (count, is_few) in [(0, true), (1, true), (64, true), (65, false), (1000, false), (65_536, false)]
        {
            let groups: Vec<u32> = (1_000_000..1_000_000 + count).rev().collect();
            let expected = Groups::from(groups.clone());
            let at_once = is_few.then(|| expected.clone());
            assert!(told(&groups) == (at_once, expected), "{count}");
        }
    }
}

//! A process that connects to the daemon as some user and hands its connection over to the test.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{Gid, setgroups};

use crate::tokenctl::User;
use crate::{RawPeer, program};

/// The process, which lives until it is told to end, or is dropped.
#[derive(Debug)]
pub struct FdDonor {
    child: Child,
    way: Option<UnixStream>,
}

impl FdDonor {
    /// Starts one as `user`, which root can become, and takes its connection over.
    ///
    /// # Panics
    /// When it brings none.
    pub fn start(socket: &Path, user: &User) -> (Self, RawPeer) {
        Self::start_as(socket, user, "fd_donor")
    }

    /// [`FdDonor::start`] with a copy of the program under this name.
    ///
    /// # Panics
    /// When it brings none.
    pub fn start_as(socket: &Path, user: &User, program: &str) -> (Self, RawPeer) {
        let copy = socket.with_file_name(program);
        if !copy.exists() {
            program::copy(&program::fd_donor(), &copy);
        }
        let (way, theirs) = UnixStream::pair().expect("a pair of sockets can be made");
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
        command.args(["--keep-groups", "--"]).arg(&copy).arg(socket);
        let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
        // SAFETY: between fork and exec, this only makes one system call.
        #[expect(unsafe_code, reason = "as an argument of setpriv, many groups would be too long")]
        unsafe {
            command.pre_exec(move || Ok(setgroups(&groups)?));
        }
        let child =
            command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn().expect("the donor can be started");
        // Ours alone keeps the way open, once the command is gone with its copy of the other end.
        drop(command);
        let connection = receive(&way).expect("the donor passes its connection");
        let peer = RawPeer::over(connection).expect("the connection can be used");
        (Self { child, way: Some(way) }, peer)
    }

    /// Lets it end, and waits until it has.
    pub fn end(&mut self) {
        self.way = None;
        let _ = self.child.wait();
    }
}

impl Drop for FdDonor {
    fn drop(&mut self) {
        self.end();
    }
}

fn receive(way: &UnixStream) -> io::Result<UnixStream> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(way.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let [descriptor] = descriptors.as_slice()
        {
            return Ok(adopt(*descriptor));
        }
    }
    Err(io::Error::other("a message without a descriptor"))
}

fn adopt(descriptor: i32) -> UnixStream {
    // SAFETY: the kernel has just installed this descriptor for this process, and nothing else knows of it.
    #[expect(unsafe_code, reason = "descriptors come from the kernel as numbers")]
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    UnixStream::from(owned)
}

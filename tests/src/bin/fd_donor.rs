//! A process that connects to the daemon, gives its connection away, and ends when it is told to: what a test needs
//! to see that a connection is worth nothing once the process that made it is gone.
//!
//! `fd_donor SOCKET` sends the connected descriptor over its standard input, which must be a Unix socket, and ends
//! when that is closed at the other end.

use std::env;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

fn main() -> ExitCode {
    match deliver() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = io::Write::write_all(&mut io::stderr(), format!("fd_donor: {error}\n").as_bytes());
            ExitCode::from(2)
        }
    }
}

fn deliver() -> io::Result<()> {
    let socket = env::args_os().nth(1).ok_or_else(|| io::Error::other("expected SOCKET"))?;
    let connection = UnixStream::connect(socket)?;
    let way = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let descriptors = [connection.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(way.as_raw_fd(), &[IoSlice::new(b"c")], &message, MsgFlags::empty(), None)?;
    let mut rest = Vec::new();
    (&way).read_to_end(&mut rest)?;
    Ok(())
}

//! Callers that tokenctl is not: one that hands its connection over, one that takes it, and one that takes the
//! number of a process that has ended. Used by the suite on a real systemd, in a machine of its own.
//!
//! - `fd_relay give PATH SOCKET [TOKEN]` connects to SOCKET, asks for TOKEN there, passes the connection on at PATH,
//!   prints its own number and the answer, and ends when it is let go.
//! - `fd_relay take PATH TOKEN` takes a connection at PATH and asks for TOKEN on it, once while the giver lives and once
//!   when it has ended.
//! - `fd_relay take PATH TOKEN FILE` lets the giver go at once, and asks when FILE is there.
//! - `fd_relay occupy NUMBER USER` runs a process with this number as this user, as root alone may.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic, reason = "a program of the tests")]

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::{env, fs, process};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt,
};
use nix::unistd::{User, pause, setgid, setgroups, setuid};
use tokend_protocol::Reply;
use tokend_tests::{RawPeer, raw_peer, wait};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["give", path, socket] => give(path, socket, None),
        ["give", path, socket, token] => give(path, socket, Some(token)),
        ["take", path, token] => take_twice(path, token),
        ["take", path, token, file] => take_later(path, token, file),
        ["occupy", number, user] => occupy(number.parse().unwrap(), user),
        _ => panic!("unknown arguments: {arguments:?}"),
    }
}

fn give(path: &str, socket: &str, token: Option<&str>) {
    let mut connection = RawPeer::connect(Path::new(socket)).unwrap();
    let answer = token.map(|token| ask(&mut connection, token));
    let mut taker = wait::until("somebody who takes it", || UnixStream::connect(path).ok());
    let passed = [connection.stream().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&passed)];
    sendmsg::<()>(taker.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).unwrap();
    println!("{} {}", process::id(), answer.unwrap_or("nothing asked"));
    // Until the taker lets go.
    let _ = taker.read(&mut [0]);
}

fn take_twice(path: &str, token: &str) {
    let (mut connection, mut giver) = take(path);
    println!("while it lives: {}", ask(&mut connection, token));
    let process = getsockopt(&giver, sockopt::PeerPidfd).unwrap();
    giver.write_all(b"x").unwrap();
    let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut ended, PollTimeout::from(20_000_u16)), Ok(1), "the giver has not ended");
    println!("when it has ended: {}", ask(&mut connection, token));
}

fn take_later(path: &str, token: &str, file: &str) {
    let (mut connection, giver) = take(path);
    drop(giver);
    wait::until("the file that says when", || Path::new(file).exists().then_some(()));
    println!("later: {}", ask(&mut connection, token));
}

/// A connection, and whoever passes it on.
fn take(path: &str) -> (RawPeer, UnixStream) {
    let listener = UnixListener::bind(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    let (giver, _) = listener.accept().unwrap();
    let mut bytes = [0];
    let mut buffer = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message =
        recvmsg::<()>(giver.as_raw_fd(), &mut buffer, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    let passed = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::ScmRights(passed) => passed.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for this process, and nothing else knows its number.
    #[expect(unsafe_code, reason = "taking over a descriptor that was passed")]
    let connection = unsafe { OwnedFd::from_raw_fd(passed.unwrap()) };
    (RawPeer::over(UnixStream::from(connection)).unwrap(), giver)
}

/// What comes of a request. A connection that is closed may be noticed at either end of it.
fn ask(connection: &mut RawPeer, token: &str) -> &'static str {
    if connection.send(1, raw_peer::get(token)).is_err() {
        return "closed";
    }
    match connection.receive() {
        Ok(Some(Ok(frame))) => match frame.message {
            Reply::Token(_) => "a token",
            Reply::Error(_) => "refused",
            _ => "another answer",
        },
        Ok(None) | Err(_) => "closed",
        Ok(Some(Err(_))) => "an answer that cannot be read",
    }
}

/// Runs until it is killed.
fn occupy(number: libc::pid_t, user: &str) {
    let user = User::from_name(user).unwrap().unwrap();
    // The number is free when the process that had it has been waited for.
    let child = wait::until("the number", || clone_with(number));
    if child == 0 {
        setgroups(&[]).unwrap();
        setgid(user.gid).unwrap();
        setuid(user.uid).unwrap();
    }
    loop {
        pause();
    }
}

/// Forks a child with this number: 0 in the child, `None` where the number is taken.
fn clone_with(number: libc::pid_t) -> Option<i64> {
    let numbers = [number];
    // SAFETY: a `clone_args` is numbers, for each of which 0 is a good value.
    #[expect(unsafe_code, reason = "a structure of the kernel")]
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = u64::try_from(libc::SIGCHLD).unwrap();
    arguments.set_tid = numbers.as_ptr().addr() as u64;
    arguments.set_tid_size = 1;
    // SAFETY: the process has one thread, so the child may go on as this one does; both structures live until the
    // call is done.
    #[expect(unsafe_code, reason = "a system call that no library wraps")]
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    if child >= 0 {
        return Some(child);
    }
    let error = std::io::Error::last_os_error();
    assert_eq!(
        error.raw_os_error(),
        Some(libc::EEXIST),
        "no process can be given the number {number}: {error}"
    );
    None
}

//! The floor: about the least work with which a server can answer. One thread waits with epoll, reads, counts the frames of
//! requests and writes as many copies of one reply. It looks at no request and knows no caller.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokend_tests::bench;

/// Replies that one write takes at most.
const AT_ONCE: usize = 64;

const EVENTS: usize = 1024;
const READ_MAX: usize = 64 * 1024;

struct Connection {
    stream: UnixStream,
    /// The beginning of a request.
    rest: Vec<u8>,
}

struct Floor {
    epoll: Epoll,
    listener: UnixListener,
    /// By their descriptors.
    connections: Vec<Option<Connection>>,
    /// Copies of the reply.
    replies: Vec<u8>,
}

/// Serves until the process that started this one ends. The file holds the reply.
pub(crate) fn serve(reply: &str, socket: &str) {
    bench::end_with_input();
    let replies = fs::read(reply).unwrap().repeat(AT_ONCE);
    let listener = UnixListener::bind(Path::new(socket)).unwrap();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    watch(&epoll, &listener);
    let mut floor = Floor { epoll, listener, connections: Vec::new(), replies };
    let (mut events, mut room) = (vec![EpollEvent::empty(); EVENTS], vec![0; READ_MAX]);
    loop {
        let ready = floor.epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
        for event in &events[..ready] {
            let descriptor = RawFd::try_from(event.data()).unwrap();
            if descriptor == floor.listener.as_raw_fd() {
                floor.accept();
            } else {
                floor.answer(descriptor, &mut room);
            }
        }
    }
}

fn watch(epoll: &Epoll, source: &(impl AsRawFd + AsFd)) {
    let number = u64::try_from(source.as_raw_fd()).unwrap();
    epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN, number)).unwrap();
}

impl Floor {
    fn accept(&mut self) {
        let (stream, _) = self.listener.accept().unwrap();
        watch(&self.epoll, &stream);
        let number = usize::try_from(stream.as_raw_fd()).unwrap();
        if self.connections.len() <= number {
            self.connections.resize_with(number + 1, || None);
        }
        self.connections[number] = Some(Connection { stream, rest: Vec::new() });
    }

    /// Reads once and answers each request that is complete.
    fn answer(&mut self, descriptor: RawFd, room: &mut [u8]) {
        let slot = &mut self.connections[usize::try_from(descriptor).unwrap()];
        let connection = slot.as_mut().unwrap();
        let answered = connection.receive(room).and_then(|requests| {
            let Some(mut left) = requests else { return Ok(false) };
            let size = self.replies.len() / AT_ONCE;
            while left > 0 {
                let now = left.min(AT_ONCE);
                connection.stream.write_all(&self.replies[..now * size])?;
                left -= now;
            }
            Ok(true)
        });
        if !answered.unwrap_or(false) {
            *slot = None;
        }
    }
}

impl Connection {
    /// Reads once: how many requests are complete, or `None` at the end.
    fn receive(&mut self, room: &mut [u8]) -> io::Result<Option<usize>> {
        let size = self.stream.read(room)?;
        if size == 0 {
            return Ok(None);
        }
        if self.rest.is_empty() {
            let (requests, used) = complete(&room[..size]);
            self.rest.extend_from_slice(&room[used..size]);
            return Ok(Some(requests));
        }
        self.rest.extend_from_slice(&room[..size]);
        let (requests, used) = complete(&self.rest);
        self.rest.drain(..used);
        Ok(Some(requests))
    }
}

/// How many whole frames are at the beginning of some bytes, and their length.
fn complete(bytes: &[u8]) -> (usize, usize) {
    let (mut frames, mut used) = (0, 0);
    while let Some(length) = bytes[used..].first_chunk::<4>() {
        let end = used + 4 + usize::try_from(u32::from_be_bytes(*length)).unwrap();
        if end > bytes.len() {
            break;
        }
        (frames, used) = (frames + 1, end);
    }
    (frames, used)
}

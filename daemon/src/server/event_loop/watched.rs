//! The descriptors that the event loop watches, and who owns each.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Weak;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::peer::Process;
use crate::server::accept::Arrival;
use crate::server::connection::Connection;
use crate::server::fair_queue::ReadyList;

/// The owner of a watched descriptor.
pub(super) enum Watched {
    /// Its caller is not identified yet.
    Arrival {
        arrival: Box<Arrival>,
        /// When it came.
        step: u64,
    },
    Connection(Idle),
    /// A pidfd.
    Process(Weak<Process>),
}

impl Watched {
    /// Whether it is a process without connections, whose pidfd is closed.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self, Self::Process(process) if process.strong_count() == 0)
    }

    pub(super) fn connection(place: &mut Option<Self>) -> Option<&mut Idle> {
        match place {
            Some(Self::Connection(idle)) => Some(idle),
            _ => None,
        }
    }
}

/// A connection that no task has.
pub(super) struct Idle {
    pub(super) connection: Box<Connection>,
    /// The pidfd of its process, here because those of all connections are looked at when a process ends.
    pub(super) pidfd: Option<RawFd>,
}

impl Idle {
    pub(super) fn new(connection: Box<Connection>) -> Self {
        let pidfd = connection.session.peer.process().map(|process| process.as_fd().as_raw_fd());
        Self { connection, pidfd }
    }

    /// Whether it is registered, and its process watched.
    pub(super) fn is_settled(&self) -> bool {
        let Connection { in_loop, session, .. } = &*self.connection;
        in_loop.is_registered && session.peer.process().is_none_or(|process| process.is_watched())
    }

    /// Notes that there is something to do.
    pub(super) fn note(&mut self, descriptor: RawFd, ready: &mut ReadyList) {
        let Connection { in_loop, session, .. } = &mut *self.connection;
        if !mem::replace(&mut in_loop.is_ready, true) {
            ready.push(&session.user_queue, descriptor);
        }
    }
}

/// The place of a descriptor.
#[expect(clippy::indexing_slicing, reason = "the list has just been made long enough")]
pub(super) fn slot(watched: &mut Vec<Option<Watched>>, descriptor: RawFd) -> &mut Option<Watched> {
    let index = usize::try_from(descriptor).unwrap_or_default();
    if watched.len() <= index {
        watched.resize_with(index + 1, || None);
    }
    &mut watched[index]
}

/// Adds a descriptor to those whose events come.
pub(super) fn add(epoll: &Epoll, source: &impl AsFd, events: EpollFlags) -> nix::Result<()> {
    let source = source.as_fd();
    let data = u64::try_from(source.as_raw_fd()).unwrap_or_default();
    epoll.add(source, EpollEvent::new(events, data))
}

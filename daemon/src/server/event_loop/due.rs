//! The timed work of the event loop: deadlines, watches of processes, and the end of a pause.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use nix::sys::epoll::{EpollFlags, EpollTimeout};
use tokio::time::Instant;

use super::Loop;
use super::watched::{Idle, Watched, add, slot};
use crate::server::accept::PAUSE;

/// Places in the table of descriptors whose room is worth giving back.
const MANY: usize = 1024;

impl Loop {
    /// Does what is due, and looks when something is due next.
    pub(super) fn pass_time(&mut self) {
        let Some(due) = self.next_due() else {
            self.timeout = if self.ready.is_empty() { EpollTimeout::NONE } else { EpollTimeout::ZERO };
            return;
        };
        let now = Instant::now();
        if due <= now {
            self.do_due(now);
        }
        let millis = due.saturating_duration_since(now).as_millis().saturating_add(1);
        let is_busy = due <= now || !self.ready.is_empty();
        let timeout = || EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX);
        self.timeout = if is_busy { EpollTimeout::ZERO } else { timeout() };
    }

    fn next_due(&self) -> Option<Instant> {
        let due = [&self.young, &self.silent].into_iter().filter_map(VecDeque::front).map(|(due, _)| *due);
        due.chain(self.acceptor.paused_until).chain(self.sessions.due()).min()
    }

    fn do_due(&mut self, now: Instant) {
        self.sessions.pass_time(now);
        while let Some(descriptor) = take_due(&mut self.young, now) {
            if let Some(Watched::Connection(idle)) = slot(&mut self.watched, descriptor) {
                self.silent.extend(idle.connection.deadline.map(|due| (due, descriptor)));
                let session = Arc::clone(&idle.connection.session);
                self.watch_process(&session);
            }
        }
        while let Some(descriptor) = take_due(&mut self.silent, now) {
            let slot = slot(&mut self.watched, descriptor);
            // The descriptor may belong to a younger connection by now.
            let is_late = |idle: &Idle| idle.connection.deadline.is_some_and(|due| due <= now);
            if matches!(slot, Some(Watched::Connection(idle)) if is_late(idle)) {
                tracing::debug!("a connection ended: no request has come");
                *slot = None;
            }
        }
        if self.acceptor.paused_until.take_if(|until| *until <= now).is_some()
            && add(&self.epoll, &self.acceptor.listener, EpollFlags::EPOLLIN).is_err()
        {
            self.acceptor.paused_until = Some(now + PAUSE);
        }
    }

    /// Gives back room that many connections have left.
    pub(super) fn give_back_room(&mut self) {
        if self.watched.len() < MANY {
            return;
        }
        while self.watched.pop_if(|place| place.as_ref().is_none_or(Watched::has_ended)).is_some() {}
        // Seldom, also if connections come and go all the time.
        if self.watched.capacity() > 8 * self.watched.len() {
            self.watched.shrink_to(2 * self.watched.len());
            self.young.shrink_to(2 * self.young.len());
            self.silent.shrink_to(2 * self.silent.len());
        }
    }
}

fn take_due(queue: &mut VecDeque<(Instant, RawFd)>, now: Instant) -> Option<RawFd> {
    let (due, descriptor) = *queue.front()?;
    (due <= now).then(|| queue.pop_front()).map(|_| descriptor)
}

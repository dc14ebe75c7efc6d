//! The event loop: one thread that accepts connections and answers all that can be answered at once.
//!
//! One call waits for all connections (epoll(7)). If a connection has to wait for something else, a task on the runtime
//! takes it: for an answer that needs a provider, for a watch, or for a caller that does not read. The task gives the connection
//! back as soon as it is idle. So an idle connection has no task, and no provider's answer delays a token that is held.

mod due;
mod progress;
mod returned;
mod watched;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use self::progress::{EndOfProcess, Progress};
use self::returned::Returned;
use self::watched::{Idle, Watched, add, slot};
use crate::server::ServerState;
use crate::server::accept::{Acceptor, Arrival, Identified, Listener, identify, refusal_frame};
use crate::server::connection::{Buffers, Connection, Next, Turn};
use crate::server::fair_queue::ReadyList;
use crate::server::session::Session;
use crate::server::sessions::Sessions;

/// Events that are taken at once.
const EVENTS_MAX: usize = 1024;

/// How long a connection lasts before the end of its process is watched, unless the process asks or connects twice. Most are
/// shorter, and this saves them the system calls of a watch.
const EXIT_WATCH_DELAY: Duration = Duration::from_secs(1);

/// The cost of giving a connection to a task, in units of a turn.
const HAND_OVER_UNITS: u32 = 4;

/// The event loop of a daemon. It ends when this is dropped.
#[derive(Debug)]
pub struct EventLoop {
    returned: Arc<Returned>,
    progress: Arc<Progress>,
    /// `None` once it is stopped.
    thread: Option<thread::JoinHandle<()>>,
}

struct Loop {
    epoll: Epoll,
    acceptor: Acceptor,
    shared: Arc<ServerState>,
    returned: Arc<Returned>,
    progress: Arc<Progress>,
    /// By descriptor.
    watched: Vec<Option<Watched>>,
    ready: ReadyList,
    /// New connections, and when their processes are watched. The oldest is the first.
    young: VecDeque<(Instant, RawFd)>,
    /// Connections without a request yet, and when that is too late. The oldest is the first.
    silent: VecDeque<(Instant, RawFd)>,
    buffers: Buffers,
    sessions: Sessions,
    /// The number of the present step.
    step: u64,
    /// How long to wait, if nothing is ready: until something is due.
    timeout: EpollTimeout,
}

impl EventLoop {
    /// Starts the thread. Its tasks are on this runtime.
    pub fn start(listener: Listener, shared: Arc<ServerState>) -> io::Result<Self> {
        let (event_loop, runtime) = (Loop::new(listener, shared)?, Handle::current());
        let (returned, progress) = (Arc::clone(&event_loop.returned), Arc::clone(&event_loop.progress));
        let thread = thread::Builder::new().name("callers".to_owned()).spawn(move || {
            let _end_of_process = EndOfProcess;
            let _runtime = runtime.enter();
            // Dropped within the runtime, which closes descriptors that callers sent.
            let mut event_loop = event_loop;
            let mut events = [EpollEvent::empty(); EVENTS_MAX];
            while event_loop.step(event_loop.timeout, &mut events, &runtime) {}
        })?;
        Ok(Self { returned, progress, thread: Some(thread) })
    }

    /// Ends the loop, and waits until it serves nobody and has closed its connections and its socket.
    pub async fn stop(mut self) {
        self.returned.close();
        if let Some(thread) = self.thread.take() {
            let _ = spawn_blocking(move || thread.join()).await;
        }
    }

    /// Whether the loop waits, or has got on since this was last asked.
    pub fn is_alive(&self) -> bool {
        self.progress.is_made()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.returned.close();
    }
}

impl Loop {
    fn new(listener: Listener, shared: Arc<ServerState>) -> io::Result<Self> {
        let returned = Arc::new(Returned::new()?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        add(&epoll, &listener, EpollFlags::EPOLLIN)?;
        add(&epoll, &*returned, EpollFlags::EPOLLIN)?;
        Ok(Self {
            epoll,
            acceptor: Acceptor::new(listener, refusal_frame, |user| user.uid),
            ready: ReadyList::new(&shared.fair_queue),
            shared,
            returned,
            progress: Arc::default(),
            watched: Vec::new(),
            young: VecDeque::new(),
            silent: VecDeque::new(),
            buffers: Buffers::default(),
            sessions: Sessions::default(),
            step: 0,
            timeout: EpollTimeout::NONE,
        })
    }

    /// Waits for events, and gives every user who has something to do a round. Returns whether to go on.
    fn step(&mut self, timeout: EpollTimeout, events: &mut [EpollEvent], runtime: &Handle) -> bool {
        let count = match self.epoll.wait(events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            #[expect(clippy::panic, reason = "nobody can be served any more, and so the process ends")]
            Err(error) => panic!("connections cannot be waited for: {error}"),
        };
        self.progress.note();
        self.step += 1;
        if !self.note(events.get(..count).unwrap_or_default()) {
            return false;
        }
        while let Some(descriptor) = self.ready.take_next() {
            // A fault over one connection, which the panic hook has logged, ends no other.
            if catch_unwind(AssertUnwindSafe(|| self.serve(descriptor, runtime))).is_err() {
                *slot(&mut self.watched, descriptor) = None;
                self.buffers = Buffers::default();
            }
        }
        self.ready.end_round();
        self.give_back_room();
        self.pass_time();
        // Also while there is more to do, which may be so for as long as a user likes.
        self.buffers.wipe();
        self.progress.note();
        true
    }

    /// Notes what is ready. Returns whether to go on.
    fn note(&mut self, events: &[EpollEvent]) -> bool {
        let (mut has_arrivals, mut ended) = (false, Vec::new());
        for event in events {
            let Ok(descriptor) = RawFd::try_from(event.data()) else { continue };
            if descriptor == self.acceptor.listener.as_raw_fd() {
                has_arrivals = true;
            } else if descriptor == self.returned.as_fd().as_raw_fd() {
                if !self.take_returned() {
                    return false;
                }
            } else {
                match slot(&mut self.watched, descriptor) {
                    Some(Watched::Connection(idle)) => idle.note(descriptor, &mut self.ready),
                    Some(Watched::Process(process)) => {
                        // The event may be of another process, whose pidfd had the number and is still open in a child.
                        if let Some(process) = process.upgrade().filter(|process| !process.is_alive()) {
                            process.end();
                            ended.push(descriptor);
                        }
                    }
                    Some(Watched::Arrival { .. }) | None => (),
                }
            }
        }
        // Before any of them is served. Another process may hold their other ends, but has none of the rights. They are closed in
        // turns of their user: there may be many, with much to discard.
        if !ended.is_empty() {
            for idle in self.watched.iter_mut().filter_map(Watched::connection) {
                if idle.pidfd.is_some_and(|pidfd| ended.contains(&pidfd)) {
                    idle.connection.in_loop.has_lost_peer = true;
                    idle.note(idle.connection.stream.as_raw_fd(), &mut self.ready);
                }
            }
        }
        if has_arrivals {
            self.accept();
        }
        true
    }

    /// Takes over the connections that tasks have given back. Returns whether to go on.
    fn take_returned(&mut self) -> bool {
        let Some(connections) = self.returned.take() else { return false };
        for connection in connections {
            // Its process may have ended while nobody had it.
            if !connection.session.peer.is_gone() {
                let (descriptor, is_silent) = (connection.stream.as_raw_fd(), connection.deadline.is_some());
                *slot(&mut self.watched, descriptor) = Some(Watched::Connection(Idle::new(connection)));
                self.keep(descriptor, is_silent);
            }
        }
        !self.shared.stop.is_cancelled()
    }

    #[inline(never)]
    fn accept(&mut self) {
        let Self { acceptor, shared, watched, ready, step, .. } = self;
        acceptor.accept(shared, |arrival| {
            let descriptor = arrival.stream.as_raw_fd();
            ready.push(arrival.user_queue(), descriptor);
            *slot(watched, descriptor) = Some(Watched::Arrival { arrival: Box::new(arrival), step: *step });
        });
        self.pause();
    }

    /// Serves a connection that is ready, in a turn of its user.
    fn serve(&mut self, descriptor: RawFd, runtime: &Handle) {
        let slot = slot(&mut self.watched, descriptor);
        match slot {
            Some(Watched::Connection(idle)) if idle.connection.in_loop.has_lost_peer => *slot = None,
            Some(Watched::Connection(idle)) => {
                idle.connection.in_loop.is_ready = false;
                self.take_turn(descriptor, false, runtime);
            }
            Some(Watched::Arrival { .. }) => {
                let Some(Watched::Arrival { mut arrival, step }) = slot.take() else { return };
                // The user's other connections may have taken long.
                if step < self.step && arrival.has_hung_up() {
                    arrival.stream.abandon();
                } else if arrival.read(&mut self.buffers.input) {
                    self.identify(*arrival, runtime);
                }
            }
            Some(Watched::Process(_)) | None => (),
        }
    }

    #[inline(never)]
    fn identify(&mut self, mut arrival: Arrival, runtime: &Handle) {
        let known = arrival.find(&self.sessions);
        let is_known = known.is_some();
        let peer = match arrival.peer(known.as_ref()) {
            Ok(peer) => peer,
            Err(error) => {
                self.acceptor.turn_away_unidentified(&mut arrival.stream, &error, &self.shared);
                return self.pause();
            }
        };
        match identify(arrival, peer, known, &self.shared) {
            Ok(Identified::Now(connection)) => {
                if let Some(connection) = connection {
                    self.begin(connection, is_known, runtime);
                }
            }
            Ok(Identified::Later(mut identified)) => match identified.as_mut().now_or_never() {
                Some(Ok(Some(connection))) => self.begin(connection, is_known, runtime),
                Some(Ok(None)) => (),
                Some(Err(error)) => log_end(&error),
                None => self.spawn(runtime, async move {
                    match identified.await? {
                        Some(connection) => connection.run(Turn::default()).await,
                        None => Ok(None),
                    }
                }),
            },
            Err(error) => log_end(&error),
        }
    }

    /// Begins to serve a connection whose caller is identified. The first request has mostly come with it. A process that
    /// connects again is watched at once.
    fn begin(&mut self, connection: Box<Connection>, is_known: bool, runtime: &Handle) {
        self.sessions.add(&connection.session, self.acceptor.accepted);
        if is_known {
            self.watch_process(&connection.session);
        }
        let descriptor = connection.stream.as_raw_fd();
        *slot(&mut self.watched, descriptor) = Some(Watched::Connection(Idle::new(connection)));
        self.take_turn(descriptor, true, runtime);
    }

    fn take_turn(&mut self, descriptor: RawFd, is_new: bool, runtime: &Handle) {
        let slot = slot(&mut self.watched, descriptor);
        let Some(Watched::Connection(idle)) = slot else { return };
        let turn = idle.connection.take_turn(None, &mut self.buffers);
        match idle.connection.next(&turn) {
            Next::Idle if idle.is_settled() => (),
            Next::Idle => self.keep(descriptor, is_new),
            Next::Ready => {
                idle.note(descriptor, &mut self.ready);
                self.keep(descriptor, is_new);
            }
            Next::Task => {
                let Some(Watched::Connection(Idle { connection, .. })) = slot.take() else { return };
                connection.session.user_queue.spend(HAND_OVER_UNITS);
                self.watch_process(&connection.session);
                if connection.in_loop.is_registered
                    && let Err(error) = self.epoll.delete(&connection.stream)
                {
                    return log_end(&error.into());
                }
                self.spawn(runtime, connection.run(turn));
            }
            Next::End => {
                *slot = None;
                let _ = turn.handled.inspect_err(log_end);
            }
        }
    }

    /// Keeps a connection until it is ready.
    #[inline(never)]
    fn keep(&mut self, descriptor: RawFd, is_new: bool) {
        let slot = slot(&mut self.watched, descriptor);
        let Some(Watched::Connection(Idle { connection, .. })) = slot else { return };
        if !connection.in_loop.is_registered {
            let event = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            if let Err(error) = add(&self.epoll, &connection.stream, event) {
                *slot = None;
                return log_end(&error.into());
            }
            connection.in_loop.is_registered = true;
        }
        let is_unwatched = connection.session.peer.process().is_some_and(|process| !process.is_watched());
        if is_new && (is_unwatched || connection.deadline.is_some()) {
            self.young.push_back((Instant::now() + EXIT_WATCH_DELAY, descriptor));
        } else if is_unwatched {
            let session = Arc::clone(&connection.session);
            self.watch_process(&session);
        }
    }

    /// Watches for the end of a caller's process. If that is impossible, the kernel is asked at each request.
    fn watch_process(&mut self, session: &Session) {
        let Some(process) = session.peer.process().filter(|process| !process.is_watched()) else {
            return;
        };
        if add(&self.epoll, process, EpollFlags::EPOLLIN | EpollFlags::EPOLLET).is_ok() {
            process.set_watched();
            // If it has ended before, its event would come too late for the requests that are ready now.
            if !process.is_alive() {
                process.end();
            }
            *slot(&mut self.watched, process.as_fd().as_raw_fd()) =
                Some(Watched::Process(Arc::downgrade(process)));
        }
    }

    /// Gives a connection to a task, which gives it back.
    fn spawn(
        &self,
        runtime: &Handle,
        task: impl Future<Output = io::Result<Option<Box<Connection>>>> + Send + 'static,
    ) {
        let returned = Arc::clone(&self.returned);
        drop(runtime.spawn(async move {
            match task.await {
                Ok(Some(connection)) => returned.add(connection),
                Ok(None) => (),
                Err(error) => log_end(&error),
            }
        }));
    }

    /// Takes no more connections for a while, if the acceptor needs a pause.
    fn pause(&mut self) {
        if self.acceptor.paused_until.is_some() {
            let _ = self.epoll.delete(&self.acceptor.listener);
        }
    }
}

fn log_end(error: &io::Error) {
    tracing::debug!(%error, "a connection ended");
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream as Caller;
    use std::process::{Child, Command, Stdio};

    use tokend_protocol::{Frame, Request, write_frame};

    use super::*;
    use crate::peer::Peer;
    use crate::quota::Quota;
    use crate::server::accept::tests::scene;
    use crate::server::accept::{QUEUE_MAX, take_place};
    use crate::server::stream::{Descriptors, Stream};

    /// Does all that can be done now.
    fn work(event_loop: &mut Loop) {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        for _ in 0..10 {
            assert!(event_loop.step(EpollTimeout::ZERO, &mut events, &Handle::current()));
        }
    }

    /// Reads once as the caller. Returns `None` if the connection is open and nothing has come.
    fn read(mut caller: &Caller) -> Option<usize> {
        match caller.read(&mut [0; 1024]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            read => Some(read.unwrap()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_ten_seconds_for_its_first_request_and_then_all_time() {
        let (listener, shared, path, _folder) = scene(Quota::default());
        let mut event_loop = Loop::new(Listener::new(listener, QUEUE_MAX).unwrap(), shared).unwrap();
        let [silent, mut asks] = [(); 2].map(|()| Caller::connect(&path).unwrap());
        silent.set_nonblocking(true).unwrap();
        asks.set_nonblocking(true).unwrap();
        work(&mut event_loop);
        tokio::time::advance(Duration::from_millis(9_900)).await;
        write_frame(&mut asks, &Frame { id: 1, message: Request::Version }).unwrap();
        work(&mut event_loop);
        assert!(read(&asks).unwrap() > 0);
        assert_eq!(read(&silent), None, "it may still ask");
        tokio::time::advance(Duration::from_millis(200)).await;
        work(&mut event_loop);
        assert_eq!(read(&silent), Some(0), "it is closed");
        tokio::time::advance(Duration::from_secs(86_400)).await;
        work(&mut event_loop);
        assert_eq!(read(&asks), None);
        assert_eq!(event_loop.timeout, EpollTimeout::NONE, "nothing is due any more");
    }

    #[tokio::test]
    async fn a_connection_comes_back_from_its_task_and_is_served_on() {
        let (listener, shared, path, _folder) = scene(Quota::default());
        let mut event_loop =
            Loop::new(Listener::new(listener, QUEUE_MAX).unwrap(), Arc::clone(&shared)).unwrap();
        let mut caller = Caller::connect(&path).unwrap();
        caller.set_nonblocking(true).unwrap();
        let mut frame = Vec::new();
        write_frame(&mut frame, &Frame { id: 1, message: Request::Version }).unwrap();
        let (beginning, rest) = frame.split_at(3);
        for _ in 0..3 {
            caller.write_all(beginning).unwrap();
            work(&mut event_loop);
            assert!(
                event_loop.watched.iter().flatten().all(|watched| !matches!(watched, Watched::Connection(_)))
            );
            caller.write_all(rest).unwrap();
            let mut has_answered = false;
            for _ in 0..1000 {
                tokio::task::yield_now().await;
                work(&mut event_loop);
                has_answered |= read(&caller).is_some();
                if has_answered
                    && event_loop
                        .watched
                        .iter()
                        .flatten()
                        .any(|watched| matches!(watched, Watched::Connection(_)))
                {
                    break;
                }
            }
            assert!(has_answered);
            // The event loop has it again.
            caller.write_all(&frame).unwrap();
            work(&mut event_loop);
            assert!(read(&caller).is_some());
        }
        assert_eq!(shared.connections.len(), 1);
    }

    /// A connection of a process, without a request yet. Returns the other end, which another process holds.
    fn connect(event_loop: &mut Loop, process: &Child) -> Caller {
        let (ours, heir) = Caller::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        heir.set_nonblocking(true).unwrap();
        let (shared, peer) = (Arc::clone(&event_loop.shared), Peer::of_process(process.id()));
        let place = take_place(peer.caller().uid, &shared, shared.clock.now()).unwrap();
        let stream = Stream::new(ours.into(), Descriptors::MayCome);
        let connection = Connection::new(stream, Arc::new(Session::new(shared, peer)), place, Vec::new());
        let descriptor = connection.stream.as_raw_fd();
        let idle = Idle::new(Box::new(connection));
        *slot(&mut event_loop.watched, descriptor) = Some(Watched::Connection(idle));
        event_loop.keep(descriptor, true);
        heir
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_of_a_process_that_has_ended_is_not_served() {
        let (listener, shared, _path, _folder) = scene(Quota::default());
        let mut event_loop = Loop::new(Listener::new(listener, QUEUE_MAX).unwrap(), shared).unwrap();
        let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let ask = |heir: &mut Caller| write_frame(heir, &Frame { id: 1, message: Request::Version }).unwrap();
        let [mut unwatched, mut watched] = [(); 2].map(|()| connect(&mut event_loop, &process));
        // The second request makes the loop watch the process.
        ask(&mut watched);
        work(&mut event_loop);
        ask(&mut watched);
        work(&mut event_loop);
        assert!(read(&watched).unwrap() > 0);
        process.kill().unwrap();
        process.wait().unwrap();
        // The other connection's watch begins when its request has already come.
        tokio::time::advance(EXIT_WATCH_DELAY).await;
        ask(&mut unwatched);
        ask(&mut watched);
        work(&mut event_loop);
        assert_eq!([read(&unwatched), read(&watched)], [Some(0); 2]);
        assert_eq!(event_loop.shared.connections.len(), 0);
    }

    #[tokio::test]
    async fn the_room_of_many_connections_is_given_back_when_they_close() {
        let (listener, shared, path, _folder) = scene(Quota::default());
        let mut event_loop = Loop::new(Listener::new(listener, QUEUE_MAX).unwrap(), shared).unwrap();
        let mut caller = Caller::connect(&path).unwrap();
        work(&mut event_loop);
        slot(&mut event_loop.watched, 100_000).take();
        work(&mut event_loop);
        assert!(event_loop.watched.capacity() < 10_000);
        write_frame(&mut caller, &Frame { id: 1, message: Request::Version }).unwrap();
        work(&mut event_loop);
        assert!(read(&caller).unwrap() > 0);
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_loop_that_was_stopped() {
        let (listener, shared, path, _folder) = scene(Quota::default());
        let event_loop =
            EventLoop::start(Listener::new(listener, QUEUE_MAX).unwrap(), Arc::clone(&shared)).unwrap();
        let _caller = Caller::connect(&path).unwrap();
        event_loop.stop().await;
        assert_eq!((Arc::strong_count(&shared), shared.connections.len()), (1, 0));
    }

    #[tokio::test]
    async fn no_connection_outlives_the_event_loop() {
        let (listener, shared, path, _folder) = scene(Quota::default());
        let event_loop =
            EventLoop::start(Listener::new(listener, QUEUE_MAX).unwrap(), Arc::clone(&shared)).unwrap();
        let mut caller = Caller::connect(&path).unwrap();
        write_frame(&mut caller, &Frame { id: 1, message: Request::Version }).unwrap();
        let ended = tokio::task::spawn_blocking(move || {
            assert!(caller.read(&mut [0; 1024]).unwrap() > 0);
            caller.read(&mut [0; 1024]).unwrap()
        });
        while shared.connections.is_empty() {
            tokio::task::yield_now().await;
        }
        drop(event_loop);
        assert_eq!(ended.await.unwrap(), 0);
        shared.connections.close();
        shared.connections.wait().await;
    }
}

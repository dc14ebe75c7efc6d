//! Accepts connections within limits: in total, so that descriptors never run out, and per user, so that no user can
//! shut out the others.
//!
//! All users wait in one queue of the kernel. So this is as quick as can be until the user of a connection is known, and
//! all further work is done in turns of that user.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, SockFlag, accept4, listen};
use tokend_protocol::{ErrorCode, Frame, Reply, encode};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::task::{spawn_blocking, yield_now};

use crate::access::{Facts, Groups};
use crate::clock::Instant;
use crate::peer::{self, Peer};
use crate::quota::{Allowance, Held, Resource};
use crate::server::ServerState;
use crate::server::audit::{Operation, Record, Refusal};
use crate::server::connection::Connection;
use crate::server::log_throttle::LogThrottle;
use crate::server::session::{Session, refusal};
use crate::server::stream::{Descriptors, Stream, refuse_descriptors, send_now};

/// After a failed accept. Without a pause the kernel would report the same connection again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait in the kernel's queue while the daemon serves. A caller may have to wait until as many connections
/// of another user have been accepted.
const QUEUE_MAX: i32 = 256;

/// The work of accepting before others have their turns. One unit is to drop a connection whose caller has hung up.
const BATCH_UNITS: u32 = 16;

/// The cost of a connection that is admitted or turned away, in units of a batch.
const ADMIT_UNITS: u32 = 2;

/// The cost of identifying a peer, in units of a turn.
const IDENTIFY_UNITS: u32 = 8;

/// The work of comparing a long list of groups with the others of its user.
const SHARE_MANY_GROUPS_UNITS: u32 = 8;

const TOO_MANY: &str = "too many open connections";

/// Connections that are reserved for root and the daemon's own user, unless the limit is low.
const RESERVED: usize = 64;

/// How many connections a user may have for each place that is free. However many users have as many as they can, there is
/// room for the first ones of another.
const PER_FREE_PLACE: usize = 8;

/// The listening socket of a daemon that serves. When it is dropped, the queue is as long as the kernel allows, because the
/// service manager may have the socket too, and callers wait in its queue for the next daemon.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        let listener = OwnedFd::from(listener.into_std()?);
        listen(&listener, Backlog::new(QUEUE_MAX)?)?;
        // SAFETY: the descriptor is owned, so it stays open and the same.
        #[expect(unsafe_code, reason = "tokio cannot know that the descriptor stays the same")]
        Ok(Self(unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = listen(&self.0, Backlog::MAXALLOWABLE);
    }
}

/// Accepts connections and starts a task for each. Never returns.
pub async fn run(listener: Listener, shared: Arc<ServerState>) {
    let of_new_connections = refuse_descriptors(&listener.0);
    // Those that were made before take descriptors on every kernel.
    let mut descriptors = Descriptors::MayCome;
    let (mut failures, mut unidentified) = (LogThrottle::default(), LogThrottle::default());
    // A reserved descriptor. Closing it makes room to accept one caller and turn it away.
    let mut spare = File::open("/dev/null").ok();
    loop {
        let admit = |socket| admit(socket, descriptors, &shared, &mut unidentified);
        match accept_batch(&listener.0, admit).await {
            Ok(is_drained) => {
                if is_drained {
                    descriptors = of_new_connections;
                }
                // Callers that connect without end must not delay those that are connected.
                yield_now().await;
            }
            Err(error) => {
                drop(spare.take());
                if let Ok(socket) = accept(&listener.0) {
                    turn_away(&socket, descriptors, TOO_MANY);
                }
                spare = File::open("/dev/null").ok();
                if let Some(times) = failures.record(shared.clock.now()) {
                    tracing::warn!(%error, times, "connections could not be accepted");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Waits for connections and accepts a batch. `admit` returns the cost of one. Returns whether no more were waiting.
async fn accept_batch(
    listener: &AsyncFd<OwnedFd>,
    mut admit: impl FnMut(OwnedFd) -> io::Result<u32>,
) -> io::Result<bool> {
    let mut ready = listener.readable().await?;
    let mut units = 0;
    while units < BATCH_UNITS {
        match accept(listener) {
            Ok(socket) => units += admit(socket)?,
            Err(Errno::EAGAIN) => {
                ready.clear_ready();
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn accept(listener: &AsyncFd<OwnedFd>) -> nix::Result<OwnedFd> {
    let socket = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the kernel has just made this descriptor for this call alone.
    #[expect(unsafe_code, reason = "nix returns the number of a new descriptor")]
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Starts the task of a connection, or turns the caller away. Returns the cost. Fails if descriptors have run out.
fn admit(
    socket: OwnedFd,
    descriptors: Descriptors,
    shared: &Arc<ServerState>,
    unidentified: &mut LogThrottle,
) -> io::Result<u32> {
    if has_hung_up(&socket) {
        descriptors.discard(&socket);
        return Ok(1);
    }
    let now = shared.clock.now();
    let mut is_unidentified = |error: io::Error| {
        descriptors.discard(&socket);
        if let Some(times) = unidentified.record(now) {
            tracing::warn!(%error, times, "peers that ended at once, or that the kernel does not identify, were turned away");
        }
        Ok(ADMIT_UNITS)
    };
    let user = match Peer::user(socket.as_fd()) {
        Ok(user) => user,
        Err(error) => return is_unidentified(error),
    };
    let held = match take_place(user.uid, shared, now) {
        Ok(held) => held,
        Err(reason) => {
            refuse(&socket, descriptors, shared, &user, reason);
            return Ok(ADMIT_UNITS);
        }
    };
    match Peer::of(socket.as_fd(), user, &shared.processes) {
        Ok(peer) => {
            let session = Arc::new(Session::new(Arc::clone(shared), peer));
            let stream = Stream::new(socket, descriptors);
            shared.connections.spawn(async move {
                if let Err(error) = serve(stream, session, held).await {
                    tracing::debug!(%error, "a connection ended");
                }
            });
            shared.connections_peak.fetch_max(shared.connections.len(), Ordering::Relaxed);
            Ok(ADMIT_UNITS)
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            turn_away(&socket, descriptors, TOO_MANY);
            Err(error)
        }
        Err(error) => is_unidentified(error),
    }
}

/// Whether both directions of a connection are closed, so that nothing can be answered.
fn has_hung_up(socket: &impl AsFd) -> bool {
    let mut socket = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let polled = poll(&mut socket, PollTimeout::ZERO);
    let [socket] = socket;
    polled == Ok(1) && socket.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// Takes a place for a connection of the user.
fn take_place(uid: u32, shared: &ServerState, now: Instant) -> Result<Held, &'static str> {
    let is_privileged = uid == 0 || uid == shared.own_uid;
    let reserved = if is_privileged { 0 } else { RESERVED.min(shared.connections_max / 4) };
    let free = (shared.connections_max - reserved).saturating_sub(shared.connections.len());
    let allowance = shared.allowances.of(uid, now);
    if allowance.held(Resource::Connections) >= free.saturating_mul(PER_FREE_PLACE) {
        return Err(TOO_MANY);
    }
    allowance.take(Resource::Connections, 1).map_err(|excess| excess.reason)
}

/// Reads the caller's groups in a turn of its user, and serves the connection.
async fn serve(stream: Stream, mut session: Arc<Session>, held: Held) -> io::Result<()> {
    let (shared, user_queue) = (Arc::clone(&session.shared), Arc::clone(&session.user_queue));
    let mut turn = user_queue.turn().now_or_never();
    if turn.is_none() {
        turn = Some(user_queue.turn().await);
        // The user's other connections may have taken long.
        if has_hung_up(&stream) {
            return Ok(());
        }
    }
    user_queue.spend(IDENTIFY_UNITS);
    let groups = if let Some(groups) = peer::few_groups(stream.as_fd())? {
        groups
    } else {
        drop(turn.take());
        let groups = Box::pin(many_groups(&stream, &held.allowance, &shared)).await?;
        turn = Some(user_queue.turn().await);
        user_queue.spend(SHARE_MANY_GROUPS_UNITS);
        groups
    };
    let groups = held.allowance.share_groups(groups);
    drop(turn);
    match (groups, Arc::get_mut(&mut session)) {
        (Ok(groups), Some(session)) => session.peer.set_groups(groups),
        (Err(excess), _) => {
            refuse(&stream, stream.descriptors, &shared, session.peer.caller(), excess.reason);
            return Ok(());
        }
        // Nothing else has it yet.
        (Ok(_), None) => return Ok(()),
    }
    // The caller may run a file that has just replaced the one that a rule means.
    let has_exe_rules = shared.registry.borrow().has_exe_rules;
    if has_exe_rules && let Some(exe) = &session.peer.facts().exe {
        Box::pin(shared.names.recheck(exe)).await;
    }
    let stop = shared.stop.clone();
    drop((shared, user_queue));
    Connection::new(stream, session, stop).run().await
}

/// Reads a long list of groups on another thread, one list at a time, for users in turn: it takes a processor for longer than
/// most requests.
async fn many_groups(stream: &Stream, allowance: &Allowance, shared: &ServerState) -> io::Result<Groups> {
    let _of_user = allowance.reading_groups.lock().await;
    let _of_all = shared.reading_groups.lock().await;
    if has_hung_up(stream) {
        return Err(io::ErrorKind::NotConnected.into());
    }
    let socket = stream.as_fd().try_clone_to_owned()?;
    spawn_blocking(move || peer::all_groups(socket.as_fd())).await.map_err(io::Error::other)?
}

/// Audits a refused connection, and tells the caller.
fn refuse(
    socket: &impl AsRawFd,
    descriptors: Descriptors,
    shared: &ServerState,
    facts: &Facts,
    reason: &'static str,
) {
    let refusal = Refusal::TooMuch(reason);
    shared.audit.record_as_it_is(&Record::new(facts, Operation::Connect, None, Err(refusal)));
    turn_away(socket, descriptors, reason);
}

/// Tells a caller why it is not served. The socket is closed next.
fn turn_away(socket: &impl AsRawFd, descriptors: Descriptors, reason: &str) {
    let mut wire = Vec::new();
    let message = Reply::Error(refusal(ErrorCode::Overloaded, reason));
    let _ = encode(&Frame { id: 0, message }, &mut wire);
    // A new socket has room for a few bytes.
    let _ = send_now(socket, &wire);
    descriptors.discard(socket);
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::RawFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream as Caller;
    use std::path::{Path, PathBuf};

    use nix::sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockType, UnixAddr, connect, sendmsg, setsockopt, socket,
        sockopt,
    };

    use tempfile::TempDir;
    use tokend_protocol::{CallOptions, GetRequest, Request, Variant, read_frame, write_frame};
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::clock::{Clock, ClockChanges};
    use crate::config;
    use crate::engine::credential::ActorContext;
    use crate::engine::registry::{CredentialFactory, Registry};
    use crate::fingerprint::Fingerprinter;
    use crate::quota::{Allowances, Quota};
    use crate::store::Store;

    const ALICE: u32 = 61_001;
    const LAST_GROUP: u32 = 1_065_535;

    /// A socket to which everybody may connect, and the state of its server, which does not run yet.
    fn scene(quota: Quota) -> (UnixListener, Arc<ServerState>, PathBuf, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let listener = UnixListener::bind(&path).unwrap();
        for (path, mode) in [(folder.path(), 0o755), (&path, 0o666)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        let config = format!(
            "[provider.p]\ntoken_endpoint = \"http://127.0.0.1:1/\"\nclient_id = \"c\"\n\
             client_secret = {{ file = \"/nonexistent\" }}\n[token.t]\nprovider = \"p\"\n\
             allow = [\"group:{LAST_GROUP}\"]\n"
        );
        let config = config::parse(Path::new("tokend.toml"), &config).unwrap().config;
        let clock = Clock::kernel(ClockChanges::default());
        let actor_context = ActorContext {
            clock: clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::with_key(&[7; 32])),
            roll: || 0.5,
            tasks: TaskTracker::new(),
        };
        let mut factory = CredentialFactory::new(Store::forgetful(clock.clone()), None, actor_context);
        let registry = Registry::build(config, &mut factory, None);
        let mut shared = ServerState::new(registry, factory, clock);
        shared.allowances = Allowances::new(quota);
        // Not the user of the test, who needs no rule.
        shared.own_uid = 1;
        (listener, Arc::new(shared), path, folder)
    }

    fn serve_on(listener: UnixListener, shared: &Arc<ServerState>) {
        tokio::spawn(run(Listener::new(listener).unwrap(), Arc::clone(shared)));
    }

    /// Does something on a thread that is a user with these groups.
    async fn as_user<T: Send + 'static>(
        uid: u32,
        groups: Vec<u32>,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let become_user = move || {
            // SAFETY: the kernel reads as many groups as there are. The libraries' calls are for all threads.
            #[expect(unsafe_code, reason = "the libraries' calls are for all threads")]
            let failed = unsafe {
                libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr())
                    | libc::syscall(libc::SYS_setresgid, uid, uid, uid)
                    | libc::syscall(libc::SYS_setresuid, uid, uid, uid)
            };
            assert_eq!(failed, 0);
            act()
        };
        // Not a thread of the runtime, which would stay this user.
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || sender.send(become_user()));
        receiver.await.unwrap()
    }

    fn ask(mut caller: &Caller, request: Request) -> Reply {
        let _ = write_frame(&mut caller, &Frame { id: 1, message: request });
        read_frame::<Reply>(&mut caller).unwrap().unwrap().unwrap().message
    }

    /// Connects and asks for the token. Its secret is missing, so a caller that may have it gets an error of its own.
    fn get(path: &Path) -> (Caller, ErrorCode) {
        let caller = Caller::connect(path).unwrap();
        let options = CallOptions { deadline_ms: 0, min_ttl_ms: 0 };
        let (name, variant) = ("t".parse().unwrap(), Variant::default());
        match ask(&caller, Request::Get(GetRequest { name, options, variant })) {
            Reply::Error(error) => (caller, error.code),
            reply => panic!("{reply:?}"),
        }
    }

    #[tokio::test]
    async fn a_caller_is_identified_by_any_of_65536_groups_and_its_list_is_stored_once() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (listener, shared, path, _folder) = scene(Quota::default());
        serve_on(listener, &shared);
        let all = || (LAST_GROUP - 65_535..=LAST_GROUP).collect::<Vec<u32>>();
        let get_on_ten = |path: PathBuf| move || [(); 10].map(|()| get(&path));
        let ten = as_user(ALICE, all(), get_on_ten(path.clone())).await;
        let refusals = [ErrorCode::NotAllowed, ErrorCode::Overloaded];
        assert!(!ten.iter().any(|(_, code)| refusals.contains(code)), "{ten:?}");
        let others: Vec<u32> = all().into_iter().map(|gid| gid - 1).collect();
        let refused = as_user(ALICE, others, get_on_ten(path.clone())).await;
        assert!(refused.iter().all(|(_, code)| *code == ErrorCode::NotAllowed), "{refused:?}");
        // Twenty connections have two lists, so there is room for two more.
        let allowance = shared.allowances.of(ALICE, shared.clock.now());
        let more = [2, 3, 4].map(|n| all().into_iter().map(|gid| gid - n).collect::<Vec<u32>>());
        let [third, fourth, fifth] = more.clone().map(|list| allowance.share_groups(list.into()));
        assert!(third.is_ok() && fourth.is_ok() && fifth.is_err());
        let get_once = |path: PathBuf| move || get(&path).1;
        let [.., excess] = more;
        let code = as_user(ALICE, excess.clone(), get_once(path.clone())).await;
        assert_eq!(code, ErrorCode::Overloaded);
        let code = as_user(ALICE + 1, excess, get_once(path)).await;
        assert_eq!(code, ErrorCode::NotAllowed, "another user has room of its own");
    }

    #[tokio::test]
    async fn however_many_users_take_all_they_can_there_is_room_for_another() {
        let (_listener, mut shared, ..) = scene(Quota::default());
        Arc::get_mut(&mut shared).unwrap().connections_max = 4096;
        let mut held = Vec::new();
        let mut take = |uid| {
            let place = take_place(uid, &shared, shared.clock.now());
            held.extend(place.map(|place| (place, shared.connections.token())));
        };
        for _ in 0..1024 {
            (100..116).for_each(&mut take);
        }
        let before = shared.connections.len();
        (0..8).for_each(|_| take(200));
        assert_eq!(shared.connections.len() - before, 8, "beside {before} connections of 16 users");
        assert!(before > 3900, "{before}");
    }

    #[tokio::test]
    async fn the_queue_is_short_while_the_daemon_serves_and_long_while_it_does_not() {
        let (listener, _shared, path, _folder) = scene(Quota::default());
        let listener = Listener::new(listener).unwrap();
        // As the service manager has it.
        let _other = listener.0.get_ref().try_clone().unwrap();
        let mut callers = Vec::new();
        let mut connect_all = || {
            let before = callers.len();
            while callers.len() < 500 {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let caller = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
                match connect(caller.as_raw_fd(), &UnixAddr::new(&path).unwrap()) {
                    Ok(()) => callers.push(caller),
                    Err(error) => {
                        assert_eq!(error, Errno::EAGAIN);
                        break;
                    }
                }
            }
            callers.len() - before
        };
        let serving = connect_all();
        assert!(serving <= 257, "{serving}");
        drop(listener);
        assert!(connect_all() > 0, "more wait for the next daemon");
    }

    #[tokio::test]
    async fn callers_that_have_hung_up_take_no_place() {
        let (listener, shared, path, _folder) = scene(Quota { connections: 1, ..Quota::default() });
        for _ in 0..3 {
            let mut caller = Caller::connect(&path).unwrap();
            caller.write_all(b"bytes that nobody waits for").unwrap();
        }
        let caller = Caller::connect(&path).unwrap();
        serve_on(listener, &shared);
        let reply = tokio::task::spawn_blocking(move || ask(&caller, Request::Version)).await.unwrap();
        assert!(matches!(reply, Reply::Version(_)), "{reply:?}");
    }

    #[tokio::test]
    async fn a_caller_that_has_only_finished_its_requests_is_served() {
        let (listener, shared, path, _folder) = scene(Quota::default());
        let mut caller = Caller::connect(&path).unwrap();
        write_frame(&mut caller, &Frame { id: 1, message: Request::Version }).unwrap();
        caller.shutdown(std::net::Shutdown::Write).unwrap();
        serve_on(listener, &shared);
        let read = move || read_frame::<Reply>(&mut caller).unwrap().unwrap().unwrap().message;
        assert!(matches!(tokio::task::spawn_blocking(read).await.unwrap(), Reply::Version(_)));
    }

    #[tokio::test]
    async fn a_descriptor_that_came_before_the_start_holds_up_nobody() {
        let (listener, shared, path, _folder) = scene(Quota::default());
        // A TCP connection whose close takes an hour, since it has to say what nobody reads.
        let others = TcpListener::bind("127.0.0.1:0").unwrap();
        let lingering = TcpStream::connect(others.local_addr().unwrap()).unwrap();
        lingering.set_nonblocking(true).unwrap();
        while (&lingering).write(&[0; 4096]).is_ok() {}
        setsockopt(&lingering, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 3600 }).unwrap();
        let gone = Caller::connect(&path).unwrap();
        let numbers: [RawFd; 1] = [lingering.as_raw_fd()];
        let attached = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(gone.as_raw_fd(), &[IoSlice::new(b"x")], &attached, MsgFlags::empty(), None).unwrap();
        drop((gone, lingering));
        serve_on(listener, &shared);
        let caller = Caller::connect(&path).unwrap();
        let reply = tokio::task::spawn_blocking(move || ask(&caller, Request::Version)).await.unwrap();
        assert!(matches!(reply, Reply::Version(_)));
    }
}

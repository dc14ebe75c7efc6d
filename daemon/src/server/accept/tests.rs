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
use crate::server::event_loop::EventLoop;
use crate::store::Store;

const ALICE: u32 = 61_001;
const LAST_GROUP: u32 = 1_065_535;

/// A socket to which everybody may connect, and the state of its server, which does not run yet.
pub(in crate::server) fn scene(quota: Quota) -> (UnixListener, Arc<ServerState>, PathBuf, TempDir) {
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

fn serve_on(listener: UnixListener, shared: &Arc<ServerState>) -> EventLoop {
    EventLoop::start(Listener::new(listener, QUEUE_MAX).unwrap(), Arc::clone(shared)).unwrap()
}

/// Does something on a thread that is a user with these groups.
pub(in crate::server) async fn as_user<T: Send + 'static>(
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
    let _event_loop = serve_on(listener, &shared);
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
        held.extend(take_place(uid, &shared, shared.clock.now()));
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
    let listener = Listener::new(listener, QUEUE_MAX).unwrap();
    // As the service manager has it.
    let _other = listener.0.try_clone().unwrap();
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
    let _event_loop = serve_on(listener, &shared);
    let reply = tokio::task::spawn_blocking(move || ask(&caller, Request::Version)).await.unwrap();
    assert!(matches!(reply, Reply::Version(_)), "{reply:?}");
}

#[tokio::test]
async fn a_caller_that_has_only_finished_its_requests_is_served() {
    let (listener, shared, path, _folder) = scene(Quota::default());
    let mut caller = Caller::connect(&path).unwrap();
    write_frame(&mut caller, &Frame { id: 1, message: Request::Version }).unwrap();
    caller.shutdown(std::net::Shutdown::Write).unwrap();
    let _event_loop = serve_on(listener, &shared);
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
    let _event_loop = serve_on(listener, &shared);
    let caller = Caller::connect(&path).unwrap();
    let reply = tokio::task::spawn_blocking(move || ask(&caller, Request::Version)).await.unwrap();
    assert!(matches!(reply, Reply::Version(_)));
}

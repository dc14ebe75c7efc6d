//! The run of the daemon from start to end: sockets, signals, reloads and the service manager.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::OptionFuture;
use futures_util::{SinkExt, StreamExt};
use tokend_protocol::{Codec, ErrorCode, Frame, Reply, Request};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, interval_at, sleep, timeout};
use tokio_util::codec::Framed;
use tokio_util::task::TaskTracker;

use crate::access::group_id;
use crate::clock::{Clock, ClockChanges};
use crate::config::{self, Config, DaemonSettings, Loaded, Source};
use crate::process::daemon::Daemon;
use crate::process::hardening;
use crate::process::listener::OwnSocket;
use crate::process::systemd::{self, NotifyState, notify};
use crate::server::session::refusal;
use crate::server::stream::refuse_descriptors;
use crate::store::Store;

/// The answer to callers of a daemon whose configuration has faults.
const FAULTY: &str = "the daemon's configuration has faults; an operator must mend it (journalctl -u tokend)";

/// Runs the daemon until a signal stops it. The runtime has one thread, which mostly waits for providers. Another thread serves
/// callers: see [`event_loop`](crate::server::event_loop).
pub fn run(source: &Source, socket: Option<PathBuf>) -> Result<ExitCode, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(start_and_serve(source, socket));
    // Does not wait for threads that a name service or a disk may have blocked.
    runtime.shutdown_background();
    ended
}

async fn start_and_serve(source: &Source, socket: Option<PathBuf>) -> Result<ExitCode, Box<dyn Error>> {
    let memory = hardening::lock_memory();
    // Signals are caught before anything else, so that none is lost during the start.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hangup = signal(SignalKind::hangup())?;
    let mut stop = std::pin::pin!(async {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    });
    let (passed_socket, manager) = systemd::passed()?;
    let Some(config) = load(source) else {
        let answers = OptionFuture::from(passed_socket.map(answer_callers));
        return Ok(tokio::select! {
            () = stop => ExitCode::SUCCESS,
            // `EX_CONFIG` of sysexits.h.
            _ = answers => ExitCode::from(78),
        });
    };
    let (listener, _own_socket) = match passed_socket {
        Some(listener) => (listener, None),
        None => bind(&config, socket)?,
    };
    let DaemonSettings { state_dir, state_key, .. } = &config.daemon;
    // The store never waits for a point in time, so changes of the clock do not matter to it.
    let clock = Clock::kernel(ClockChanges::default());
    let store = Store::open(clock, manager, systemd::keep_descriptor, state_dir, state_key.as_ref()).await;
    let tokens = config.tokens.len();
    let daemon = Daemon::start(config, listener, hardening::raise_descriptor_limit(), store, memory).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), tokens, "serving");
    notify(&[NotifyState::Ready, NotifyState::Status(&daemon.summary().await)]);
    tokio::select! {
        () = &mut stop => (),
        () = send_heartbeats(&daemon) => (),
        () = reload_on_signal(&daemon, hangup, source) => (),
    }
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    tracing::info!("stopping");
    daemon.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Answers one request of every caller with an error, for five seconds. The service manager starts the daemon for every
/// caller that waits; a daemon that exited at once would start, and log its faults, in a busy loop.
async fn answer_callers(listener: UnixListener) {
    let _ = refuse_descriptors(&listener);
    let answers = TaskTracker::new();
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((caller, _)) => drop(answers.spawn(refuse(caller))),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let _ended = timeout(Duration::from_secs(5), accepting).await;
    answers.close();
    let _answered = timeout(Duration::from_secs(1), answers.wait()).await;
}

async fn refuse(caller: UnixStream) {
    let mut frames = Framed::new(caller, Codec::<Request, Reply>::new());
    if let Some(Ok(Ok(request))) = frames.next().await {
        let message = Reply::Error(refusal(ErrorCode::Unavailable, FAULTY));
        let _ = frames.send(Frame { id: request.id, message }).await;
    }
}

/// Reads the configuration, and logs its warnings and faults.
fn load(source: &Source) -> Option<Config> {
    let loaded = config::load(source, crate::peer::abilities()).inspect_err(|faults| {
        for fault in faults.as_slice() {
            tracing::error!("{fault}");
        }
    });
    let Loaded { config, warnings } = loaded.ok()?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Some(config)
}

fn bind(
    config: &Config,
    socket: Option<PathBuf>,
) -> Result<(UnixListener, Option<OwnSocket>), Box<dyn Error>> {
    let unknown = |group| format!("daemon.socket_group: there is no group {group} on this host");
    let group = config.daemon.socket_group.as_ref();
    let group = group.map(|group| group_id(group).ok_or_else(|| unknown(group))).transpose()?;
    let path = socket.unwrap_or_else(|| config.daemon.socket.clone());
    let bound = OwnSocket::bind(&path, group);
    let (listener, own_socket) =
        bound.map_err(|error| format!("cannot make the socket {}: {error}", path.display()))?;
    Ok((UnixListener::from_std(listener)?, Some(own_socket)))
}

/// Feeds the watchdog and updates the line in `systemctl status`, every five seconds or twice in the watchdog's time-out.
async fn send_heartbeats(daemon: &Daemon) {
    const OVERDUE: &str =
        "tokens are overdue for renewal, but no request is under way; the watchdog is not fed";
    const NOT_SERVING: &str = "callers are not served; the watchdog is not fed";
    let watchdog = sd_notify::watchdog_enabled().unwrap_or(Duration::MAX);
    let (least, most) = (Duration::from_millis(1), Duration::from_secs(5));
    let period = (watchdog / 2).clamp(least, most);
    // By the first one, the start has freed its memory.
    let mut heartbeat = interval_at(Instant::now() + period, period);
    loop {
        heartbeat.tick().await;
        daemon.give_back_memory();
        // The watchdog starts a daemon again that does not renew, or does not serve.
        let fault = if daemon.is_serving() {
            (!daemon.is_on_schedule().await).then_some(OVERDUE)
        } else {
            Some(NOT_SERVING)
        };
        if let Some(fault) = fault {
            tracing::error!("{fault}");
            notify(&[NotifyState::Status(fault)]);
        } else {
            notify(&[NotifyState::Watchdog, NotifyState::Status(&daemon.summary().await)]);
        }
    }
}

/// Reloads the configuration at each SIGHUP. A signal during a reload starts another reload afterwards.
async fn reload_on_signal(daemon: &Daemon, mut hangup: Signal, source: &Source) {
    while hangup.recv().await.is_some() {
        let now = NotifyState::monotonic_usec_now();
        notify(&[NotifyState::Reloading, now.unwrap_or(NotifyState::Status("reloading"))]);
        let source = source.clone();
        // On a thread of its own: a slow disk delays no caller, no signal and no heartbeat.
        if let Ok(Some(config)) = tokio::task::spawn_blocking(move || load(&source)).await {
            daemon.reload(config).await;
        } else {
            daemon.reload_failed();
        }
        notify(&[NotifyState::Ready, NotifyState::Status(&daemon.summary().await)]);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSlice;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use futures_util::FutureExt;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    fn client(path: &Path) -> Framed<UnixStream, Codec<Reply, Request>> {
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.set_nonblocking(true).unwrap();
        Framed::new(UnixStream::from_std(stream).unwrap(), Codec::new())
    }

    /// Whether a caller can attach a descriptor to its bytes.
    fn accepts_descriptors(path: &Path) -> bool {
        let caller = std::os::unix::net::UnixStream::connect(path).unwrap();
        let file = File::open("/dev/null").unwrap();
        let (bytes, numbers) = ([IoSlice::new(b"x")], [file.as_raw_fd()]);
        let attached = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(caller.as_raw_fd(), &bytes, &attached, MsgFlags::MSG_NOSIGNAL, None).is_ok()
    }

    #[tokio::test]
    async fn a_daemon_with_a_faulty_configuration_refuses_descriptors_if_the_kernel_can() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other_path) = (dir.path().join("s.sock"), dir.path().join("other.sock"));
        let other = UnixListener::bind(&other_path).unwrap();
        refuse_descriptors(&other);
        let mut answers = Box::pin(answer_callers(UnixListener::bind(&path).unwrap()));
        assert!((&mut answers).now_or_never().is_none());
        assert_eq!(accepts_descriptors(&path), accepts_descriptors(&other_path));
    }

    #[tokio::test(start_paused = true)]
    async fn every_caller_gets_the_reason_and_a_silent_one_delays_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let _silent = client(&path);
        let mut callers: Vec<_> = (0..30).map(|_| client(&path)).collect();
        for caller in &mut callers {
            caller.send(Frame { id: 7, message: Request::Version }).await.unwrap();
        }
        answer_callers(listener).await;
        for caller in &mut callers {
            let reply = caller.next().await.unwrap().unwrap().unwrap();
            let Reply::Error(error) = reply.message else { panic!("an error was expected") };
            assert_eq!((reply.id, error.code, error.message.as_str()), (7, ErrorCode::Unavailable, FAULTY));
        }
    }
}
